"""A DDPM of denoising-diffusion-pytorch: build, pretrain, sample, save and load it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import GaussianDiffusion
from ema_pytorch import EMA
from torch import Tensor
from tqdm.auto import tqdm

from diawork.base.checkpoints import (
    Checkpointer,
    load_checkpoint,
    matching,
    named,
    refuse_differences,
    save_checkpoint,
)
from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig
from diawork.base.errors import DataError
from diawork.base.loop import NotFinite, Progress, Row, fit_or_load, fit_steps, update
from diawork.base.seeding import RowDraws, generator, isolated_rng
from diawork.base.shown import Shown
from diawork.data.images import Images, ImageSet, batches
from diawork.method.dissolve import to_model
from diawork.method.unet import build_unet, release, restate

WEIGHTS = "ddpm"
VALUE_RANGE = [-1, 1]  # of the images that the model sees
ZERO_GUESS = {"l1": math.sqrt(2 / math.pi), "l2": 1.0}  # loss of a guess of no noise


@dataclass(repr=False)
class DDPM(Shown):
    """A pretrained diffusion model: the raw and the averaged weights, and what they were made from."""

    raw: GaussianDiffusion
    ema: GaussianDiffusion
    config: DiffusionConfig
    data: dict[str, Any] = field(default_factory=dict)  # name, identity, bridge and number of images
    losses: list[float] = field(default_factory=list)  # one a step
    folder: Path | None = None  # where it is saved

    def weights(self, which: str = "ema") -> GaussianDiffusion:
        """Return the model with the "ema" or the "raw" weights."""
        return {"ema": self.ema, "raw": self.raw}[which]

    @property
    def verdict(self) -> str:
        """Return in a sentence what the loss of the last tenth of the steps says."""
        if not self.losses:
            return "Its loss was not kept."
        last = self.losses[-max(5, len(self.losses) // 10) :]
        share = 1 - sum(last) / len(last) / ZERO_GUESS[self.config.loss]
        if share < 0.5:
            return f"{len(self.losses):,} steps: it has learnt nothing yet; what it draws and dissolves means nothing."
        return f"{len(self.losses):,} steps: it predicts {share:.0%} of the noise."

    def shown(self) -> tuple[str, Mapping[str, object]]:
        """Return what it is, what it learnt from, and how far it came."""
        weights, cfg = sum(p.numel() for p in self.raw.parameters()), self.config
        size = f"{cfg.image_size} × {cfg.image_size} px, {cfg.timesteps:,} noise levels, {weights / 1e6:.2f} M weights"
        images = f"{self.data.get('images', '?')} healthy images of {self.data.get('name', '?')}"
        rows = {"model": size, "learnt from": images, "training": self.verdict, "folder": self.folder or "not saved"}
        return "diffusion model (DDPM)", rows


def build_ddpm(cfg: DiffusionConfig) -> GaussianDiffusion:
    """Return an untrained DDPM; every setting that matters is written out, none left to the library."""
    return GaussianDiffusion(
        build_unet(cfg),
        image_size=cfg.image_size,
        timesteps=cfg.timesteps,
        objective=cfg.objective,
        beta_schedule=cfg.beta_schedule,
        auto_normalize=True,
        offset_noise_strength=0.0,
        min_snr_loss_weight=False,
        immiscible=False,
    )


def denoising_loss(ddpm: GaussianDiffusion, x: Tensor, t: Tensor, noise: Tensor, *, loss: str = "l1") -> Tensor:
    """Return the mean error of the predicted noise for x (B, C, S, S) in [-1, 1] at steps t (B,)."""
    predicted = ddpm.model(ddpm.q_sample(x, t, noise), t).float()
    return F.l1_loss(predicted, noise) if loss == "l1" else F.mse_loss(predicted, noise)


def pretrain_ddpm(
    train: ImageSet,
    cfg: DiffusionConfig | None = None,
    *,
    bridge: str = "pad",
    compute: Compute | None = None,
    folder: Path | str | None = None,
    save_every: float = 300.0,
    progress: Progress = True,
) -> DDPM:
    """Pretrain a DDPM on the healthy images of ``train``.

    With a ``folder`` the training is saved there as it goes, an interrupted one is continued
    exactly, and a finished one is loaded. Raises ``Interrupted`` after saving on a stop signal and
    ``NumericError`` where the loss stops being finite.
    """
    cfg, compute, folder = cfg or DiffusionConfig(), compute or Compute.auto(), Path(folder) if folder else None
    if cfg.precision == "fp32":
        compute = replace(compute, precision="fp32")
    healthy = train.normal()
    if cfg.data_fraction < 1:
        order = torch.randperm(len(healthy), generator=generator(cfg.seed, "ddpm", "fraction"))
        healthy = healthy.take(order[: max(1, round(cfg.data_fraction * len(healthy)))].numpy())
    data = {"name": train.name, "identity": train.identity, "bridge": bridge, "images": len(healthy)}

    def load() -> DDPM:
        if progress and compute.group.leads:
            tqdm.write(f"reused {folder}")
        return load_ddpm(str(folder), cfg, data=data)

    ddpm = fit_or_load(
        folder / WEIGHTS if folder else None,
        load=load,
        fit=lambda checkpointer: _pretrained(healthy.images, cfg, data, compute, checkpointer, progress),
        save=lambda ddpm: save_ddpm(str(folder), ddpm),
        spec={"kind": "ddpm training", "config": cfg.identity(), "data": data, "value_range": VALUE_RANGE},
        every_seconds=save_every,
        group=compute.group,
    )
    ddpm.folder = folder
    return ddpm


def _pretrained(
    images: Images, cfg: DiffusionConfig, data: dict[str, Any], compute: Compute, checkpointer: Checkpointer,
    progress: Progress,
) -> DDPM:  # fmt: skip
    """Train on images (N, C, H, W) in [0, 1]; of each micro-batch a process has a share."""
    to_model(images[:1], cfg.image_size, data["bridge"])  # refuses what it cannot bring to the model
    ddpm, group = compute.prepare(build_ddpm(cfg)), compute.group
    ddpm.model.to(memory_format=torch.channels_last)  # in fp32, too: restated blocks work on rows of pixels
    ema = EMA(  # a copy of the library's own blocks, so made before these are restated
        ddpm,
        beta=cfg.ema_decay,
        update_every=cfg.ema_every,
        update_after_step=min(100, cfg.steps // 10),  # the library's 100 would leave a short run unaveraged
        include_online_model=False,
    )
    ema.ema_model.to(compute.device)
    restate(ddpm.model)
    optimizer = build_adam(ddpm, cfg)

    def rate(step: int) -> float:
        if cfg.lr_schedule == "constant":
            return cfg.lr
        return cfg.lr * (0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / max(1, cfg.steps))).item()))

    def take_step(step: int, *micro_batches: Tensor) -> Row:
        total = torch.zeros((), device=compute.device)
        for part, index in enumerate(micro_batches):
            rows = group.rows(len(index))
            if not len(index[rows]):  # fewer images than processes
                continue
            x = to_model(images[index[rows]], cfg.image_size, data["bridge"], channels=cfg.channels) * 2 - 1
            if not torch.isfinite(x).all():
                raise NotFinite("the images hold NaN or infinite values")
            flips, steps, noises = (
                RowDraws(generator(cfg.seed, "ddpm", step * cfg.accumulate + part, what), rows, len(index))
                for what in ("flip", "t", "noise")
            )
            if cfg.hflip:
                x = torch.where((flips.rand(len(x)) < 0.5)[:, None, None, None], x.flip(-1), x)
            t, noise = steps.randint(0, cfg.timesteps), noises.randn(*x.shape)
            with compute.autocast():
                loss = denoising_loss(ddpm, *map(compute.to, (x, t, noise)), loss=cfg.loss)
            loss = loss * (len(x) / len(index)) / cfg.accumulate
            loss.backward()
            total += loss.detach()
        group.sum_gradients(ddpm.parameters())
        row = update(optimizer, {"loss": group.sum(total)}, clip=cfg.clip_norm)
        ema.update()
        return row

    history = fit_steps(
        take_step,
        modules={"raw": ddpm, "ema": ema},
        optimizers={"optimizer": optimizer},
        batches=lambda epoch: batches(len(images), cfg.batch_size, generator(cfg.seed, "ddpm", epoch, "order")),
        steps=cfg.steps,
        checkpointer=checkpointer,
        accumulate=cfg.accumulate,
        rate=rate,
        progress=progress,
        desc="DDPM",
        hint="Lower diffusion.lr or use precision='fp32'.",
    )
    release(ddpm.model)
    for model in (ddpm, ema.ema_model):  # as ``load_ddpm`` returns them
        model.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    return DDPM(ddpm, ema.ema_model, cfg, data, [row["loss"] for row in history.steps])


def build_adam(ddpm: GaussianDiffusion, cfg: DiffusionConfig) -> torch.optim.Adam:
    """Return the library's optimiser; fused, it passes over the weights once, and equals the other to rounding."""
    return torch.optim.Adam(ddpm.parameters(), lr=cfg.lr, betas=cfg.betas, fused=True)


