"""Running a sweep: slots that work through its cells, resumable, with a table that grows as they finish."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from diawork.base.errors import BusyError, DiaworkError, UsageError, did_you_mean, printable
from diawork.base.stopping import graceful_stop, raise_if_stopping, stop_requested
from diawork.runs.cores import PROCESSES
from diawork.runs.notebooks import notebook_parameters
from diawork.runs.run import code_version, runs_root
from diawork.sweeps.cell import CellFolder, ledger
from diawork.sweeps.cluster import EXECUTORS, Submitted, make_executor
from diawork.sweeps.file import notebook_path
from diawork.sweeps.sweep import Cell, Sweep
from diawork.sweeps.workers import slot_environment, start_worker, visible_gpus

POLL = 0.1  # seconds
Starter = Callable[[Path, int], Any]  # cell folder, slot → its process, or what has the same poll, terminate and kill


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
    processes: int = 0,
    executor: str = "local",
    options: dict[str, Any] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run the cells that are not finished, ``slots`` at a time, and return the ledger.

    A cell that fails or dies is a row, and the rest goes on; running again skips what is finished.
    Another launcher on the same folder shares the work. ``processes`` share each training [0: $DIAWORK_PROCESSES,
    or 1]. ``executor``: local, slurm, submitit-local or
    debug, with submitit's ``options``. Data that is not there is refused before the first cell.
    """
    if executor != "local" and executor not in EXECUTORS:
        raise UsageError(f"{executor!r} is not an executor.", hint=did_you_mean(executor, ("local", *EXECUTORS)))
    if slots < 1:
        raise UsageError(f"slots={slots} must be at least 1.")
    folder = prepare(sweep, out=out, data_root=data_root, device=device)
    gpus = visible_gpus(device)
    jobs = None if executor == "local" else make_executor(executor, folder / "jobs", options or {})

    shared = {PROCESSES: str(processes)} if processes else {}

    def start(cell: Path, slot: int) -> Any:
        if jobs:
            return Submitted(jobs, cell, shared)
        return start_worker(cell, slot_environment(slot, slots, gpus, processes=processes) | shared)

    with graceful_stop():
        _Launch(sweep, folder, start, progress).run(1 if executor == "debug" else slots)
        raise_if_stopping()
    return ledger(folder)


def prepare(
    sweep: Sweep, *, out: Path | str | None = None, data_root: Path | str | None = None, device: str = "auto"
) -> Path:
    """Open every data set, write the sweep's folder and return it; nothing is run."""
    identities = data_identities(sweep, data_root)
    folder = sweep_folder(sweep, out)
    given = {"out": str(runs_root(out).absolute()), "data_root": str(data_root or ""), "device": device}
    for cell in sweep.cells:
        notebook = notebook_path(cell.notebook)
        known = notebook_parameters(notebook)
        place = CellFolder.of(cell, folder)
        values = cell.parameters | given | {"overrides": cell.overrides, "cell": str(place.path.absolute())}
        asked: dict[str, Any] = {"values": {key: value for key, value in values.items() if key in known}}
        asked |= {"notebook": str(notebook.absolute()), "data": identities[cell.digest], "makes_run": "method" in known}
        place.prepare(cell.model_dump(mode="json") | asked)
    sweep.write(folder)
    return folder


def data_identities(sweep: Sweep, data_root: Path | str | None = None) -> dict[str, list[str]]:
    """Return cell digest → identities of the data, and of a model of others, that it opens.

    A set that is not there is refused with its line.
    """
    from diawork.data.datasets import load  # needs torch, which planning and listing do without

    identities: dict[tuple, str] = {}
    for cfg in (cfg for cell in sweep.cells for cfg in cell.opened()):
        try:
            if (cfg.dataset, cfg.data) not in identities:
                identities[cfg.dataset, cfg.data] = load(cfg, data_root).identity
        except DiaworkError as error:
            written = f"{sweep.source}, line {sweep.lines.get(cfg.dataset, 1)}"
            where = "--set" if cfg.dataset in sweep.changes.values() else written
            raise type(error)(f"{cfg.dataset}: {error.what}", hint=error.hint, path=where) from None
    opened = {cell.digest: [identities[cfg.dataset, cfg.data] for cfg in cell.opened()] for cell in sweep.cells}
    for cell in sweep.cells:
        if cell.config and (model := cell.config.slot_folder):
            from diawork.method.pipelines import PipelineFolder  # brings torch, which only such a sweep needs

            opened[cell.digest].append(PipelineFolder.read(model).digest())
    return opened


class _Launch:
    """One launcher's work: cells that wait, cells that run in slots, and the table."""

    def __init__(self, sweep: Sweep, folder: Path, start: Starter, progress: bool) -> None:
        self.cells, self.folder, self.start, self.progress = sweep.cells, folder, start, progress
        in_order = sorted(sweep.cells, key=lambda cell: cell.parameters.get("seed") or 0)
        self.waiting = deque(in_order)  # stopped halfway: a whole table of fewer seeds
        self.running: dict[int, tuple[Cell, Any]] = {}  # by slot
        self.began = time.time()
        self.bar = tqdm(total=len(sweep.cells), desc=folder.name, unit="cell", disable=not progress)

    def run(self, slots: int) -> None:
        """Work until no cell waits or a stop is asked for; the workers are stopped, too."""
        results = [CellFolder.of(cell, self.folder).result() for cell in self.cells]
        others = sum(result is not None and result.get("code") != code_version() for result in results)
        if others and self.progress:
            tqdm.write(f"note: {others} finished cells were made with other code; they are kept.")
        with self.bar:
            try:
                while (self.waiting or self.running) and not stop_requested():
                    for slot in range(slots):
                        self._advance(slot)
                    time.sleep(POLL)
                self._end("terminate")  # they save
            except BaseException:
                self._end("kill")
                raise

    def _end(self, how: str) -> None:
        workers = [worker for _, worker in self.running.values()]
        for worker in workers:
            getattr(worker, how)()
        while any(worker.poll() is None for worker in workers):
            time.sleep(POLL)

    def _advance(self, slot: int) -> None:
        """Look at a slot's worker; where it has ended or there is none, give the slot the next cell that needs work."""
        if slot in self.running:
            cell, worker = self.running[slot]
            if (code := worker.poll()) is None:
                return
            del self.running[slot]
            if code == BusyError.exit_code:
                self.waiting.append(cell)
            else:
                self._tell(cell)
        while self.waiting and slot not in self.running:
            cell = self.waiting.popleft()
            place = CellFolder.of(cell, self.folder)
            status = place.status()
            tried = status["state"] in ("failed", "died") and status.get("time", 0) >= self.began
            if status["state"] == "done" or tried:  # by another launcher, since this one began
                self._tell(cell)
            elif status["state"] == "running":  # for another launcher: looked at again later
                self.waiting.append(cell)
                return
            else:
                self.running[slot] = cell, self.start(place.path, slot)

    def _tell(self, cell: Cell) -> None:
        """Add a row to the table."""
        self.bar.update()
        if not self.progress:
            return
        row = CellFolder.of(cell, self.folder).row(cell)
        width = max(len(cell.label) for cell in self.cells)
        auroc = "     –" if pd.isna(row["auroc"]) else f"{row['auroc']:6.3f}"
        seconds = "      –" if pd.isna(row["seconds"]) else f"{row['seconds']:6.1f} s"
        seed = "" if row["seed"] is None else f"seed {row['seed']}"
        line = f"{row['state']:<11} {row['label']:<{width}} {row['dataset']:<16} {seed:<7} {auroc} {seconds}"
        tqdm.write(printable(f"{line}  {row['error']}".rstrip()))
