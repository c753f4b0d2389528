"""Pairs timed in turn (A B A B …), so that a drifting machine does not tilt their ratio."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch


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


def peak_memory(work: Callable[[], Any]) -> float:
    """Return what one call of ``work`` holds at most in tensors that it makes, in MiB of the CPU's memory."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its own log is for those who build PyTorch
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak / 2**20


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
