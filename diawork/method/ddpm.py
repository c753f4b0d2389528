"""A DDPM of denoising-diffusion-pytorch: build, pretrain, sample, save and load it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import GaussianDiffusion
from ema_pytorch import EMA
from torch import Tensor
from tqdm.auto import tqdm

from diawork.base.checkpoints import (
    Checkpoint,
    Keeper,
    Tensors,
    load_checkpoint,
    load_optimizer,
    load_weights,
    named,
    optimizer_state,
    refuse_differences,
    save_checkpoint,
)
from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig
from diawork.base.errors import DataError, NumericError
from diawork.base.seeding import RowDraws, generator, isolated_rng
from diawork.base.stopping import graceful_stop
from diawork.data.images import Images, ImageSet, batches
from diawork.method.dissolve import to_model
from diawork.method.progress import Bars, stage
from diawork.method.unet.plain import build_unet
from diawork.method.unet.trained import release, restate

WEIGHTS = "ddpm"
VALUE_RANGE = [-1, 1]  # of the images that the model sees


@dataclass
class DDPM:
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
    progress: Bars = True,
) -> DDPM:
    """Pretrain a DDPM on the healthy images of ``train``.

    With a ``folder`` the training is saved there as it goes, an interrupted one is continued
    exactly, and a finished one is loaded. Raises ``Interrupted`` after saving on a stop signal and
    ``NumericError`` where the loss stops being finite.
    """
    cfg, compute = cfg or DiffusionConfig(), compute or Compute.auto()
    folder = Path(folder) if folder else None
    images = _fraction(train.normal(), cfg)
    data = {"name": train.name, "identity": train.identity, "bridge": bridge, "images": len(images)}
    group, progress = compute.group, progress if compute.group.leads else False
    if folder and group.told((folder / f"{WEIGHTS}.json").exists):
        if progress:
            tqdm.write(f"reused {folder}")
        ddpm = load_ddpm(folder, cfg, data=data)
        Keeper(folder, spec={}, group=group).clear()  # what a kill just after the last save left
        return ddpm
    to_model(images.images[:1], cfg.image_size, bridge)  # refuses what it cannot bring to the model
    trainer = _Trainer(cfg, compute, data)
    keeper = Keeper(folder, spec=trainer.spec, every_seconds=save_every, group=group)
    trainer.restore(keeper.restore())
    keeper.require_space(trainer.snapshot()[0], trainer.optimizer)
    with graceful_stop(), stage(progress, total=cfg.steps, initial=trainer.step, desc="DDPM") as bar:
        while trainer.step < cfg.steps:
            trainer.one_step(images.images)
            bar.update()
            if trainer.step % 10 == 0:
                bar.set_postfix(loss=f"{sum(trainer.losses[-50:]) / len(trainer.losses[-50:]):.4f}")
            keeper.after_step(trainer.step, trainer.snapshot)
        ddpm = trainer.result()
        if folder and group.leads:
            save_ddpm(folder, ddpm)
            keeper.clear()
        ddpm.folder = folder
    group.wait()
    return ddpm


def _fraction(images: ImageSet, cfg: DiffusionConfig) -> ImageSet:
    if cfg.data_fraction == 1:
        return images
    keep = max(1, round(cfg.data_fraction * len(images)))
    order = torch.randperm(len(images), generator=generator(cfg.seed, "ddpm", "fraction"))
    return images.take(order[:keep].numpy())


def build_adam(ddpm: GaussianDiffusion, cfg: DiffusionConfig) -> torch.optim.Adam:
    """Return the library's optimiser; fused, it passes over the weights once, and equals the other to rounding."""
    return torch.optim.Adam(ddpm.parameters(), lr=cfg.lr, betas=cfg.betas, fused=True)


