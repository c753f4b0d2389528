"""Processes that work on cells: one each, its share of the machine, stopped with whoever started it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from diawork.runs.cores import find_cores

LOG = "log.txt"


class Worker:
    """One cell's process in a group of its own, so that Ctrl-C reaches the launcher alone."""

    def __init__(self, cell: Path, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "diawork.sweeps.worker", str(cell), str(os.getpid())]
        with open(cell / LOG, "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | (env or {}),
                start_new_session=True,
            )  # fmt: skip

    def poll(self) -> int | None:
        """Return the exit code (negative for the signal that killed it), or None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to save and stop."""
        with contextlib.suppress(OSError):
            self._process.terminate()

    def kill(self) -> None:
        """End it at once; its kernel follows within a second or two."""
        with contextlib.suppress(OSError):
            self._process.kill()


def slot_environment(slot: int, slots: int, gpus: list[str]) -> dict[str, str]:
    """Return a slot's share of the machine: its part of the cores and, where there are GPUs, one of them in turn."""
    share = max(1, find_cores().usable // slots)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    asked = {name: os.environ.get(name, "") for name in names}
    threads = {name: str(min(share, int(n)) if (n := asked[name]).isdigit() else share) for name in names}
    return threads | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs that slots may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(i) for i in range(torch.cuda.device_count())]
