"""The one door to submitit: cells as jobs on Slurm, or through its local and debug executors."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Any

from diawork.base.errors import UsageError
from diawork.sweeps.workers import start_worker

EXECUTORS = {"slurm": "slurm", "submitit-local": "local", "debug": "debug"}  # our name → submitit's
MINUTES = 24 * 60  # of a job, where --slurm timeout_min says nothing else
_POLL = 0.3
_LONG_STOP = 60.0  # seconds that a cell has for saving when the cluster takes its machine back


class Job:
    """One cell as a job; when the cluster takes the machine back it saves, and goes on when requeued."""

    def __init__(self, cell: Path, env: dict[str, str] | None = None) -> None:
        self.cell, self.env = cell, env or {}
        self._worker: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Work on the cell in a process of its own; return its exit code."""
        self._worker = start_worker(self.cell, self.env)
        while (code := self._worker.poll()) is None:
            time.sleep(_POLL)
        return code

    def checkpoint(self) -> Any:
        """Stop the cell, which saves, and return what submitit puts into the queue again."""
        import submitit

        if self._worker:
            self._worker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._worker.wait(_LONG_STOP)
        return submitit.helpers.DelayedSubmission(Job(self.cell, self.env))


class Submitted:
    """A submitted job with the face of a worker's process."""

    def __init__(self, executor: Any, cell: Path, env: dict[str, str] | None = None) -> None:
        self._job = executor.submit(Job(cell, env))

    def poll(self) -> int | None:
        """Return the exit code, or None while the job waits or runs; a job that was killed is -1."""
        if not self._job.done():
            return None
        try:
            return int(self._job.result())
        except Exception:  # submitit's errors for a job that was cancelled, killed or lost
            return -1

    def terminate(self) -> None:
        """Take the job back."""
        with contextlib.suppress(Exception):
            self._job.cancel()

    kill = terminate


def make_executor(name: str, folder: Path, options: dict[str, Any]) -> Any:
    """Return submitit's executor; ``options`` are its own, such as ``slurm_partition`` and ``timeout_min``."""
    try:
        import submitit
    except ImportError:
        hint = "Install it with: pip install 'diawork[slurm]'."
        raise UsageError(f"the executor {name!r} needs submitit, which is not installed.", hint=hint) from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=EXECUTORS[name])
        executor.update_parameters(**({"name": "diawork", "timeout_min": MINUTES} | options))
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise UsageError(f"submitit refused the executor {name!r}: {error}") from None
    return executor
