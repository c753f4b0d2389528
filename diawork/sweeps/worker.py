"""One cell in a process of its own: ``python -m diawork.sweeps.worker FOLDER``; the folder tells how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from diawork.base.errors import BusyError, DiaworkError, Interrupted
from diawork.base.files import remove_orphans
from diawork.base.locks import locked
from diawork.runs.notebooks import KernelDied, NotebookError, run_notebook
from diawork.runs.run import CELL
from diawork.sweeps.cell import CellFolder

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Be stopped when the process ``parent`` ends (Linux; elsewhere the cell's lock prevents double work)."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we could ask
        os._exit(Interrupted.exit_code)


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
    spec, start = cell.spec(), time.monotonic()
    shutil.rmtree(cell.path / "runs", ignore_errors=True)
    os.environ[CELL] = str(cell.path.absolute())
    cell.note("running")
    try:
        run_notebook(spec["notebook"], cell.path / "executed.ipynb", parameters=spec["given"], progress=False)
        cell.finish(time.monotonic() - start)
    except Interrupted as error:
        cell.note("interrupted", str(error))
        return error.exit_code
    except DiaworkError as error:
        trace = error.trace if isinstance(error, NotebookError) else []
        seconds = round(time.monotonic() - start, 2)
        cell.note("died" if isinstance(error, KernelDied) else "failed", error.what, trace=trace, seconds=seconds)
        return NotebookError.exit_code
    finally:
        del os.environ[CELL]  # the process may be the launcher's own (submitit's debug executor)
    cell.note("done", seconds=round(time.monotonic() - start, 2))
    return 0


def main(argv: list[str]) -> int:
    """Work on the cell ``argv[0]`` for the process ``argv[1]``; whatever goes wrong is in the cell's folder."""
    end_with(int(argv[1]))
    if hasattr(
        signal, "SIGUSR2"
    ):  # a cluster's sign to whoever started us, who then stops us; the kernel inherits this
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        return work(argv[0])
    except Exception as error:
        with contextlib.suppress(DiaworkError):
            CellFolder(argv[0]).note("failed", f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
