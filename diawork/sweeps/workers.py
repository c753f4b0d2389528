"""Processes that work on cells, one each: ``python -m diawork.sweeps.workers FOLDER PARENT``, and who starts them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from diawork.base.errors import BusyError, DiaworkError, Interrupted
from diawork.base.files import remove_orphans
from diawork.base.locks import locked
from diawork.base.stopping import end_with
from diawork.runs.cores import find_cores
from diawork.runs.notebooks import KernelDied, NotebookError, run_notebook
from diawork.sweeps.cell import CellFolder

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def start_worker(cell: Path, env: dict[str, str] | None = None) -> subprocess.Popen:
    """Start the process of one cell, in a group of its own, so that Ctrl-C reaches the launcher alone."""
    command = [sys.executable, "-m", "diawork.sweeps.workers", str(cell), str(os.getpid())]
    with open(cell / "log.txt", "ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | (env or {}),
            start_new_session=True,
        )  # fmt: skip


def slot_environment(slot: int, slots: int, gpus: list[str], *, processes: int = 1) -> dict[str, str]:
    """Return a slot's share of the machine: its part of the cores and, where there are GPUs, one a process in turn."""
    share = max(1, find_cores().usable // slots)
    asked = {name: os.environ.get(name, "") for name in THREADS}
    threads = {name: str(min(share, int(n)) if n.isdigit() else share) for name, n in asked.items()}
    wanted = min(max(1, processes), len(gpus))
    own = [gpus[(slot * wanted + i) % len(gpus)] for i in range(wanted)]
    return threads | ({"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {})


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs that slots may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(i) for i in range(torch.cuda.device_count())]


# --- inside the process ---------------------------------------------------------------------------------


def work(folder: Path | str) -> int:
    """Run the cell's notebook unless it is finished; return the exit code that its end deserves."""
    cell = CellFolder(folder)
    try:
        with locked(cell.path):
            remove_orphans(cell.path)
            return 0 if cell.result() else _run(cell)
    except BusyError as error:
        return error.exit_code


def _run(cell: CellFolder) -> int:
    asked, start = cell.asked(), time.monotonic()
    shutil.rmtree(cell.path / "runs", ignore_errors=True)
    cell.note("running")
    try:
        run_notebook(asked["notebook"], cell.path / "executed.ipynb", parameters=asked["values"], progress=False)
        cell.finish(time.monotonic() - start)
    except Interrupted as error:
        cell.note("interrupted", str(error))
        return error.exit_code
    except DiaworkError as error:
        state, trace = "died" if isinstance(error, KernelDied) else "failed", getattr(error, "trace", [])
        cell.note(state, f"{error.what} {error.hint}".rstrip(), trace=trace, seconds=round(time.monotonic() - start, 2))
        return NotebookError.exit_code
    cell.note("done", seconds=round(time.monotonic() - start, 2))
    return 0


def main(folder: str, parent: str) -> int:
    """Work on a cell for the process ``parent``; whatever goes wrong is in the cell's folder."""
    end_with(int(parent))
    if hasattr(signal, "SIGUSR2"):  # a cluster's sign to whoever started us, who stops us; the kernel inherits this
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        return work(folder)
    except Exception as error:
        with contextlib.suppress(DiaworkError):
            CellFolder(folder).note("failed", f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
