"""What a bench is made on: the machine, what else kept it busy, its measured ceilings, and how work is timed on it."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.nn.functional as F

from diawork.base.compute import Compute, has_bf16
from diawork.runs.cores import find_cores

QUIET = 0.1  # cores that others may keep busy in a run that still counts as alone


def machine_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's with its cores and arithmetic."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or "a processor without a name"
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = find_cores()
    vectors = torch.backends.cpu.get_cpu_capability()  # what torch uses; ATEN_CPU_CAPABILITY can limit it
    bf16 = " with bf16" if has_bf16(device) else ", no bf16"
    return f"{name}, {cores.usable} of {cores.host} cores, {platform.machine()} {vectors}{bf16}"


class Load:
    """How many cores other processes have kept busy since this was made, on average."""

    def __init__(self) -> None:
        self._start = self._others(), time.perf_counter()

    def others(self) -> float:
        """Return the cores that others kept busy, those that a host took from this machine (steal) among them."""
        before, start = self._start
        return max(0.0, self._others() - before) / max(time.perf_counter() - start, 1e-3)

    @staticmethod
    def _others() -> float:
        """Return the seconds that all cores have worked since the machine started, this process's own left out."""
        machine = psutil.cpu_times()._asdict()
        waiting = ("idle", "iowait", "guest", "guest_nice")  # a guest's seconds are counted in user and nice, too
        own = sum(psutil.Process().cpu_times()[:4])  # user and system, with children that have ended
        return sum(seconds for name, seconds in machine.items() if name not in waiting) - own


def load_words(others: float | None) -> str:
    """Say whether a run was alone on the cores; None: of a page made where that was not measured."""
    if others is None:
        return "not known whether other jobs ran"
    if others <= QUIET:
        return "no other job ran"
    return f"beside other jobs: they kept {others:.1f} cores busy, so seconds are too long and shares too low"


def ceilings(compute: Compute, *, repeats: int = 5) -> dict[str, float]:
    """Return the best measured FLOP/s of a large convolution and a large matrix product, by precision."""
    rates = {}
    side, batch = (4096, 512) if compute.device.type == "cuda" else (1024, 32)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "bf16" and compute.precision != "bf16":
            continue
        at: dict[str, Any] = {"device": compute.device, "dtype": dtype}
        a = torch.randn(side, side, **at)
        x = torch.randn(batch, 128, 32, 32, **at).to(memory_format=torch.channels_last)
        weight = torch.randn(128, 128, 3, 3, **at).to(memory_format=torch.channels_last)
        works: dict[str, tuple[Callable[[], Any], int]] = {
            "matmul": (partial(torch.matmul, a, a), 2 * side**3),
            "conv": (partial(F.conv2d, x, weight, padding=1), 2 * batch * 32 * 32 * 128 * 128 * 9),
        }
        for kind, (work, flops) in works.items():
            work()
            rates[f"{kind}_{name}"] = flops / min(seconds(work, compute.device) for _ in range(repeats))
    return rates


# --- timing ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One stage, as the baseline does it and as we do."""

    stage: str
    baseline_s: float  # median
    ours_s: float  # median
    ratio: float  # median over the pairs
    ratio_min: float
    ratio_max: float
    share_of_ceiling: float | None
    compile_s: float | None  # what compiling took, before any timing

    def __str__(self) -> str:
        share = f"   {self.share_of_ceiling:5.0%} of the ceiling" if self.share_of_ceiling else ""
        compiled = f"   (compiled in {self.compile_s:.0f} s)" if self.compile_s else ""
        return f"{self.stage:<44} {self.ratio:6.1f} ×{share}{compiled}"


def time_in_turn(
    stage: str, baseline: Callable[[], Any], ours: Callable[[], Any], *, pairs: int, device: torch.device,
    flops: float = 0.0, ceiling: float = 0.0, compile_s: float | None = None,
) -> Row:  # fmt: skip
    """Warm both up, then time them in turn (A B A B …), so that a machine that drifts does not tilt their ratio.

    ``flops`` is the arithmetic that ours must do at least, ``ceiling`` the machine's FLOP/s.
    """
    baseline()
    ours()
    times = [(seconds(baseline, device), seconds(ours, device)) for _ in range(pairs)]
    ratios, spent = [slow / fast for slow, fast in times], median(fast for _, fast in times)
    share = flops / spent / ceiling if flops and ceiling else None
    slow = median(slow for slow, _ in times)
    return Row(stage, slow, spent, median(ratios), min(ratios), max(ratios), share, compile_s)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return the wall time of one call, synchronised with the device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
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
