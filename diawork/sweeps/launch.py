"""Running a sweep: slots that work through its cells, resumable, with a table that grows as they finish."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from diawork.base.config import ExperimentConfig
from diawork.base.errors import BusyError, DiaworkError, UsageError, did_you_mean, printable
from diawork.base.files import write_json
from diawork.base.stopping import graceful_stop, raise_if_stopping, stop_requested
from diawork.data.variants import open_data
from diawork.runs.notebooks import find_notebook, notebook_parameters
from diawork.runs.run import code_version, runs_root
from diawork.sweeps.cell import CellFolder
from diawork.sweeps.cells import Cell
from diawork.sweeps.cluster import EXECUTORS, Submitted, make_executor
from diawork.sweeps.ledger import ledger, row_of
from diawork.sweeps.processes import Worker, slot_environment, visible_gpus
from diawork.sweeps.sweep import Sweep

POLL = 0.1  # seconds
_TRIED = ("failed", "died")
Runner = Callable[[Path, int], Any]  # cell folder, slot → something with poll, stop and kill


def sweep_folder(sweep: Sweep, out: Path | str | None = None) -> Path:
    """Return the folder of a sweep below ``out``."""
    return runs_root(out) / "sweeps" / sweep.folder_name


def run_sweep(
    sweep: Sweep,
    *,
    out: Path | str | None = None,
    data_root: Path | str | None = None,
    device: str = "auto",
    slots: int = 1,
    executor: str = "local",
    options: dict[str, Any] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run the cells that are not finished, ``slots`` at a time, and return the ledger.

    A cell that fails or dies is a row, and the rest goes on; running again skips what is finished.
    Another launcher on the same folder shares the work. ``executor``: local, slurm, submitit-local or
    debug, with submitit's ``options``. Data that is not there is refused before the first cell.
    """
    if executor != "local" and executor not in EXECUTORS:
        raise UsageError(f"{executor!r} is not an executor.", hint=did_you_mean(executor, ("local", *EXECUTORS)))
    if slots < 1:
        raise UsageError(f"slots={slots} must be at least 1.")
    folder = prepare(sweep, out=out, data_root=data_root, device=device)
    runner = _runner(executor, folder, slots, visible_gpus(device), options or {})
    with graceful_stop():
        _Launch(sweep, folder, runner, progress).run(1 if executor == "debug" else slots)
        raise_if_stopping()
    return ledger(folder)


def prepare(
    sweep: Sweep, *, out: Path | str | None = None, data_root: Path | str | None = None, device: str = "auto"
) -> Path:
    """Open every data set, write the sweep's folder and return it; nothing is run."""
    identities = data_identities(sweep, data_root)
    folder = sweep_folder(sweep, out)
    asked = {"out": str(runs_root(out).absolute()), "data_root": str(data_root or ""), "device": device}
    for cell in sweep.cells:
        known = notebook_parameters(find_notebook(cell.notebook))
        launcher = {key: value for key, value in asked.items() if key in known}
        given = cell.parameters | launcher | ({"overrides": cell.overrides} if "overrides" in known else {})
        place = CellFolder(folder / "cells" / cell.digest)
        place.prepare(
            cell.as_dict() | {"given": given, "data": identities[cell.digest], "makes_run": "method" in known}
        )
    write_json(folder / "sweep.json", sweep.as_dict())
    return folder


def data_identities(sweep: Sweep, data_root: Path | str | None = None) -> dict[str, list[str]]:
    """Return cell digest → identities of the data it opens; a set that is not there is refused with its line."""
    known: dict[str, str] = {}

    def identity(cfg: ExperimentConfig) -> str:
        key = f"{cfg.dataset} {cfg.data.model_dump_json()}"
        if key not in known:
            try:
                known[key] = open_data(cfg, data_root).identity
            except DiaworkError as error:
                what = f"{cfg.dataset}: {error.what}"
                where = f"{sweep.source}, line {sweep.lines.get(cfg.dataset, 1)}"
                raise type(error)(what, hint=error.hint, path=where) from None
        return known[key]

    return {cell.digest: [identity(cfg) for cfg in _opened(cell)] for cell in sweep.cells}


