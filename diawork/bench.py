"""What each stage costs, against the machine's own measured ceiling and the released scheme, in one run.

Ratios come from pairs timed in turn (A B A B …), so that a drifting machine does not tilt them; no
figure here is a test. The baseline is a plain re-statement of the released scheme in code of our own:
K UNet passes a batch, one augmentation call a branch and shift, fp32, eager, whole-matrix loss.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diawork.compute import Compute, count_macs
from diawork.config import DiffusionConfig, DissolveConfig, EncoderConfig, K, LossConfig, ScoreConfig, ViewsConfig
from diawork.diffusion import build_ddpm
from diawork.dissolve import Dissolver, dissolve
from diawork.encoder import Encoder, build_encoder
from diawork.loss import dia_loss
from diawork.scoring import extract_features
from diawork.seeding import generator
from diawork.training import train_step
from diawork.views import BranchBuilder, augment, draw_augmentation, rotate


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
    fast_samples: int = 3  # of the fast protocol
    stems: tuple[str, ...] = ("imagenet", "cifar")


QUICK = BenchConfig(batch=2, dim=8, pairs=1, score_images=4, score_samples=2, fast_samples=1, stems=("imagenet",))


@dataclass
class Pair:
    """Baseline and ours, timed in turn."""

    stage: str
    baseline: list[float] = field(default_factory=list)  # s
    ours: list[float] = field(default_factory=list)  # s
    flops: float = 0.0  # the arithmetic that ours must do at least
    ceiling: float = 0.0  # FLOP/s

    def row(self) -> dict[str, Any]:
        """Return medians, the ratio pair by pair and the share of the ceiling."""
        ratios = [b / o for b, o in zip(self.baseline, self.ours, strict=True)]
        ours = median(self.ours)
        share = self.flops / ours / self.ceiling if self.ceiling and self.flops else None
        spread = {"ratio_min": min(ratios), "ratio_max": max(ratios)}
        times = {"baseline_s": median(self.baseline), "ours_s": ours}
        return {"stage": self.stage, **times, "ratio": median(ratios), **spread, "share_of_ceiling": share}


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return the wall time of one call, synchronised with the device."""
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_pairs(pair: Pair, baseline: Callable, ours: Callable, *, pairs: int, device: torch.device) -> Pair:
    """Warm both up, then time them in turn."""
    for work in (baseline, ours):
        work()
    for _ in range(pairs):
        pair.baseline.append(seconds(baseline, device))
        pair.ours.append(seconds(ours, device))
    return pair


