"""How a sweep stands: one row a cell, read from the folders whenever asked, on any machine that sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from diawork.base.errors import DiaworkError, UsageError
from diawork.base.files import read_json
from diawork.runs.run import Run
from diawork.sweeps.cell import CellFolder

STATES = ("done", "failed", "died", "interrupted", "running", "pending")
COLUMNS = ("cell", "label", "dataset", "seed", "state", "error", "auroc", "seconds", "run", "runs", "folder")


def ledger(folder: Path | str) -> pd.DataFrame:
    """Return one row a cell of the sweep in ``folder``, in the order of its file.

    Columns: digest, label, data set, seed, state (pending, running, done, failed, died, interrupted),
    error, AUROC of its run (a search's: on val), seconds, run folder ("" without one), all run folders, cell folder.
    """
    path = Path(folder)
    if not (path / "sweep.json").exists():
        raise UsageError("this is not the folder of a sweep.", path=path, hint="It holds a sweep.json.")
    rows = [row_of(path, cell) for cell in read_json(path / "sweep.json")["cells"]]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def row_of(folder: Path, cell: dict[str, Any]) -> dict[str, Any]:
    """Return the ledger's row of one cell."""
    place = CellFolder(folder / "cells" / cell["digest"])
    status = place.status()
    runs = [str(run.folder) for run in place.runs()]
    parameters = cell["parameters"]
    return {
        "cell": cell["digest"], "label": cell["label"], "dataset": parameters.get("dataset", ""),
        "seed": parameters.get("seed"), "state": status["state"], "error": status["error"],
        "auroc": _auroc(runs) if status["state"] == "done" else float("nan"),
        "seconds": status.get("seconds", float("nan")), "run": runs[0] if runs else "", "runs": runs,
        "folder": str(place.path),
    }  # fmt: skip


def _auroc(runs: list[str]) -> float:
    try:
        metrics = Run(runs[0]).result()["metrics"]
        return float(metrics.get("test", metrics.get("val", {}))["auroc"])
    except (DiaworkError, LookupError, TypeError, ValueError):
        return float("nan")
