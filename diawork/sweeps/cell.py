"""A cell's folder inside a sweep: what was asked, how it stands, and whether it is truly finished."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from diawork.base.errors import CheckpointError, DiaworkError
from diawork.base.files import read_json, write_json
from diawork.base.locks import holder
from diawork.runs.run import SCHEMA, Run, code_version


class CellFolder:
    """``cell.json`` (asked), ``status.json`` (how it stands), ``runs/`` (made here), ``result.json`` (finished)."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def spec(self) -> dict[str, Any]:
        """Return what was asked: notebook, parameters, the identity of the data."""
        return read_json(self.path / "cell.json")

    def prepare(self, spec: dict[str, Any]) -> None:
        """Write what is asked, where it differs from what stands there."""
        with contextlib.suppress(CheckpointError):
            if self.spec() == spec:
                return
        write_json(self.path / "cell.json", spec)

    def runs(self) -> list[Run]:
        """Return the runs that the notebook opened, by the notes they left."""
        notes = sorted(p for p in (self.path / "runs").glob("*") if not p.name.startswith("."))
        folders = [self.path / note.read_text("utf-8") for note in notes]
        return [Run(os.path.normpath(folder)) for folder in folders]

    def result(self) -> dict[str, Any] | None:
        """Return the result where the cell is finished: committed, for this data, and every run of it is done."""
        try:
            found, spec = read_json(self.path / "result.json"), self.spec()
        except CheckpointError:
            return None
        same = isinstance(found, dict) and found.get("schema") == SCHEMA and found.get("digest") == spec["digest"]
        if not same or found.get("data") != spec["data"]:
            return None
        return found if all(Run(self.path / folder).current for folder in found["runs"]) else None

    def finish(self, seconds: float) -> None:
        """Commit the result of a notebook that came to its end.

        Raises ``CheckpointError`` where a run is missing or not done: the notebook's word is not enough.
        """
        spec, runs = self.spec(), self.runs()
        undone = [run.folder.name for run in runs if not run.current]
        if undone or (spec["makes_run"] and not runs):
            what = f"the notebook came to its end without a finished run ({', '.join(undone) or 'none was begun'})."
            raise CheckpointError(what, path=self.path)
        folders = [os.path.relpath(run.folder, self.path) for run in runs]
        result = {"digest": spec["digest"], "data": spec["data"], "runs": folders, "code": code_version()}
        write_json(self.path / "result.json", {"schema": SCHEMA, "seconds": round(seconds, 2), **result})

    def note(self, state: str, error: str = "", **more: Any) -> None:
        """Write ``status.json``."""
        who = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
        write_json(self.path / "status.json", {"state": state, "error": error, **who, **more})

    def status(self) -> dict[str, Any]:
        """Return how the cell stands: pending, running, done, failed, died or interrupted, by what is true now."""
        if (result := self.result()) is not None:
            return {"state": "done", "error": "", "seconds": result["seconds"], "time": 0.0}
        try:
            found = read_json(self.path / "status.json")
        except DiaworkError:
            found = {"state": "pending", "error": ""}
        if holder(self.path):
            return found | {"state": "running", "error": ""}
        if found["state"] == "running":
            return found | {"state": "died", "error": "the process that worked on it is gone"}
        return found | ({"state": "pending", "error": self._outdated()} if found["state"] == "done" else {})

    def _outdated(self) -> str:
        """Say which runs were scored under other draws than today's; "" where its data or its run has changed."""
        older = [f"{run.folder.name} under draws {run.draws}" for run in self.runs() if run.done and not run.current]
        return f"scored {', '.join(older)}: run the sweep again, it scores anew and trains nothing" if older else ""