def ceilings(compute: Compute, *, repeats: int = 5) -> dict[str, float]:
    """Return the best measured FLOP/s of a large convolution and a large matrix product, by precision."""
    found = {}
    side = 4096 if compute.device.type == "cuda" else 1024
    batch = 512 if compute.device.type == "cuda" else 32
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "bf16" and compute.precision != "bf16":
            continue
        a = torch.randn(side, side, device=compute.device, dtype=dtype)
        x = torch.randn(batch, 128, 32, 32, device=compute.device, dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        weight = torch.randn(128, 128, 3, 3, device=compute.device, dtype=dtype).to(memory_format=torch.channels_last)
        works = {
            "matmul": (lambda a=a: a @ a, 2 * side**3),
            "conv": (lambda x=x, w=weight: F.conv2d(x, w, padding=1), 2 * batch * 32 * 32 * 128 * 128 * 9),
        }
        for kind, (work, flops) in works.items():
            work()
            found[f"{kind}_{name}"] = flops / min(seconds(work, compute.device) for _ in range(repeats))
    return found


# --- the released scheme, restated -------------------------------------------------------------------


def plain_encoder(cfg: EncoderConfig, compute: Compute) -> Encoder:
    """Return the encoder with ordinary convolutions."""
    encoder = build_encoder(cfg)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
    return encoder.to(compute.device)


def released_dissolve(ddpm: Any, x: Tensor) -> Tensor:
    """Dissolve a batch once for every shift, one step a shift (K·B, C, H, W)."""
    compute = Compute(x.device)
    return torch.cat(
        [rotate(dissolve(ddpm, x, 40 + 15 * k, range_mode="released", compute=compute), k) for k in range(K)]
    )


def released_step(encoder: Encoder, ddpm: Any, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one training step as the released code does."""
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


def our_step(encoder: Encoder, builder: BranchBuilder, x: Tensor, optimizer: Any, compute: Compute) -> None:
    """Take one training step as ``training.fit`` does."""
    encoder.train()
    views = builder(x, index=torch.arange(len(x)), seed=0, step=0)
    train_step(encoder, views, LossConfig(), compute=compute)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def sgd(encoder: Encoder) -> torch.optim.Optimizer:
    """Return the optimiser that both sides use."""
    return torch.optim.SGD(encoder.parameters(), 1e-3, momentum=0.9)


class FromMemory:
    """A stand-in for the bank: views at hand in memory, as uint8, looked up by image."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, x: Tensor, *, image: Tensor, flip: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return stored views and an arbitrary step."""
        return self.values[image].to(x.device).float() / 255, torch.full((len(x),), 80)


# --- stages ------------------------------------------------------------------------------------------


def bench(cfg: BenchConfig | None = None, *, compute: Compute | None = None, say: Callable[[str], Any] = print) -> dict:
    """Time every stage and return rows, ceilings and settings, ready for JSON."""
    cfg, compute = cfg or BenchConfig(), compute or Compute.auto()
    ceiling = ceilings(compute)
    say("ceilings: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in ceiling.items()))
    top = ceiling.get("conv_bf16", ceiling["conv_fp32"])
    rows = []
    for pair in _stages(cfg, compute, top):
        rows.append(pair.row())
        share = rows[-1]["share_of_ceiling"]
        say(f"{pair.stage:<44} {rows[-1]['ratio']:6.1f} ×" + (f"   {share:5.0%} of the ceiling" if share else ""))
        gc.collect()
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(cfg).items()}
    return {"settings": settings, "compute": compute.as_dict(), "ceilings": ceiling, "rows": rows}


def _stages(cfg: BenchConfig, compute: Compute, top: float) -> Any:
    plain = Compute(compute.device)
    ddpm = plain.prepare(build_ddpm(DiffusionConfig(dim=cfg.dim, image_size=cfg.model_size))).eval()
    x = plain.to(torch.rand(cfg.batch, 1, cfg.size, cfg.size, generator=generator(0, "bench")))
    bridge = "pad" if cfg.size <= cfg.model_size else "resize"
    dissolver = Dissolver(ddpm, DissolveConfig(bridge=bridge), compute=compute)
    bank = FromMemory((x.cpu() * 255).byte())
    shape = (1, ddpm.channels, cfg.model_size, cfg.model_size)
    one = torch.zeros(shape, device=compute.device), torch.zeros(1, dtype=torch.long, device=compute.device)
    flops = 2 * count_macs(ddpm.model, *one) * cfg.batch
    index, flip = torch.arange(cfg.batch), torch.zeros(cfg.batch, dtype=torch.bool)
    face = {"image": index, "flip": flip, "generator": generator(0)}
    timing = {"pairs": cfg.pairs, "device": compute.device}
    slow = lambda: released_dissolve(ddpm, x)  # noqa: E731
    live = Pair("dissolving for one step", flops=flops, ceiling=top)
    yield time_pairs(live, slow, lambda: dissolver(x, **face), **timing)
    yield time_pairs(Pair("dissolving for one step, from the bank"), slow, lambda: bank(x, **face), **timing)
    for stem in cfg.stems:
        for name, source, extra in (("live", dissolver, flops), ("from the bank", bank, 0.0)):
            pair = Pair(f"training step, {stem} stem, {name}", ceiling=top)
            yield _step_pair(pair, cfg, compute, stem, (ddpm, source, x, extra), timing)
    for samples in (cfg.score_samples, cfg.fast_samples):
        yield _score_pair(cfg, compute, samples, top, timing)


def _encoder_macs(cfg: EncoderConfig, size: int) -> int:
    """Return the multiply-accumulates of one view, counted on ordinary convolutions."""
    return count_macs(plain_encoder(cfg, Compute()).eval(), torch.zeros(1, cfg.channels, size, size))


def _step_pair(pair: Pair, cfg: BenchConfig, compute: Compute, stem: str, parts: tuple, timing: dict) -> Pair:
    ddpm, source, x, extra = parts
    encoder_cfg = EncoderConfig(stem=stem)
    slow, fast = plain_encoder(encoder_cfg, compute), compute.prepare(build_encoder(encoder_cfg))
    slow_optimizer, fast_optimizer = sgd(slow), sgd(fast)
    builder = BranchBuilder(ViewsConfig(), source)
    pair.flops = extra + 6 * _encoder_macs(encoder_cfg, cfg.size) * 3 * K * cfg.batch
    return time_pairs(
        pair,
        lambda: released_step(slow.train(), ddpm, x, slow_optimizer),
        lambda: our_step(fast, builder, x, fast_optimizer, compute),
        **timing,
    )


def _score_pair(cfg: BenchConfig, compute: Compute, samples: int, top: float, timing: dict) -> Pair:
    encoder_cfg = EncoderConfig(stem=cfg.stems[0])
    slow, fast = plain_encoder(encoder_cfg, compute).eval(), compute.prepare(build_encoder(encoder_cfg)).eval()
    x = torch.rand(cfg.score_images, 1, cfg.size, cfg.size, generator=generator(0, "bench", "score"))
    settings = {"views": ViewsConfig()}
    pair = Pair(f"features of {cfg.score_images} images, {cfg.stems[0]} stem, {samples} samples", ceiling=top)
    pair.flops = 2 * _encoder_macs(encoder_cfg, cfg.size) * cfg.score_images * samples * K
    released = ScoreConfig(samples=cfg.score_samples)
    slow_compute = Compute(compute.device)
    return time_pairs(
        pair,
        lambda: extract_features(slow, x, **settings, score=released, compute=slow_compute, batch=cfg.batch * K),
        lambda: extract_features(fast, x, **settings, score=ScoreConfig(samples=samples), compute=compute),
        **timing,
    )


def loss_memory(batch: int = 1024, d: int = 128) -> dict[str, float]:
    """Return what the loss allocates at most, forward and backward, for 3·K·batch views (MiB; CUDA or profiler)."""
    rows = 3 * K * batch
    z = torch.randn(rows, d, generator=generator(0, "bench", "loss")).requires_grad_()
    branch, shift, image = torch.meshgrid(torch.arange(3), torch.arange(K), torch.arange(batch), indexing="ij")
    logits = torch.zeros(rows, K)
    indices = {"image": image.reshape(-1), "shift": shift.reshape(-1), "branch": branch.reshape(-1)}
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        dia_loss(z, logits, **indices).total.backward()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return {"views": rows, "peak_mib": peak / 2**20}


def step_shares(
    cfg: BenchConfig | None = None, *, compute: Compute | None = None, stem: str = "imagenet"
) -> list[dict]:
    """Return what each part of one training step costs: dissolving, views, forward and backward, optimiser."""
    cfg, compute = cfg or BenchConfig(), compute or Compute.auto()
    ddpm = build_ddpm(DiffusionConfig(dim=cfg.dim, image_size=cfg.model_size))
    bridge = "pad" if cfg.size <= cfg.model_size else "resize"
    dissolver = Dissolver(ddpm, DissolveConfig(bridge=bridge), compute=compute)
    x, index = torch.rand(cfg.batch, 1, cfg.size, cfg.size), torch.arange(cfg.batch)
    encoder = compute.prepare(build_encoder(EncoderConfig(stem=stem))).train()
    optimizer = sgd(encoder)
    builder = BranchBuilder(ViewsConfig(), FromMemory((x * 255).byte()))
    views = builder(x, index=index, seed=0, step=0)
    parts = {
        "dissolving": lambda: dissolver.at(x, 80),
        "views": lambda: builder(x, index=index, seed=0, step=0),
        "encoder and loss": lambda: train_step(encoder, views, LossConfig(), compute=compute),
        "optimiser": optimizer.step,
    }
    rows = []
    for name, work in parts.items():
        work()
        spent = median(seconds(work, compute.device) for _ in range(cfg.pairs))
        rows.append({"part": name, "seconds": spent, "images_per_s": cfg.batch / spent})
    return rows


def scaling(
    batches: tuple[int, ...] = (8, 16, 32), sizes: tuple[int, ...] = (28, 32, 64), *,
    cfg: BenchConfig | None = None, compute: Compute | None = None,
) -> list[dict]:  # fmt: skip
    """Return seconds an image of a training step against batch size (at 28 px) and resolution (at the last batch)."""
    cfg, compute = cfg or BenchConfig(dim=32, pairs=3), compute or Compute.auto()
    cells = [(batch, sizes[0]) for batch in batches] + [(batches[-1], size) for size in sizes[1:]]
    rows = []
    for batch, size in cells:
        cell = replace(cfg, batch=batch, size=size)
        parts = step_shares(cell, compute=compute)
        total = sum(row["seconds"] for row in parts)
        rows.append({"batch": batch, "size": size, "ms_per_image": 1000 * total / batch, "images_per_s": batch / total})
    return rows