def _opened(cell: Cell) -> list[ExperimentConfig]:
    """Return one config for each data set that a cell opens: the run's own, and the DDPM's."""
    own = [cell.config] if cell.config else []
    return own + [ExperimentConfig(dataset=name) for name in cell.datasets()[len(own) :]]


def _runner(executor: str, folder: Path, slots: int, gpus: list[str], options: dict[str, Any]) -> Runner:
    if executor == "local":
        return lambda cell, slot: Worker(cell, slot_environment(slot, slots, gpus))
    submits, lock = make_executor(executor, folder / "jobs", options), threading.Lock()

    def submit(cell: Path, _slot: int) -> Submitted:
        with lock:
            return Submitted(submits, cell)

    return submit


class _Launch:
    """One launcher's work: a queue of cells, slots that take from it, and the table."""

    def __init__(self, sweep: Sweep, folder: Path, runner: Runner, progress: bool) -> None:
        self.folder, self.runner, self.progress, self.start = folder, runner, progress, time.time()
        self.cells = {cell.digest: cell for cell in sweep.cells}
        self.queue: deque[str] = deque(self.cells)
        self.lock, self.running, self.halted = threading.Lock(), {}, False
        self.width = max(map(len, (cell.label for cell in sweep.cells)), default=0)

    def run(self, slots: int) -> None:
        """Work until the queue is empty or a stop is asked for; the workers are stopped, too."""
        others = self._others_code()
        if others and self.progress:
            tqdm.write(f"note: {others} finished cells were made with other code; they are kept.")
        bar = tqdm(total=len(self.cells), desc=self.folder.name, unit="cell", disable=not self.progress)
        with bar, ThreadPoolExecutor(slots) as pool:
            futures = [pool.submit(self._slot, slot, bar) for slot in range(slots)]
            try:
                while not all(future.done() for future in futures) and not stop_requested():
                    time.sleep(POLL)
            except BaseException:
                self._halt("kill")
                raise
            if stop_requested():
                self._halt("stop")
            for future in futures:
                future.result()

    def _halt(self, how: str) -> None:
        with self.lock:
            self.halted = True
            for worker in self.running.values():
                getattr(worker, how)()

    def _others_code(self) -> int:
        results = [CellFolder(self.folder / "cells" / digest).result() for digest in self.cells]
        return sum(found is not None and found.get("code") != code_version() for found in results)

    def _slot(self, slot: int, bar: tqdm) -> None:
        """Take cells until none is left; one that another launcher holds is looked at again later."""
        while (digest := self._next()) is not None:
            place = CellFolder(self.folder / "cells" / digest)
            if not self._settled(place) and not self._work(place, slot):
                with self.lock:
                    self.queue.append(digest)
                time.sleep(POLL * 3)
                continue
            self._tell(digest, bar)

    def _next(self) -> str | None:
        with self.lock:
            return None if self.halted or not self.queue else self.queue.popleft()

    def _settled(self, place: CellFolder) -> bool:
        """Say whether a cell is finished, or was tried in vain by another launcher since this one began."""
        status = place.status()
        return status["state"] == "done" or (status["state"] in _TRIED and status.get("time", 0) >= self.start)

    def _work(self, place: CellFolder, slot: int) -> bool:
        """Run one cell to its end; False where another process holds it."""
        if place.status()["state"] == "running":
            return False
        with self.lock:
            if self.halted:
                return True
            worker = self.running[slot] = self.runner(place.path, slot)
        while (code := worker.poll()) is None:
            time.sleep(POLL)
        with self.lock:
            del self.running[slot]
        return code != BusyError.exit_code

    def _tell(self, digest: str, bar: tqdm) -> None:
        """Add a row to the table."""
        bar.update()
        if not self.progress or self.halted:
            return
        cell = self.cells[digest]
        row = row_of(self.folder, cell.as_dict())
        auroc = "     –" if row["auroc"] != row["auroc"] else f"{row['auroc']:6.3f}"
        seconds = "      –" if row["seconds"] != row["seconds"] else f"{row['seconds']:6.1f} s"
        seed = "" if row["seed"] is None else f"seed {row['seed']}"
        line = f"{row['state']:<11} {row['label']:<{self.width}} {row['dataset']:<16} {seed:<7} {auroc} {seconds}"
        tqdm.write(printable(f"{line}  {row['error']}".rstrip()))