def save_ddpm(folder: Path | str, ddpm: DDPM) -> None:
    """Save both sets of weights with the config and the data's identity (safetensors)."""
    tensors = named(raw=ddpm.raw.state_dict(), ema=ddpm.ema.state_dict())
    state = {"config": ddpm.config.model_dump(mode="json"), "data": ddpm.data, "losses": ddpm.losses}
    save_checkpoint(Path(folder) / WEIGHTS, tensors, spec=_spec(ddpm.config), state=state)


def _spec(cfg: DiffusionConfig) -> dict[str, Any]:
    return {"kind": WEIGHTS, **cfg.architecture(), "value_range": VALUE_RANGE}


def load_ddpm(folder: Path | str, expect: DiffusionConfig | None = None, *, data: dict | None = None) -> DDPM:
    """Load a DDPM saved by ``save_ddpm``.

    ``expect`` refuses another architecture, resolution, channel count, objective, schedule or value
    range with a table of the differences (``CheckpointError``), ``data`` another origin (``DataError``).
    """
    path = Path(folder) / WEIGHTS
    checkpoint = load_checkpoint(path, spec=_spec(expect) if expect else None)
    origin = checkpoint.value("data", dict)
    if data is not None and origin != data:
        raise DataError(
            f"this ddpm was trained on other data ({origin}, wanted {data}).",
            path=path,
            hint="Choose another output folder, or load it on purpose with diawork.load_ddpm(folder).",
        )
    cfg = checkpoint.config(DiffusionConfig, checkpoint.value("config", dict))
    refuse_differences(path, checkpoint.spec, _spec(cfg))
    models = {}
    for which in ("raw", "ema"):
        with torch.device("meta"):  # shapes alone: a record may claim more than the file holds
            model = build_ddpm(cfg)
        tensors = matching(checkpoint.tensors, f"{which}.", model.state_dict(), path=path)
        model.load_state_dict(tensors, assign=True)
        models[which] = model.eval().requires_grad_(False)
    checkpoint.refuse_others("raw.", "ema.")
    return DDPM(models["raw"], models["ema"], cfg, origin, checkpoint.value("losses", list), Path(folder))


@torch.no_grad()
def sample_ddpm(ddpm: GaussianDiffusion, n: int = 16, *, seed: int = 0, steps: int = 50) -> Tensor:
    """Draw n images (n, C, S, S) in [0, 1] with ``steps`` DDIM steps: does the model know the anatomy?"""
    timesteps = ddpm.sampling_timesteps
    ddpm.sampling_timesteps = min(steps, ddpm.num_timesteps)
    try:
        with isolated_rng(seed, "ddpm", "sample"):
            return ddpm.ddim_sample((n, ddpm.channels, *ddpm.image_size)).clamp(0, 1).cpu()
    finally:
        ddpm.sampling_timesteps = timesteps
