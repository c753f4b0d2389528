"""What each stage costs: against the machine's own ceiling and against the released scheme, timed in one run.

The DDPM's training step stands against the library's own. No figure here is a test.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diawork.base.compute import Compute, count_macs
from diawork.base.config import (
    Bridge,
    DiffusionConfig,
    DissolveConfig,
    EncoderConfig,
    K,
    LossConfig,
    ScoreConfig,
    Stem,
    ViewsConfig,
)
from diawork.base.seeding import generator
from diawork.bench.ceilings import Load, Row, ceilings, load_words, machine_name, peak_memory, seconds, time_in_turn
from diawork.bench.rivals import rivals
from diawork.evaluation.sentences import counted
from diawork.method.bank import DissolvedBank
from diawork.method.ddpm import build_adam, build_ddpm, denoising_loss
from diawork.method.dissolve import Dissolver, dissolve
from diawork.method.encoder import Embedding, Encoder, build_encoder
from diawork.method.loss import dia_loss
from diawork.method.scoring import extract_features
from diawork.method.training import train_step
from diawork.method.unet import restate
from diawork.method.views import BranchBuilder, Views, augment, draw_augmentation, rotate


@dataclass(frozen=True)
class BenchConfig:
    """What is timed; the defaults are those of the published reference figures."""

    batch: int = 32  # images
    size: int = 28  # px
    dim: int = 64  # of the UNet
    model_size: int = 32  # px of the UNet
    pairs: int = 5
    score_images: int = 624
    score_samples: int = 10
    fast_samples: int = 2  # of the fast protocol
    expected_images: int = 10**6  # dissolved in all: decides whether the dissolver is compiled
    stems: tuple[Stem, ...] = ("imagenet", "cifar")
    pretrained: tuple[int, ...] = (16, 32, 64)  # widths of the UNets that are trained: of demo, cpu, and published
    batches: tuple[int, ...] = (8, 16, 32)  # of the scaling
    sizes: tuple[int, ...] = (28, 32, 64)  # px, of the scaling
    scaling_dim: int = 32
    bank_steps: tuple[int, ...] = (4, 16)
    loss_batch: int = 1024

    @property
    def bridge(self) -> Bridge:
        """How images reach the model's size."""
        return "pad" if self.size <= self.model_size else "resize"

    def dissolver(self, compute: Compute) -> Dissolver:
        """Return a dissolver with an untrained model: as costly as a trained one."""
        ddpm = build_ddpm(DiffusionConfig(dim=self.dim, image_size=self.model_size))
        return Dissolver(ddpm, DissolveConfig(bridge=self.bridge), compute=compute)

    def images(self) -> Tensor:
        """Return a batch (B, 1, H, W) of noise in [0, 1]."""
        return torch.rand(self.batch, 1, self.size, self.size, generator=generator(0, "bench"))


QUICK = BenchConfig(
    batch=2, dim=8, pairs=1, score_images=4, score_samples=2, fast_samples=1, expected_images=0, stems=("imagenet",),
    pretrained=(8,), batches=(2, 4), sizes=(28, 32), scaling_dim=8, bank_steps=(2, 4), loss_batch=8,
)  # fmt: skip


def measure_cost(*, quick: bool = False, compute: Compute | None = None, say: Callable[[str], Any] = print) -> dict:
    """Return all that the cost page shows, ready for JSON; ``quick`` takes small sizes, which say little.

    Stages against the ceiling, the parts of a training step, cost against batch and resolution, a bank of dissolved
    views, the memory of the loss, and other detectors.
    """
    cfg, compute, load = QUICK if quick else BenchConfig(), compute or Compute.auto(), Load()
    machine = machine_name(compute.device)
    say(f"{machine}; {counted(compute.as_dict()['threads'], 'thread')}, {compute.precision}")
    rates = ceilings(compute)
    say("ceilings: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()))
    rows = []
    for row in time_stages(cfg, compute, rates.get("conv_bf16", rates["conv_fp32"])):
        rows.append(asdict(row))
        say(str(row))
        gc.collect()
    costs: dict[str, Any] = {
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(cfg).items()},
        "compute": compute.as_dict(), "machine": machine, "torch": torch.__version__, "ceilings": rates, "rows": rows,
        "parts": step_parts(cfg, compute), "scaling": scaling(cfg, compute), "bank": bank_cost(cfg, compute),
        "loss_memory": loss_memory(cfg.loss_batch), "rivals": rivals(quick=quick, compute=compute),
        "others": load.others(),
    }  # fmt: skip
    say(f"loss of {costs['loss_memory']['views']:,} views: peak {costs['loss_memory']['peak_mib']:.0f} MiB")
    say(load_words(costs["others"]))
    return costs


