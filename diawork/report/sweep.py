"""A sweep's folder as one page: rows as its file names them, ours beside the paper's, tests against its baseline."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from diawork import figures
from diawork.base.files import read_json, write_json
from diawork.report.comparisons import Compared, Pair, compare_all
from diawork.report.findings import SPLITS, agreement, over_sets
from diawork.report.page import links, write_html
from diawork.report.published import beside_published
from diawork.report.tables import collect, groups, split_of, summary_table
from diawork.sweeps.cell import ledger
from diawork.sweeps.sweep import Sweep

AXES = {  # words for the settings that sweeps draw along x
    "dissolve.t_range": figures.STEP_LABEL,
    "train.batch_size": "batch size, images",
    "data.contamination": "share of anomalous images called healthy",
    "data.lesion_contrast": "contrast of the lesions",
    "data.lesion_size": "size of the lesions, px",
    "diffusion.data_fraction": "share of the healthy images given to the diffusion model",
}


def write_sweep_html(folder: Path | str, out: Path | str | None = None) -> Path:
    """Write the page of a sweep's folder, finished or not, to ``out`` (``report.html`` inside it)."""
    folder = Path(folder)
    out = Path(out or folder / "report.html")
    sweep, cells, frame = Sweep.read(folder), ledger(folder), sweep_frame(folder)
    tests, failures = baseline_tests(frame, sweep.baseline)
    styles = figures.styles_of([*_series(frame), *(name["label"] for name, _ in groups(frame))])
    states = cells.loc[cells["state"] != "done", "state"].value_counts()
    added = sweep.model_dump(include={"notebook", "needs", "baseline", "conclusion", "repeats"}) | {
        "tests": tests, "pairs": [one.row for one in tests], "failures": failures,
        "cells": [row | {"links": _links(row, out)} for row in cells.to_dict("records")],
        "done": int((cells["state"] == "done").sum()),
        "states": ", ".join(f"{n} {state}" for state, n in states.items()),
        "plot": _curve(frame, sweep.x, styles), "styles": styles, "drawings": _drawings(cells),
        "published": [beside_published(key, frame, sweep.repeats) for key in sweep.published],
    }  # fmt: skip
    return write_html(frame, out, title=sweep.title, asked=_command(sweep), sweep=added)


def write_sweep_json(folder: Path | str, out: Path | str | None = None) -> Path:
    """Write the numbers behind the page of a sweep's folder to ``out`` (``report.json`` inside it)."""
    out, frame = Path(out or Path(folder) / "report.json"), sweep_frame(folder)
    sweep, table = Sweep.read(folder), summary_table(frame)
    tests, failures = baseline_tests(frame, sweep.baseline)
    ranks = {str(name): agreement(rows) for name, rows in table.groupby("section")} if len(table) else {}
    measured = [c for c in frame.columns if c.startswith(("val.", "test.", "cost.", "epoch.")) or c == "check.auroc"]
    kept = ["row", "dataset", "detector", "seed", "selection", "digest", "data", *measured, "settings"]
    numbers = {
        "sweep": sweep.model_dump(include={"name", "title", "size", "baseline"}), "split": split_of(frame),
        "rows": _plain(table), "not_compared": failures,
        "self_check_ranks": ranks, "over_sets": over_sets(table),
        "tests": _plain(pd.DataFrame([one.row for one in tests])),
        "runs": _plain(frame[kept]) if len(frame) else [],
    }  # fmt: skip
    write_json(out, numbers)
    return out


