"""What a measurement was made on: processor, threads, precision, and whatever else kept the cores busy meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path

import torch

from diawork.base.compute import Compute, has_bf16
from diawork.runs.cores import find_cores

QUIET = 0.1  # cores that others may keep busy in a run that still counts as alone
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def machine_name(device: torch.device, root: Path | str = "/") -> str:
    """Return what the figures were measured on: the GPU's name, or the processor's and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = find_cores(root)
    vectors = torch.backends.cpu.get_cpu_capability()  # what torch uses; ATEN_CPU_CAPABILITY can limit it
    arithmetic = f"{platform.machine()} {vectors}{' with bf16' if has_bf16(device) else ', no bf16'}"
    return f"{_processor(Path(root))}, {cores.usable} of {cores.host} cores, {arithmetic}"


def _processor(root: Path) -> str:
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or "a processor without a name"


def arithmetic(compute: Compute) -> str:
    """Return threads and precision in words."""
    return f"{compute.as_dict()['threads']} threads, {compute.precision}"


class Load:
    """How many cores other processes have kept busy since this was made, on average; not known without /proc/stat."""

    def __init__(self, root: Path | str = "/") -> None:
        self._stat = Path(root) / "proc/stat"
        self._start = self._busy(), self._own(), time.perf_counter()

    def others(self) -> float | None:
        """Return the cores that others kept busy, those that a host took from this machine (steal) among them."""
        (busy, own, start), now = self._start, self._busy()
        if busy is None or now is None:
            return None
        return max(0.0, (now - busy) - (self._own() - own)) / max(time.perf_counter() - start, 1e-3)

    def _busy(self) -> float | None:
        """Return the seconds that all cores have worked since the machine started, but for waiting."""
        try:
            ticks = [int(text) for text in self._stat.read_text("ascii").split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        user, nice, system, _idle, _waiting, *interrupts = ticks
        return (user + nice + system + sum(interrupts)) / _TICKS

    @staticmethod
    def _own() -> float:
        return sum(os.times()[:4])  # with children that have ended


def load_words(others: float | None) -> str:
    """Say whether a run was alone on the cores."""
    if others is None:
        return "not known whether other jobs ran"
    if others <= QUIET:
        return "no other job ran"
    return f"beside other jobs: they kept {others:.1f} cores busy, so seconds are too long and shares too low"
