"""Which cores a process may use, how its threads wait for each other where others want those cores, too, and what
memory it keeps.

OpenMP and torch read their settings when torch is loaded, so `import diawork` calls ``share_cores`` and ``keep_memory``
before anything else; glibc listens at any time.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from diawork.base.errors import UsageError

# A waiting thread that spins holds a core which another process needs, perhaps the very thread that it waits for; one
# that sleeps at once is woken late. GNU's OpenMP can spin for a moment first. On 2 cores, medians of two tries, the
# demo's steps took 0.31 and 0.19 s (DDPM and CSI, bf16) with 20,000 rounds, 0.41 and 0.22 s without; beside two busy
# processes 0.84 to 1.9 and 0.5 s with them, 2.4 and 0.9 s without. With 50,000 and fp32 one of two tries took 2.4 s.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "20000"}  # every OpenMP, LLVM's, GNU's
_USERS = (*WAITING, "KMP_LIBRARY")  # whoever sets one of these has chosen
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # torch's, for tensors of 2 MB and more, where the kernel allows them on demand
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names in glibc's malloc.h
PROCESSES = "DIAWORK_PROCESSES"  # environment variable: how many share a training, where nothing else says it
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of a container: cgroup v2, v1


class Cores(NamedTuple):
    """The host's cores, those of the affinity mask, and the CPUs of the container's quota."""

    host: int
    affinity: int
    quota: float | None = None  # CPUs

    @property
    def usable(self) -> int:
        """Return how many threads can run at a time; a quota of 1.5 CPUs feeds two, three quarters of the time."""
        return min(self.affinity, math.ceil(self.quota)) if self.quota else self.affinity

    def __str__(self) -> str:
        limit = f"a quota of {self.quota:g} CPUs" if self.quota else "no CPU quota"
        return f"{self.affinity} of {self.host} cores by the affinity mask, {limit}"


def find_cores(root: Path | str = "/") -> Cores:
    """Return the cores of this process; ``root`` is where /sys is looked for.

    joblib.cpu_count reads the same, but `import diawork` would wait for joblib.
    """
    host, quota = os.cpu_count() or 1, None
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else host
    for files in QUOTAS:
        with contextlib.suppress(OSError, ValueError):
            text = " ".join(Path(root, "sys/fs/cgroup", name).read_text("ascii") for name in files)
            granted, period = map(int, text.split())  # "max" of v2 is no number
            if granted > 0 and period > 0:  # v1 says -1 where there is no limit
                quota = granted / period
    return Cores(host, affinity, quota)


def share_cores(root: Path | str = "/") -> None:
    """Let threads sleep soon and their number follow the CPU quota, unless the user has chosen or torch is there."""
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _USERS):
        os.environ.update(WAITING)
    cores = find_cores(root)
    if cores.usable < cores.affinity:  # OpenMP knows the affinity mask itself
        os.environ.setdefault("OMP_NUM_THREADS", str(cores.usable))


def keep_memory() -> None:
    """Keep for the next step what a step has freed, and large tensors in huge pages, unless the user has chosen.

    Otherwise glibc hands a large tensor back to the kernel at once, which then clears every page of the next one: on 2
    cores in fp32 a DDPM step took 0.40 s at width 16 and 0.86 at 32, and 0.33 and 0.75 s so; the peak grew by 3 %.
    Beside two busy processes the demo's steps took 2.2 to 4.9 times their quiet time, and 1.8 to 2.3 times so.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault(HUGE_PAGES, "1")
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        with contextlib.suppress(OSError, TypeError, AttributeError):  # another system, another libc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(TRIM_THRESHOLD, 2**30)
            mallopt(MMAP_THRESHOLD, 2**25)  # bytes; the most that it takes


def count_processes(asked: int, device: Any) -> int:
    """Return how many processes share a training on a ``torch.device``: ``asked``, or 0: $DIAWORK_PROCESSES, or 1.

    More than there are cards, or cores where there are none, are refused.
    """
    text = str(asked or os.environ.get(PROCESSES) or 1)
    if not text.isascii() or not text.isdigit() or not int(text):
        raise UsageError(f"processes={text} is not a number of processes.", hint="Use a whole number from 1.")
    if (processes := int(text)) == 1:
        return 1
    if device.type == "cuda" and device.index is None:
        import torch

        most, what = torch.cuda.device_count(), "cards of this machine"
    elif device.type == "cpu":
        most, what = find_cores().usable, "cores of this process"
    else:
        raise UsageError(f"processes={text} cannot share {device}, which is one device.", hint="Use cuda or cpu.")
    if processes > most:
        raise UsageError(f"processes={text} is more than the {most} {what}.", hint=f"Use at most {most}.")
    return processes


def describe_waiting() -> str:
    """Say how waiting threads wait, and who has chosen it."""
    chosen = {name: os.environ[name] for name in _USERS if name in os.environ}
    if chosen == WAITING:
        return "waiting threads soon sleep, as suits shared cores"
    if chosen:
        return "as the environment says, " + " ".join(f"{name}={value}" for name, value in chosen.items())
    return "waiting threads spin: torch was loaded before diawork, so import diawork first"