class _Trainer:
    """Model, optimiser and average, with a step that draws everything from the step's own generators."""

    def __init__(self, cfg: DiffusionConfig, compute: Compute, data: dict[str, Any]) -> None:
        self.cfg, self.compute, self.data = cfg, compute, data
        self.ddpm = compute.prepare(build_ddpm(cfg))
        self.ddpm.model.to(memory_format=torch.channels_last)  # in fp32, too: restated blocks work on rows of pixels
        self.ema = EMA(
            self.ddpm,
            beta=cfg.ema_decay,
            update_every=cfg.ema_every,
            update_after_step=min(100, cfg.steps // 10),  # the library's 100 would leave a short run unaveraged
            include_online_model=False,
        )
        self.ema.ema_model.to(compute.device)
        restate(self.ddpm.model)
        self.optimizer = build_adam(self.ddpm, cfg)
        self.step = 0
        self.losses: list[float] = []
        self._epoch, self._order = -1, list[Tensor]()  # the epoch whose order of batches is at hand

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "ddpm training", "config": self.cfg.identity(), "data": self.data, "value_range": VALUE_RANGE}

    def one_step(self, images: Images) -> None:
        """Take one optimiser step over ``accumulate`` micro-batches of images (N, C, H, W) in [0, 1], or our share."""
        cfg, group = self.cfg, self.compute.group
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = cfg.lr * self._lr_factor()
        losses, seen = [torch.zeros((), device=self.compute.device)], list[int]()
        for part in range(cfg.accumulate):
            micro_step = self.step * cfg.accumulate + part
            index = (whole := self._index(len(images), micro_step))[rows := group.rows(len(whole))]
            seen += index.tolist()
            if not len(index):  # fewer images than processes
                continue
            x = to_model(images[index], cfg.image_size, self.data["bridge"], channels=cfg.channels) * 2 - 1
            if not torch.isfinite(x).all():
                raise self._not_finite("the images hold NaN or infinite values", seen)
            loss = self._loss(x, micro_step, rows, len(whole)) * (len(index) / len(whole)) / cfg.accumulate
            loss.backward()
            losses.append(loss.detach())
        group.sum_gradients(self.ddpm.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.ddpm.parameters(), cfg.clip_norm)
        both = torch.stack([group.sum(torch.stack(losses).sum()), norm])
        total, norm = both.tolist()  # the step waits for the device here alone
        if not (math.isfinite(norm) and math.isfinite(total)):
            raise self._not_finite(f"loss {total}, gradient norm {norm}", seen)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.losses.append(total)
        self.step += 1

    def _lr_factor(self) -> float:
        if self.cfg.lr_schedule == "constant":
            return 1.0
        return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * self.step / max(1, self.cfg.steps))).item())

    def _not_finite(self, what: str, index: list[int]) -> NumericError:
        return NumericError(
            f"DDPM pretraining stopped being finite at step {self.step}: {what}; healthy images {index}.",
            hint="Lower diffusion.lr or use precision='fp32'; the last checkpoint is intact.",
        )

    def _index(self, n: int, micro_step: int) -> Tensor:
        """Return the positions of the images in a micro-batch; the order is drawn once an epoch."""
        epoch, position = divmod(micro_step, -(-n // self.cfg.batch_size))
        if epoch != self._epoch:
            draws = generator(self.cfg.seed, "ddpm", epoch, "order")
            self._epoch, self._order = epoch, list(batches(n, self.cfg.batch_size, draws))
        return self._order[position]

    def _loss(self, batch: Tensor, micro_step: int, rows: slice, of: int) -> Tensor:
        """Return the mean loss of some ``rows`` of a micro-batch ``of`` so many images."""
        cfg, named = self.cfg, (generator(self.cfg.seed, "ddpm", micro_step, what) for what in ("flip", "t", "noise"))
        flips, steps, noises = (RowDraws(one, rows, of) for one in named)
        if cfg.hflip:
            mirrored = flips.rand(len(batch)) < 0.5
            batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
        t, noise = steps.randint(0, cfg.timesteps), noises.randn(*batch.shape)
        batch, t, noise = (self.compute.to(value) for value in (batch, t, noise))
        with self.compute.autocast():
            return denoising_loss(self.ddpm, batch, t, noise, loss=cfg.loss)

    def snapshot(self) -> tuple[Tensors, dict]:
        """Return all tensors and plain values that a resumed training needs."""
        models = {"raw": self.ddpm.state_dict(), "ema": self.ema.state_dict()}
        return named(**models, optimizer=optimizer_state(self.optimizer)), {"losses": self.losses}

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint, where there is one."""
        if checkpoint is None:
            return
        tensors, path = checkpoint.tensors, checkpoint.path
        checkpoint.refuse_others("raw.", "ema.", "optimizer.")
        load_weights(self.ddpm, tensors, prefix="raw.", path=path)
        load_weights(self.ema, tensors, prefix="ema.", path=path)
        load_optimizer(self.optimizer, tensors, prefix="optimizer.", path=path)
        self.step, self.losses = checkpoint.value("step", int), checkpoint.value("losses", list)

    def result(self) -> DDPM:
        """Return both sets of weights, ready for inference, as ``load_ddpm`` would."""
        release(self.ddpm.model)
        for model in (raw := self.ddpm, ema := self.ema.ema_model):
            model.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
        return DDPM(raw, ema, self.cfg, self.data, self.losses)


def save_ddpm(folder: Path | str, ddpm: DDPM) -> None:
    """Save both sets of weights with the config and the data's identity (safetensors + JSON)."""
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
    models = {which: build_ddpm(cfg) for which in ("raw", "ema")}
    for which, model in models.items():
        load_weights(model, checkpoint.tensors, path=path, prefix=f"{which}.")
        model.eval().requires_grad_(False)
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
