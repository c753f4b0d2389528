"""A sweep's folder as one page: rows as its file names them, ours beside the paper's, tests against its baseline."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from diawork import figures
from diawork.base.errors import DiaworkError
from diawork.base.files import read_json, write_json
from diawork.evaluation.metrics import holm
from diawork.report.findings import reading
from diawork.report.page import write_html
from diawork.report.published import SAME_METHOD, published
from diawork.report.tables import collect, compare, groups, split_of, summary_table
from diawork.sweeps.ledger import ledger

LEVEL = 0.05  # of the adjusted p that a reading goes by


def write_sweep_html(folder: Path | str, out: Path | str | None = None) -> Path:
    """Write the page of a sweep's folder, finished or not, to ``out`` (``report.html`` inside it)."""
    folder = Path(folder)
    out = Path(out or folder / "report.html")
    sweep, cells = read_json(folder / "sweep.json"), ledger(folder)
    frame = sweep_frame(folder)
    rows = summary_table(frame)
    pairs, failures = baseline_tests(frame, sweep)
    added = {
        "notebook": sweep["notebook"], "conclusion": sweep.get("conclusion", ""),
        "needs": sweep["needs"], "baseline": sweep["baseline"], "failures": failures,
        "cells": [row | {"links": _links(row, out)} for row in cells.to_dict("records")],
        "done": int((cells["state"] == "done").sum()), "states": _states(cells), "plot": _curve(frame, sweep),
        "drawings": _drawings(cells), "pairs": pairs,
        "published": [_published(key, frame, rows) for key in sweep["published"]],
    }  # fmt: skip
    asked = f"diawork sweep {sweep['name']}{' --size ' + sweep['size'] if sweep['size'] else ''}"
    return write_html(frame, out, title=sweep["title"], asked=asked, sweep=added)


def write_sweep_json(folder: Path | str, out: Path | str | None = None) -> Path:
    """Write the numbers behind the page of a sweep's folder to ``out`` (``report.json`` inside it)."""
    out, frame = Path(out or Path(folder) / "report.json"), sweep_frame(folder)
    sweep = read_json(Path(folder) / "sweep.json")
    tests, failures = baseline_tests(frame, sweep)
    kept = [c for c in frame.columns if c.startswith(("val.", "test.", "cost."))]
    kept = ["row", "dataset", "detector", "seed", "selection", "oracle_epoch", "digest", "data", *kept, "settings"]
    numbers = {
        "sweep": {key: sweep[key] for key in ("name", "title", "size", "baseline")}, "split": split_of(frame),
        "rows": _plain(summary_table(frame)), "tests": _plain(pd.DataFrame(tests)), "not_compared": failures,
        "runs": _plain(frame[kept]) if len(frame) else [],
    }  # fmt: skip
    write_json(out, numbers)
    return out


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows of plain values; what is not a number is None."""
    return json.loads(frame.to_json(orient="records", double_precision=6))


def sweep_frame(folder: Path | str) -> pd.DataFrame:
    """Return one row a finished cell with a run, named by the sweep: ``row``, ``parts`` and ``x``."""
    folder = Path(folder)
    sweep, cells = read_json(folder / "sweep.json"), ledger(folder)
    done = cells[(cells["state"] == "done") & (cells["run"] != "")]
    named = {cell["digest"]: cell for cell in sweep["cells"]}
    frames = []
    for _, row in done.iterrows():
        one, cell = collect([row["run"]]), named[row["cell"]]
        x = cell["point"].get(sweep["x"]) if sweep["x"] else None
        extra = {"row": cell["label"], "parts": [tuple(cell["parts"])], "x": _number(x)}
        frames.append(one.assign(**extra) if len(one) else one)
    frame = pd.concat([f for f in frames if len(f)], ignore_index=True) if any(map(len, frames)) else pd.DataFrame()
    frame.attrs |= {"found": int(cells["run"].ne("").sum()), "unfinished": [], "unreadable": []}
    return frame


def _number(x: Any) -> float:
    """Return where a point stands on the x axis; of a range its middle."""
    if isinstance(x, list):
        return float(np.mean(x))
    return float(x) if isinstance(x, int | float) and not isinstance(x, bool) else math.nan


def _states(cells: pd.DataFrame) -> str:
    counts = cells.loc[cells["state"] != "done", "state"].value_counts()
    return ", ".join(f"{n} {state}" for state, n in counts.items())


def _links(row: dict[str, Any], out: Path) -> list[tuple[str, str]]:
    """Return the files of a cell by addresses relative to the page; none where it lies elsewhere than the runs."""
    if not out.resolve().is_relative_to(Path(row["folder"]).resolve().parents[3]):
        return []
    places = [Path(row["run"]) / name for name in ("config.json", "result.json")] if row["run"] else []
    places.append(Path(row["folder"]) / "executed.ipynb")
    there = [path for path in places if path.exists()]
    return [(p.name, quote(Path(os.path.relpath(p.resolve(), out.parent.resolve())).as_posix())) for p in there]


# --- tests --------------------------------------------------------------------------------------------


def baseline_tests(frame: pd.DataFrame, sweep: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the paired test of every row against its baseline, Holm over all, and what could not be compared."""
    tests, failures, base = [], [], sweep["baseline"]
    named = groups(frame) if base else []
    for name, runs in named:
        against = _counterpart(name, runs, named, base)
        if against is None or name["label"] == against[0]["label"] or bool(runs["oracle"].any()):
            continue
        try:
            found = compare(runs, against[1])
        except DiaworkError as error:
            failures.append(f"{name['label']} and {against[0]['label']} could not be compared: {error.what}")
            continue
        tests.append({"a": name["label"], "b": against[0]["label"], "section": name["section"]} | found)
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = float(p)
        test["reading"] = reading(test) if p < LEVEL else "not told apart by these images"
    return tests, failures


