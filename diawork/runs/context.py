"""Where and how runs are made: folders, device, processes, progress. None of it is part of a run's identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from diawork.base.compute import Compute
from diawork.base.loop import Progress
from diawork.runs.cores import count_processes
from diawork.runs.run import runs_root


class Surroundings(TypedDict, total=False):
    """The keywords of ``Context.of``, which every function that makes runs takes."""

    out: Path | str | None  # folder of runs [$DIAWORK_HOME, or ./runs]
    data_root: Path | str | None  # folder with data [$DIAWORK_DATA]
    compute: Compute | None  # device and arithmetic [automatic]
    processes: int  # that share each training of a DDPM, of DIA and of CSI [0: $DIAWORK_PROCESSES, or 1]
    progress: Progress


@dataclass(frozen=True)
class Context:
    """The surroundings of runs, their defaults settled."""

    out: Path
    compute: Compute
    data_root: Path | str | None = None
    processes: int = 1
    progress: Progress = True

    @classmethod
    def of(
        cls, *, out: Path | str | None = None, data_root: Path | str | None = None, compute: Compute | None = None,
        processes: int = 0, progress: Progress = True,
    ) -> Context:  # fmt: skip
        """Settle what is left open; more processes than there are cards or cores are refused."""
        compute = compute or Compute.auto()
        return cls(runs_root(out), compute, data_root or None, count_processes(processes, compute.device), progress)
