"""A cell's folder inside a sweep: what was asked, how it stands, whether it is truly finished; and all as a table."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any, Literal, NotRequired

import pandas as pd
from pydantic import with_config
from typing_extensions import TypedDict

from diawork.base.config import ExperimentConfig
from diawork.base.errors import CheckpointError, DiaworkError
from diawork.base.files import read_record, write_json, write_text
from diawork.base.locks import holder
from diawork.runs.run import OPEN, SCHEMA, Run, code_version
from diawork.sweeps.sweep import Cell, Sweep


@with_config(OPEN)
class Asked(TypedDict):
    """``cell.json``: the cell as the sweep holds it, and how its notebook is run."""

    digest: str
    data: Any  # identities of what it opens
    notebook: str
    makes_run: bool
    values: NotRequired[dict[str, Any]]  # of the notebook's parameters


@with_config(OPEN)
class Made(TypedDict):
    """``result.json``."""

    schema: Literal[1]
    digest: str
    data: Any
    runs: list[str]  # folders, from the cell's
    seconds: float
    code: NotRequired[str]


@with_config(OPEN)
class State(TypedDict):
    """``status.json``: pending, running, done, failed, died or interrupted."""

    state: str
    error: str
    seconds: NotRequired[float]
    time: NotRequired[float]  # s since 1970


class CellFolder:
    """``cell.json`` (asked), ``status.json`` (how it stands), ``runs/`` (made here), ``result.json`` (finished)."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def of(cls, cell: Cell, sweep_folder: Path) -> CellFolder:
        """Return the folder of a cell inside its sweep's."""
        return cls(sweep_folder / "cells" / cell.digest)

    def asked(self) -> Asked:
        """Return what was asked: notebook, parameters, the identity of the data."""
        return read_record(Asked, self.path / "cell.json")

    def prepare(self, asked: dict[str, Any]) -> None:
        """Write what is asked."""
        write_json(self.path / "cell.json", asked)

    def note_run(self, run: Run) -> None:
        """Note that the cell's notebook opened this run."""
        write_text(self.path / "runs" / run.folder.name, os.path.relpath(run.folder, self.path))

    def runs(self) -> list[Run]:
        """Return the runs that the notebook opened, by the notes they left; a torn note is passed over."""
        runs = []
        for note in sorted(p for p in (self.path / "runs").glob("*") if not p.name.startswith(".") and p.is_file()):
            run = Run(os.path.normpath(self.path / note.read_text("utf-8", errors="replace")))
            runs += [run] if run.folder.name == note.name else []
        return runs

    def result(self) -> Made | None:
        """Return the result where the cell is finished: committed, for this data, and every run of it is done."""
        try:
            result, asked = read_record(Made, self.path / "result.json"), self.asked()
        except CheckpointError:
            return None
        same = (result["digest"], result["data"]) == (asked["digest"], asked["data"])
        return result if same and all(Run(self.path / run).current for run in result["runs"]) else None

    def finish(self, seconds: float) -> None:
        """Commit the result of a notebook that came to its end.

        Raises ``CheckpointError`` where a run is missing or not done: the notebook's word is not enough.
        """
        asked, runs = self.asked(), self.runs()
        undone = [run.folder.name for run in runs if not run.current]
        if undone or (asked["makes_run"] and not runs):
            what = f"the notebook came to its end without a finished run ({', '.join(undone) or 'none was begun'})."
            hint = "A notebook of your own takes a parameter cell and calls diawork.sweeps.cell.run_in_cell(cell, cfg)."
            raise CheckpointError(what, path=self.path, hint="" if runs else hint)
        folders = [os.path.relpath(run.folder, self.path) for run in runs]
        result = {"digest": asked["digest"], "data": asked["data"], "runs": folders, "code": code_version()}
        write_json(self.path / "result.json", {"schema": SCHEMA, "seconds": round(seconds, 2), **result})

    def note(self, state: str, error: str = "", **more: Any) -> None:
        """Write ``status.json``."""
        who = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
        write_json(self.path / "status.json", {"state": state, "error": error, **who, **more})

    def status(self) -> State:
        """Return how the cell stands: pending, running, done, failed, died or interrupted, by what is true now."""
        if result := self.result():
            return {"state": "done", "error": "", "seconds": result["seconds"], "time": 0.0}
        status: State = {"state": "pending", "error": ""}
        with contextlib.suppress(DiaworkError):
            status = read_record(State, self.path / "status.json")
        if holder(self.path):
            return status | {"state": "running", "error": ""}
        if status["state"] == "running":
            return status | {"state": "died", "error": "the process that worked on it is gone"}
        if status["state"] != "done":
            return status
        older = [f"{run.folder.name} under draws {run.draws}" for run in self.runs() if run.done and not run.current]
        error = f"scored {', '.join(older)}: run the sweep again, it scores anew and trains nothing" if older else ""
        return status | {"state": "pending", "error": error}  # without older runs: its data or its run has changed

    def row(self, cell: Cell) -> dict[str, Any]:
        """Return the ledger's row of ``cell``, whose folder this is."""
        status, runs = self.status(), [str(run.folder) for run in self.runs()]
        parameters, auroc = cell.parameters, float("nan")
        if runs and status["state"] == "done":
            with contextlib.suppress(DiaworkError, LookupError):
                run = Run(runs[0])
                auroc = run.result()["metrics"][run.primary_split]["auroc"]
        return {
            "cell": cell.digest, "label": cell.label, "dataset": parameters.get("dataset", ""),
            "seed": parameters.get("seed"), "state": status["state"], "error": status["error"],
            "auroc": auroc, "seconds": status.get("seconds", float("nan")), "run": runs[0] if runs else "",
            "runs": runs, "folder": str(self.path),
        }  # fmt: skip


def ledger(folder: Path | str) -> pd.DataFrame:
    """Return one row a cell of the sweep in ``folder``, in the order of its file, as it stands at this moment.

    Columns: digest, label, data set, seed, state (pending, running, done, failed, died, interrupted),
    error, AUROC of its run (a search's: on val), seconds, run folder ("" without one), all run folders, cell folder.
    """
    return pd.DataFrame([CellFolder.of(cell, Path(folder)).row(cell) for cell in Sweep.read(folder).cells])


def run_in_cell(cell: Path | str, cfg: ExperimentConfig, **surroundings: Any) -> Run:
    """Run an experiment for a cell, given by its folder; with "" as any other.

    The cell's folder keeps where the run lies. Another cell that makes the same run is waited for.
    ``surroundings``: out, data_root, compute, processes, progress.
    """
    from diawork.runs.experiment import run_experiment  # needs torch

    noted = CellFolder(cell).note_run if cell else None
    return run_experiment(cfg, on_open=noted, wait=bool(cell), **surroundings)