def _counterpart(name: dict[str, Any], runs: pd.DataFrame, named: list, base: str) -> tuple | None:
    """Return the baseline's row on the same data; where the baseline is one axis' value, the row alike in the rest."""
    here = [(n, r) for n, r in named if n["section"] == name["section"]]
    whole = [pair for pair in here if pair[0]["label"] == base]
    if whole:
        return whole[0]
    parts = runs["parts"].iloc[0]
    with_base = [(n, r) for n, r in here if base in r["parts"].iloc[0]]
    alike = [pair for pair in with_base if len(set(pair[1]["parts"].iloc[0]) ^ set(parts)) <= 2]
    return alike[0] if alike else None


# --- the paper's rows -----------------------------------------------------------------------------------


def _published(key: str, frame: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    """Return a published table with our rows beside it: same data, same method, same setting."""
    theirs = published(key)
    parts = {} if frame.empty else dict(zip(frame["row"], frame["parts"], strict=True))
    ours = rows.to_dict("records") if len(rows) else []
    shown = [p | _ours(p, ours, parts) for p in theirs.to_dict("records")]
    cost = bool(theirs["dataset"].isna().all())
    for p in shown:
        p["where"] = p["metric"].replace("_", " ") if cost else p["dataset"]
    marks = [f"{mark} {text}." for p in shown for mark, text in p["marks"].items()]
    remarks = list(dict.fromkeys(marks + [r for p in shown for r in p["remarks"]]))
    first = theirs.iloc[0]
    title, source, place = first["title"], first["source"], first["place"]
    return {"title": title, "source": source, "place": place, "rows": shown, "cost": cost, "remarks": remarks}


def _ours(p: dict[str, Any], ours: list[dict[str, Any]], parts: dict[str, tuple]) -> dict[str, Any]:
    for row in ours:
        method = SAME_METHOD.get(row["detector"], row["detector"])
        wanted = {p["setting"]} - {""}
        same = row["split"] == "test" and row["dataset"] == p["dataset"] and method == p["method"]
        if same and wanted <= set(parts[row["label"]]):
            keys = ("auroc", "auroc_sd", "seeds")
            return {key: row[key] for key in keys} | {"difference": row["auroc"] - p["value"]}
    return {"auroc": math.nan}


# --- pictures --------------------------------------------------------------------------------------------


def _curve(frame: pd.DataFrame, sweep: dict[str, Any]) -> dict[str, Any] | None:
    """Return AUROC against the sweep's x, a line a series; what has no x lies across as a level."""
    if not sweep["x"] or frame.empty or frame["x"].isna().all():
        return None
    series: dict[str, list[tuple[float, float, float]]] = {}
    levels: dict[str, float] = {}
    for name, runs in groups(frame):
        x, values = runs["x"].iloc[0], runs[f"{split_of(runs)}.auroc"]
        if math.isnan(x):
            levels[name["label"]] = values.mean()
            continue
        parts = runs["parts"].iloc[0]
        own = ", ".join(parts[:-1]) or name["detector"]
        series.setdefault(own, []).append((x, values.mean(), values.std(ddof=1)))
    figure = figures.auroc_curves(series, levels, xlabel=sweep["x"].replace("_", " "))
    text = f"AUROC on {split_of(frame)} (higher score = more anomalous), mean and standard deviation over seeds; "
    text += "rows without x lie across."
    return {"image": figures.png_bytes(figure, 120), "caption": text}


def _drawings(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the figures that cells drew, with their numbers."""
    found = []
    for _, row in cells.iterrows():
        picture, numbers = (Path(row["folder"]) / f"figure.{kind}" for kind in ("png", "json"))
        if not (row["state"] == "done" and picture.exists() and numbers.exists()):
            continue
        drawn = read_json(numbers)
        names, values = drawn["columns"], [[one[name] for name in drawn["columns"]] for one in drawn["rows"]]
        rows = [[f"{v:.4g}" if isinstance(v, float) else v for v in one] for one in values]
        shown = {"label": row["label"], "caption": drawn["caption"], "image": picture.read_bytes(), "rows": rows}
        found.append(shown | {"names": [name.replace("_", " ") for name in names]})
    return found