def _command(sweep: Sweep) -> str:
    """Return the command that ran a sweep."""
    words = ["diawork", "sweep", sweep.name, *(["--size", sweep.size] if sweep.size else [])]
    for key, value in sweep.changes.items():
        words += ["--set", f"{key}={value}"]
    return shlex.join(words)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows of plain values; what is not a number is None."""
    return json.loads(frame.to_json(orient="records", double_precision=6))


def sweep_frame(folder: Path | str) -> pd.DataFrame:
    """Return one row a finished cell with a run, named by the sweep: ``row``, ``parts`` and ``x``."""
    sweep, cells = Sweep.read(folder), ledger(folder)
    done = cells[(cells["state"] == "done") & (cells["run"] != "")]
    named = {cell.digest: cell for cell in sweep.cells}
    frames = []
    for _, row in done.iterrows():
        runs, cell = collect([row["run"]]), named[row["cell"]]
        name = {"row": cell.label, "parts": [cell.parts], "x": [_extent(cell.point.get(sweep.x))]}
        frames += [runs.assign(**name)] if len(runs) else []
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    frame.attrs |= {"found": int(cells["run"].ne("").sum()), "unfinished": [], "unreadable": []}
    return frame


def _extent(x: Any) -> tuple[float, float] | None:
    """Return from where to where a point reaches on the x axis, a number from itself to itself; None: nowhere."""
    ends = x if isinstance(x, list) else [x, x]
    if len(ends) != 2 or not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        return None
    return float(ends[0]), float(ends[1])


def _links(row: dict[str, Any], out: Path) -> list[tuple[str, str]]:
    """Return the files of a cell by addresses relative to the page; none where it lies elsewhere than the runs."""
    if not out.resolve().is_relative_to(Path(row["folder"]).resolve().parents[3]):
        return []
    files = [Path(row["run"]) / name for name in ("config.json", "result.json")] if row["run"] else []
    return links([*files, Path(row["folder"]) / "executed.ipynb"], out)


def baseline_tests(frame: pd.DataFrame, base: str) -> tuple[list[Compared], list[str]]:
    """Return the comparison of every row with the baseline, as one family, and what could not be compared."""
    pairs = []
    rows = groups(frame) if base else []
    for name, runs in rows:
        alike = [(other, theirs) for other, theirs in rows if other["section"] == name["section"]]
        other, theirs = _counterpart(runs, alike, base)
        if other is not None and theirs is not None and other != name["label"] and not runs["oracle"].any():
            pairs.append(Pair(name["label"], other, runs, theirs, name["section"]))
    return compare_all(pairs)


def _counterpart(runs: pd.DataFrame, rows: list, base: str) -> tuple[str | None, pd.DataFrame | None]:
    """Return label and runs of the baseline; where it is one axis' value, of the row alike in the rest."""
    for name, theirs in rows:
        if name["label"] == base:
            return base, theirs
    own = set(runs["parts"].iloc[0])
    for name, theirs in rows:
        parts = theirs["parts"].iloc[0]
        if base in parts and len(own ^ set(parts)) <= 2:
            return name["label"], theirs
    return None, None


def _series(frame: pd.DataFrame) -> list[str]:
    """Return the names of the lines that a sweep's rows lie on, one a row: its parts but the last, or its detector."""
    return [", ".join(runs["parts"].iloc[0][:-1]) or name["detector"] for name, runs in groups(frame)]


def _curve(frame: pd.DataFrame, x_key: str, styles: figures.Styles | None = None) -> dict[str, Any] | None:
    """Return AUROC against the setting ``x_key``, a line a series; what has no x lies across as a level."""
    if not x_key or frame.empty or frame["x"].isna().all():
        return None
    split = split_of(frame)
    series: dict[str, list[tuple]] = {}
    levels: dict[str, float] = {}
    for line, (name, runs) in zip(_series(frame), groups(frame), strict=True):
        x, values = runs["x"].iloc[0], runs[f"{split}.auroc"]
        if x is None:
            levels[name["label"]] = values.mean()
            continue
        series.setdefault(line, []).append((x, values.mean(), values.std(ddof=1)))
    words = AXES.get(x_key, x_key.rpartition(".")[2].replace("_", " "))
    figure = figures.auroc_curves(series, levels, xlabel=words, split=SPLITS[split], styles=styles)
    text = f"AUROC on {split} (higher score = more anomalous), mean and standard deviation over seeds; "
    text += "a bar along x is a range of it; rows without x lie across."
    return {"image": figures.png_bytes(figure, 120), "caption": text}


def _drawings(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the figures that cells drew, with their numbers."""
    drawings = []
    for _, cell in cells[cells["state"] == "done"].iterrows():
        png, numbers = (Path(cell["folder"]) / f"figure.{kind}" for kind in ("png", "json"))
        if not (png.exists() and numbers.exists()):
            continue
        drawn = read_json(numbers)
        values = [[row[name] for name in drawn["columns"]] for row in drawn["rows"]]
        rows = [[f"{value:.4g}" if isinstance(value, float) else value for value in row] for row in values]
        names = [name.replace("_", " ") for name in drawn["columns"]]
        picture = {"image": png.read_bytes(), "caption": drawn["caption"]}
        drawings.append(picture | {"label": cell["label"], "names": names, "rows": rows})
    return drawings
