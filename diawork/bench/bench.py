"""What each stage costs, against the machine's own measured ceiling and the released scheme, in one run.

The DDPM's training step stands against the library's own. No figure here is a test.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
from diawork.bench.baseline import plain_encoder, released_dissolve, released_step
from diawork.bench.machine import Load, arithmetic, load_words, machine_name
from diawork.bench.pretraining import WIDTHS, pretraining_steps
from diawork.bench.timing import Pair, seconds, time_pairs
from diawork.method.ddpm import build_ddpm
from diawork.method.dissolve import Dissolve, Dissolver
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
    pretrained: tuple[int, ...] = WIDTHS  # widths of the UNets whose training step is timed

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
                    stems=("imagenet",), pretrained=(8,))  # fmt: skip


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
    load, machine = Load(), machine_name(compute.device)
    say(f"{machine}; {arithmetic(compute)}")
    ceiling = ceilings(compute)
    say("ceilings: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in ceiling.items()))
    top = ceiling.get("conv_bf16", ceiling["conv_fp32"])
    rows = []
    for pair in Stages(cfg, compute, top):
        rows.append(pair.row())
        share = rows[-1]["share_of_ceiling"]
        compiled = f"   (compiled in {pair.compile_s:.0f} s)" if pair.compile_s else ""
        of_ceiling = f"   {share:5.0%} of the ceiling" if share else ""
        say(f"{pair.stage:<44} {rows[-1]['ratio']:6.1f} ×{of_ceiling}{compiled}")
        gc.collect()
    others = load.others()
    say(load_words(others))
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(cfg).items()}
    return {
        "settings": settings, "compute": compute.as_dict(), "machine": machine, "others": others,
        "torch": torch.__version__, "ceilings": ceiling, "rows": rows,
    }  # fmt: skip


class Stages:
    """The stages in their order, each as a pair timed in turn; iterating does the work."""

    def __init__(self, cfg: BenchConfig, compute: Compute, ceiling: float) -> None:
        self.cfg, self.compute, self.ceiling = cfg, compute, ceiling
        self.plain = Compute(compute.device)  # fp32 and eager, as the released scheme
        self.ddpm = self.plain.prepare(cfg.ddpm()).eval()
        self.dissolver = cfg.dissolver(compute)
        self.x = self.plain.to(torch.rand(cfg.batch, 1, cfg.size, cfg.size, generator=generator(0, "bench")))
        self.bank = FromMemory((self.x.cpu() * 255).byte())

    def __iter__(self) -> Iterator[Pair]:
        rest = {"batch": self.cfg.batch, "size": self.cfg.model_size, "pairs": self.cfg.pairs}
        yield from pretraining_steps(self.compute, self.ceiling, widths=self.cfg.pretrained, **rest)
        yield from self._dissolving()
        for stem in self.cfg.stems:
            yield self._step(stem, "live", self.dissolver, self._dissolving_flops())
            yield self._step(stem, "from the bank", self.bank, 0.0)
        for samples in (self.cfg.score_samples, self.cfg.fast_samples):
            yield self._features(samples)

    def _timed(
        self, stage: str, baseline: Callable[[], Any], ours: Callable[[], Any], *, flops: float = 0.0,
        compile_s: float | None = None,
    ) -> Pair:  # fmt: skip
        pair = Pair(stage, flops=flops, ceiling=self.ceiling, compile_s=compile_s)
        return time_pairs(pair, baseline, ours, pairs=self.cfg.pairs, device=self.compute.device)

    def _dissolving_flops(self) -> float:
        size = self.cfg.model_size
        image = torch.zeros(1, self.ddpm.channels, size, size, device=self.compute.device)
        t = torch.zeros(1, dtype=torch.long, device=self.compute.device)
        return 2 * count_macs(self.ddpm.model, image, t) * self.cfg.batch

    def _encoder_flops(self, encoder: EncoderConfig, views: int) -> float:
        """Return the arithmetic of embedding so many views, counted on ordinary convolutions."""
        view = torch.zeros(1, encoder.channels, self.cfg.size, self.cfg.size)
        return 2 * count_macs(plain_encoder(encoder, Compute()).eval(), view) * views

    def _dissolving(self) -> Iterator[Pair]:
        cfg, stage, flops = self.cfg, "dissolving for one step", self._dissolving_flops()
        rows: dict[str, Any] = {
            "image": torch.arange(cfg.batch),
            "flip": torch.zeros(cfg.batch, dtype=torch.bool),
            "generator": generator(0),
        }
        released = partial(released_dissolve, self.ddpm, self.x)
        live, banked = partial(self.dissolver, self.x, **rows), partial(self.bank, self.x, **rows)
        yield self._timed(stage, released, live, flops=flops)
        start = time.perf_counter()
        self.dissolver.expect(cfg.expected_images, cfg.batch)  # as a long training or a bank would
        if self.dissolver.compiled:
            spent = time.perf_counter() - start
            yield self._timed(f"{stage}, compiled", released, live, flops=flops, compile_s=spent)
        yield self._timed(f"{stage}, from the bank", released, banked)

    def _step(self, stem: Stem, name: str, slot: Dissolve, dissolving_flops: float) -> Pair:
        """Time a training step with the views of ``slot``; backward costs twice what forward does."""
        cfg = EncoderConfig(stem=stem)
        slow, fast = plain_encoder(cfg, self.compute).train(), self.compute.prepare(build_encoder(cfg))
        slow_optimizer, fast_optimizer = sgd(slow), sgd(fast)
        builder = BranchBuilder(ViewsConfig(), slot)
        return self._timed(
            f"training step, {stem} stem, {name}",
            lambda: released_step(slow, self.ddpm, self.x, slow_optimizer),
            lambda: our_step(fast, builder, self.x, fast_optimizer, self.compute),
            flops=dissolving_flops + 3 * self._encoder_flops(cfg, 3 * K * self.cfg.batch),
        )

    def _features(self, samples: int) -> Pair:
        cfg, stem = self.cfg, self.cfg.stems[0]
        encoder = EncoderConfig(stem=stem)
        slow, fast = plain_encoder(encoder, self.compute), self.compute.prepare(build_encoder(encoder))
        x = torch.rand(cfg.score_images, 1, cfg.size, cfg.size, generator=generator(0, "bench", "score"))
        released, ours = ScoreConfig(samples=cfg.score_samples), ScoreConfig(samples=samples)
        views = ViewsConfig()
        return self._timed(
            f"features of {cfg.score_images} images, {stem} stem, {samples} samples",
            lambda: extract_features(slow, x, views=views, score=released, compute=self.plain, batch=cfg.batch * K),
            lambda: extract_features(fast, x, views=views, score=ours, compute=self.compute),
            flops=self._encoder_flops(encoder, cfg.score_images * samples * K),
        )
