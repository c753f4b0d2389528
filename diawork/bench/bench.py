"""What each stage costs, against the machine's own measured ceiling and the released scheme, in one run.

Ratios come from pairs timed in turn (A B A B …), so that a drifting machine does not tilt them; no
figure here is a test.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diawork.base.compute import Compute, count_macs, has_bf16
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
from diawork.bench.baseline import plain_encoder, released_dissolve, released_step
from diawork.method.ddpm import build_ddpm
from diawork.method.dissolve import Dissolver
from diawork.method.encoder import Encoder, build_encoder
from diawork.method.scoring import extract_features
from diawork.method.training import train_step
from diawork.method.views import BranchBuilder


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

    @property
    def bridge(self) -> Bridge:
        """How images reach the model's size."""
        return "pad" if self.size <= self.model_size else "resize"

    def ddpm(self) -> Any:
        """Return an untrained model: as costly as a trained one."""
        return build_ddpm(DiffusionConfig(dim=self.dim, image_size=self.model_size))

    def dissolver(self, compute: Compute) -> Dissolver:
        """Return a dissolver with that model."""
        return Dissolver(self.ddpm(), DissolveConfig(bridge=self.bridge), compute=compute)


QUICK = BenchConfig(batch=2, dim=8, pairs=1, score_images=4, score_samples=2, fast_samples=1, expected_images=0,
                    stems=("imagenet",))  # fmt: skip


@dataclass
class Pair:
    """Baseline and ours, timed in turn."""

    stage: str
    baseline: list[float] = field(default_factory=list)  # s
    ours: list[float] = field(default_factory=list)  # s
    flops: float = 0.0  # the arithmetic that ours must do at least
    ceiling: float = 0.0  # FLOP/s
    compile_s: float | None = None  # what compiling took, before any timing

    def row(self) -> dict[str, Any]:
        """Return medians, the ratio pair by pair and the share of the ceiling."""
        ratios = [b / o for b, o in zip(self.baseline, self.ours, strict=True)]
        ours = median(self.ours)
        share = self.flops / ours / self.ceiling if self.ceiling and self.flops else None
        spread = {"ratio_min": min(ratios), "ratio_max": max(ratios)}
        times = {"baseline_s": median(self.baseline), "ours_s": ours}
        return {
            "stage": self.stage, **times, "ratio": median(ratios), **spread, "share_of_ceiling": share,
            "compile_s": self.compile_s,
        }  # fmt: skip


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
    rates = {}
    side = 4096 if compute.device.type == "cuda" else 1024
    batch = 512 if compute.device.type == "cuda" else 32
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "bf16" and compute.precision != "bf16":
            continue
        a = torch.randn(side, side, device=compute.device, dtype=dtype)
        x = torch.randn(batch, 128, 32, 32, device=compute.device, dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        weight = torch.randn(128, 128, 3, 3, device=compute.device, dtype=dtype).to(memory_format=torch.channels_last)
        works: dict[str, tuple[Callable[[], Tensor], int]] = {
            "matmul": (partial(torch.matmul, a, a), 2 * side**3),
            "conv": (partial(F.conv2d, x, weight, padding=1), 2 * batch * 32 * 32 * 128 * 128 * 9),
        }
        for kind, (work, flops) in works.items():
            work()
            rates[f"{kind}_{name}"] = flops / min(seconds(work, compute.device) for _ in range(repeats))
    return rates


# --- stages' own work -----------------------------------------------------------------------------


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
        compiled = f"   (compiled in {pair.compile_s:.0f} s)" if pair.compile_s else ""
        of_ceiling = f"   {share:5.0%} of the ceiling" if share else ""
        say(f"{pair.stage:<44} {rows[-1]['ratio']:6.1f} ×{of_ceiling}{compiled}")
        gc.collect()
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(cfg).items()}
    return {
        "settings": settings, "compute": compute.as_dict(), "machine": machine_name(compute.device),
        "torch": torch.__version__, "ceilings": ceiling, "rows": rows,
    }  # fmt: skip


def machine_name(device: torch.device) -> str:
    """Return what the figures were measured on: the GPU's name, or the processor's kind and number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    arithmetic = " with bf16" if has_bf16(device) else ""
    return f"{os.cpu_count()} cores, {platform.machine()}{arithmetic}"


def _stages(cfg: BenchConfig, compute: Compute, top: float) -> Any:
    plain = Compute(compute.device)
    ddpm = plain.prepare(cfg.ddpm()).eval()
    x = plain.to(torch.rand(cfg.batch, 1, cfg.size, cfg.size, generator=generator(0, "bench")))
    dissolver = cfg.dissolver(compute)
    bank = FromMemory((x.cpu() * 255).byte())
    shape = (1, ddpm.channels, cfg.model_size, cfg.model_size)
    one = torch.zeros(shape, device=compute.device), torch.zeros(1, dtype=torch.long, device=compute.device)
    flops = 2 * count_macs(ddpm.model, *one) * cfg.batch
    index, flip = torch.arange(cfg.batch), torch.zeros(cfg.batch, dtype=torch.bool)
    face: dict[str, Any] = {"image": index, "flip": flip, "generator": generator(0)}
    timing: dict[str, Any] = {"pairs": cfg.pairs, "device": compute.device}
    slow = lambda: released_dissolve(ddpm, x)  # noqa: E731
    stage = "dissolving for one step"
    yield time_pairs(Pair(stage, flops=flops, ceiling=top), slow, lambda: dissolver(x, **face), **timing)
    start = time.perf_counter()
    dissolver.expect(cfg.expected_images, cfg.batch)  # as a long training or a bank would
    if dissolver.compiled:
        pair = Pair(f"{stage}, compiled", flops=flops, ceiling=top, compile_s=time.perf_counter() - start)
        yield time_pairs(pair, slow, lambda: dissolver(x, **face), **timing)
    yield time_pairs(Pair(f"{stage}, from the bank"), slow, lambda: bank(x, **face), **timing)
    for stem in cfg.stems:
        for name, source, extra in (("live", dissolver, flops), ("from the bank", bank, 0.0)):
            pair = Pair(f"training step, {stem} stem, {name}", ceiling=top)
            yield _step_pair(pair, cfg, compute, stem, (ddpm, source, x, extra), timing)
    for samples in (cfg.score_samples, cfg.fast_samples):
        yield _score_pair(cfg, compute, samples, top, timing)


def _encoder_macs(cfg: EncoderConfig, size: int) -> int:
    """Return the multiply-accumulates of one view, counted on ordinary convolutions."""
    return count_macs(plain_encoder(cfg, Compute()).eval(), torch.zeros(1, cfg.channels, size, size))


def _step_pair(pair: Pair, cfg: BenchConfig, compute: Compute, stem: Stem, parts: tuple, timing: dict) -> Pair:
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
    views = ViewsConfig()
    pair = Pair(f"features of {cfg.score_images} images, {cfg.stems[0]} stem, {samples} samples", ceiling=top)
    pair.flops = 2 * _encoder_macs(encoder_cfg, cfg.size) * cfg.score_images * samples * K
    released = ScoreConfig(samples=cfg.score_samples)
    slow_compute = Compute(compute.device)
    return time_pairs(
        pair,
        lambda: extract_features(slow, x, views=views, score=released, compute=slow_compute, batch=cfg.batch * K),
        lambda: extract_features(fast, x, views=views, score=ScoreConfig(samples=samples), compute=compute),
        **timing,
    )