# --- the released scheme, restated plainly: the baseline of every ratio ------------------------------


def plain_encoder(cfg: EncoderConfig, compute: Compute) -> Encoder:
    """Return the encoder with ordinary convolutions."""
    encoder = build_encoder(cfg)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
    return encoder.to(compute.device)


def released_dissolve(ddpm: Any, x: Tensor) -> Tensor:
    """Dissolve a batch once for every shift, in fp32, eager, one step a shift (K·B, C, H, W)."""
    compute = Compute(x.device)
    return torch.cat(
        [rotate(dissolve(ddpm, x, 40 + 15 * k, range_mode="released", compute=compute), k) for k in range(K)]
    )


def released_step(encoder: Encoder, ddpm: Any, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one training step as the released code does: one augmentation a branch and shift, whole-matrix loss."""
    parts = [torch.cat([rotate(x, k) for k in range(K)]) for _ in range(2)] + [released_dissolve(ddpm, x)]
    views = [
        augment(rows, draw_augmentation(len(rows), ViewsConfig(), generator(0, branch, k)))
        for branch, part in enumerate(parts)
        for k, rows in enumerate(part.split(len(x)))
    ]
    embedding = encoder(torch.cat(views))
    z, n = F.normalize(embedding.z), 2 * K * len(x)
    similarity = (z @ z.T / 0.5).exp() * (1 - torch.eye(len(z), device=z.device))
    log_probability = -torch.log(similarity / similarity.sum(1, keepdim=True) + 1e-8)
    positive = (torch.arange(n, device=z.device) + n // 2) % n
    contrastive = log_probability[torch.arange(n, device=z.device), positive].sum() / len(z)
    shift = torch.arange(K, device=z.device).repeat_interleave(len(x)).repeat(3)
    loss = contrastive + F.cross_entropy(embedding.shift_logits, shift)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()


# --- stages ------------------------------------------------------------------------------------------


def time_stages(cfg: BenchConfig, compute: Compute, ceiling: float) -> Iterator[Row]:
    """Time the stages in their order: pretraining, dissolving, training live and from a bank, scoring."""
    timed = partial(time_in_turn, pairs=cfg.pairs, device=compute.device, ceiling=ceiling)
    yield from _pretraining(cfg, compute, timed)
    plain, dissolver = Compute(compute.device), cfg.dissolver(compute)
    ddpm = plain.prepare(build_ddpm(DiffusionConfig(dim=cfg.dim, image_size=cfg.model_size))).eval()
    x = plain.to(cfg.images())
    seen = torch.zeros(1, ddpm.channels, cfg.model_size, cfg.model_size, device=compute.device)
    flops = 2 * count_macs(ddpm.model, seen, torch.zeros(1, dtype=torch.long, device=compute.device)) * cfg.batch
    released, live = partial(released_dissolve, ddpm, x), partial(dissolver, x, **_rows(cfg.batch))
    stage = "dissolving for one step"
    yield timed(stage, released, live, flops=flops)
    start = time.perf_counter()
    dissolver.expect(cfg.expected_images, cfg.batch)  # as a long training or a bank would
    if dissolver.compiled:
        yield timed(f"{stage}, compiled", released, live, flops=flops, compile_s=time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        bank = _bank(cfg, compute, folder, steps=cfg.bank_steps[0])
        for stem in cfg.stems:
            slots: dict[str, tuple[Dissolver | DissolvedBank, float]] = {
                "live": (dissolver, flops),
                "from the bank": (bank, 0.0),
            }
            for name, (slot, dissolving) in slots.items():
                encoder = EncoderConfig(stem=stem)
                slow = plain_encoder(encoder, compute).train()
                step = partial(released_step, slow, ddpm, x, _sgd(slow))
                ours = _Training(cfg, compute, slot, stem)
                spent = dissolving + 3 * _encoder_flops(encoder, cfg, 3 * K * cfg.batch)  # backward costs two
                yield timed(f"training step, {stem} stem, {name}", step, ours.step, flops=spent)
    for samples in (cfg.score_samples, cfg.fast_samples):
        yield _features(cfg, compute, timed, samples)


def _pretraining(cfg: BenchConfig, compute: Compute, timed: Callable[..., Row]) -> Iterator[Row]:
    """Time a DDPM's step (forward, backward, clipping, Adam) against the library's blocks in its memory format."""
    draws, shape = generator(0, "bench", "pretraining"), (cfg.batch, 1, cfg.model_size, cfg.model_size)
    x, noise = torch.rand(shape, generator=draws) * 2 - 1, torch.randn(shape, generator=draws)
    t = torch.randint(1000, shape[:1], generator=draws)
    x, noise, t = (value.to(compute.device) for value in (x, noise, t))

    def step(ddpm: Any, optimizer: torch.optim.Optimizer) -> None:
        with compute.autocast():
            loss = denoising_loss(ddpm, x, t, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ddpm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for width in cfg.pretrained:
        mults = (1, 2, 4) if width < 32 else (1, 2, 4, 8)
        model = DiffusionConfig(dim=width, image_size=cfg.model_size, dim_mults=mults)
        library, ours = build_ddpm(model).to(compute.device), compute.prepare(build_ddpm(model))
        restate(ours.model.to(memory_format=torch.channels_last))
        flops = 3 * 2 * count_macs(library.model, x[:1], t[:1]) * cfg.batch
        theirs = partial(step, library, torch.optim.Adam(library.parameters(), lr=model.lr))
        yield timed(
            f"DDPM training step, width {width}", theirs, partial(step, ours, build_adam(ours, model)), flops=flops
        )


def _features(cfg: BenchConfig, compute: Compute, timed: Callable[..., Row], samples: int) -> Row:
    """Time the features that scoring takes, of ``samples`` copies an image, against those of the released protocol."""
    encoder, views = EncoderConfig(stem=cfg.stems[0]), ViewsConfig()
    slow, fast = plain_encoder(encoder, compute), compute.prepare(build_encoder(encoder))
    x = torch.rand(cfg.score_images, 1, cfg.size, cfg.size, generator=generator(0, "bench", "score"))
    released, ours = ScoreConfig(samples=cfg.score_samples), ScoreConfig(samples=samples)
    plain = Compute(compute.device)
    return timed(
        f"features of {cfg.score_images} images, {cfg.stems[0]} stem, {counted(samples, 'sample')}",
        lambda: extract_features(slow, x, views=views, score=released, compute=plain, batch=cfg.batch * K),
        lambda: extract_features(fast, x, views=views, score=ours, compute=compute),
        flops=_encoder_flops(encoder, cfg, cfg.score_images * samples * K),
    )


class _Training:
    """One training step of ours, whole and in its parts, on a batch of noise with ``slot`` as the dissolver."""

    def __init__(self, cfg: BenchConfig, compute: Compute, slot: Dissolver | DissolvedBank | None, stem: Stem) -> None:
        self.x, self.index, self.compute = compute.to(cfg.images()), torch.arange(cfg.batch), compute
        self.encoder = compute.prepare(build_encoder(EncoderConfig(stem=stem))).train()
        self.optimizer, self.builder = _sgd(self.encoder), BranchBuilder(ViewsConfig(), slot)

    def views(self) -> Any:
        """Build the views of a step."""
        return self.builder(self.x, index=self.index, seed=0, step=0)

    def step(self) -> None:
        """Take one step as a training does."""
        train_step(self.encoder, self.views(), LossConfig(), compute=self.compute)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _sgd(encoder: Encoder) -> torch.optim.Optimizer:
    return torch.optim.SGD(encoder.parameters(), 1e-3, momentum=0.9)


def _rows(batch: int) -> dict[str, Any]:
    """Return what a dissolver is told of the rows of a batch."""
    index = torch.arange(batch)
    return {"image": index, "flip": index % 2 == 0, "generator": generator(0)}


def _bank(cfg: BenchConfig, compute: Compute, folder: str, *, steps: int) -> DissolvedBank:
    dissolver = cfg.dissolver(replace(compute, compile=False))
    return DissolvedBank(dissolver, cfg.images(), folder, steps=steps, origin={"bench": steps}, progress=False)


def _encoder_flops(encoder: EncoderConfig, cfg: BenchConfig, views: int) -> float:
    """Return the arithmetic of embedding so many views, counted on ordinary convolutions."""
    view = torch.zeros(1, encoder.channels, cfg.size, cfg.size)
    return 2 * count_macs(plain_encoder(encoder, Compute()).eval(), view) * views


# --- parts, scaling, bank, memory ----------------------------------------------------------------------


def step_parts(cfg: BenchConfig, compute: Compute) -> list[dict]:
    """Return what each part of one training step costs: dissolving, views, forward and backward, optimiser."""
    dissolver, x = cfg.dissolver(compute), cfg.images()
    with tempfile.TemporaryDirectory() as folder:
        training = _Training(cfg, compute, _bank(cfg, compute, folder, steps=1), "imagenet")
        views = training.views()
        parts: dict[str, Callable[[], Any]] = {
            "dissolving": lambda: dissolver.at(x, 80),
            "views": training.views,
            "encoder and loss": lambda: train_step(training.encoder, views, LossConfig(), compute=compute),
            "optimiser": training.optimizer.step,
        }
        rows = []
        for name, work in parts.items():
            work()
            spent = median(seconds(work, compute.device) for _ in range(cfg.pairs))
            rows.append({"part": name, "seconds": spent, "images_per_s": cfg.batch / spent})
    return rows


def scaling(cfg: BenchConfig, compute: Compute) -> list[dict]:
    """Return seconds an image of a training step against batch (at the first size) and size (at the last batch)."""
    cells = [(batch, cfg.sizes[0]) for batch in cfg.batches] + [(cfg.batches[-1], size) for size in cfg.sizes[1:]]
    rows = []
    for batch, size in cells:
        cell = replace(cfg, batch=batch, size=size, dim=cfg.scaling_dim, pairs=min(cfg.pairs, 3))
        total = sum(row["seconds"] for row in step_parts(cell, compute))
        rows.append({"batch": batch, "size": size, "ms_per_image": 1000 * total / batch, "images_per_s": batch / total})
    return rows


def bank_cost(cfg: BenchConfig, compute: Compute, *, images: int = 1148) -> list[dict]:
    """Return what banks of several numbers of steps cost for so many images, from real banks of one batch."""
    x, rows = cfg.images(), []
    for n in cfg.bank_steps:
        with tempfile.TemporaryDirectory() as folder:
            bank = _bank(cfg, compute, folder, steps=n)
            look_up = median(seconds(partial(bank, x, **_rows(cfg.batch)), compute.device) for _ in range(20))
            made = bank.seconds * images / cfg.batch
        mib = images * 2 * n * cfg.size**2 / 2**20
        rows.append({"images": images, "steps": n, "mib": mib, "make_s": made, "look_up_ms": 1000 * look_up})
    return rows


def loss_memory(batch: int, d: int = 128) -> dict[str, float]:
    """Return what the loss allocates at most, forward and backward, for 3·K·batch views (MiB; CUDA or profiler)."""
    rows = 3 * K * batch
    z = torch.randn(rows, d, generator=generator(0, "bench", "loss")).requires_grad_()
    branch, shift, image = torch.cartesian_prod(torch.arange(3), torch.arange(K), torch.arange(batch)).T
    views, embedding = Views(z, image, shift, branch, t=branch), Embedding(z, z, torch.zeros(rows, K))
    return {"views": rows, "peak_mib": peak_memory(lambda: dia_loss(embedding, views).total.backward())}
