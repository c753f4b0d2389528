"""A sweep's folder as one page: rows as its file names them, ours beside the paper's, tests against its baseline."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from diawork import figures
from diawork.base.files import read_json, write_json
from diawork.report.page import links, write_html
from diawork.report.pictures import Picture
from diawork.report.published import beside_published
from diawork.report.rows import Compared, Place, Results, Row, collect, compare_all
from diawork.report.sections import Drawn, SweepSection
from diawork.report.sentences import SPLITS, agreement, over_sets
from diawork.runs.run import Run
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
    sweep, cells, results = Sweep.read(folder), ledger(folder), collect_sweep(folder)
    tests, failures = baseline_tests(results.in_order, sweep.baseline)
    lines = [row.named._replace(label=_line(row), plain=_line(row) == row.runs[0].label) for row in results.rows]
    styles = figures.styles_of([*lines, *(row.named for row in results.rows)])
    added = SweepSection(
        sweep, tests, failures, plot=_curve(results, sweep.x, styles),
        cells=[cell | {"links": _links(cell, out)} for cell in cells.to_dict("records")],
        styles=styles, drawings=_drawings(cells),
        published=[beside_published(key, results.rows, sweep.repeats) for key in sweep.published],
    )  # fmt: skip
    words = ["diawork", "sweep", sweep.name, *(["--size", sweep.size] if sweep.size else [])]
    for key, value in sweep.changes.items():
        words += ["--set", f"{key}={value}"]
    return write_html(results, out, title=sweep.title, asked=shlex.join(words), sweep=added)


def write_sweep_json(folder: Path | str, out: Path | str | None = None) -> Path:
    """Write the numbers behind the page of a sweep's folder to ``out`` (``report.json`` inside it)."""
    out, results, sweep = Path(out or Path(folder) / "report.json"), collect_sweep(folder), Sweep.read(folder)
    tests, failures = baseline_tests(results.in_order, sweep.baseline)
    ranks = over_sets(results.rows)
    numbers = {
        "sweep": sweep.model_dump(include={"name", "title", "size", "baseline"}), "split": results.split,
        "rows": _plain([row.record() for row in results.rows]), "not_compared": failures,
        "self_check_ranks": {name: " ".join(agreement(rows)) for name, rows in results.sections.items()},
        "over_sets": ranks._asdict() if ranks else {}, "tests": _plain([one.record() for one in tests]),
        "runs": _plain([run.record() for run in results.runs]),
    }  # fmt: skip
    write_json(out, numbers)
    return out


def _plain(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records of plain values; what is not a number is None."""
    return json.loads(pd.DataFrame(records).to_json(orient="records", double_precision=6)) if records else []


def collect_sweep(folder: Path | str) -> Results:
    """Return the run of each finished cell, in the row that the sweep names."""
    sweep, cells = Sweep.read(folder), ledger(folder)
    named = {cell.digest: cell for cell in sweep.cells}
    runs = []
    for digest, state, run in zip(cells["cell"], cells["state"], cells["run"], strict=True):
        if state == "done" and run:
            cell = named[digest]
            place = Place(cell.label, tuple(cell.parts), _extent(cell.point.get(sweep.x)))
            runs += [one.model_copy(update={"place": place}) for one in collect([run]).runs]
    return Results(tuple(runs), int(cells["run"].ne("").sum()))


def _extent(x: Any) -> tuple[float, float] | None:
    """Return from where to where a point reaches on the x axis, a number from itself to itself; None: nowhere."""
    ends = x if isinstance(x, list) else [x, x]
    if len(ends) != 2 or not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        return None
    return float(ends[0]), float(ends[1])


def _links(cell: dict[str, Any], out: Path) -> list[tuple[str, str]]:
    """Return the files of a cell by addresses relative to the page; none where it lies elsewhere than the runs."""
    own = Path(cell["folder"])
    near = out.resolve().is_relative_to(own.resolve().parents[3])
    return links([*(Run(cell["run"]).files[:2] if cell["run"] else ()), own / "executed.ipynb"] if near else [], out)


def baseline_tests(rows: Sequence[Row], base: str) -> tuple[list[Compared], list[str]]:
    """Return the comparison of every row with the baseline, as one family, and what could not be compared."""
    pairs = []
    for row in rows if base else ():
        other = _counterpart(row, [one for one in rows if one.section == row.section], base)
        if other and other is not row and not row.oracle:
            pairs.append((row, other))
    return compare_all(pairs)


def _counterpart(row: Row, rows: Sequence[Row], base: str) -> Row | None:
    """Return the baseline; where it is one axis' value, the row that is like this one in the rest."""
    own = set(_parts(row))
    alike = (one for one in rows if base in _parts(one) and len(own ^ set(_parts(one))) <= 2)
    return next((one for one in rows if one.label == base), None) or next(alike, None)


def _parts(row: Row) -> tuple[str, ...]:
    place = row.runs[0].place
    return place.parts if place else ()


def _line(row: Row) -> str:
    """Return the name of the line that a row lies on: its parts but the last, or its detector."""
    return ", ".join(_parts(row)[:-1]) or row.runs[0].label


def _curve(results: Results, x_key: str, styles: figures.Styles | None = None) -> Picture | None:
    """Return AUROC against the setting ``x_key``, a line a series; what has no x lies across as a level."""
    places = {row: row.runs[0].place for row in results.in_order}
    if not x_key or not any(place and place.x for place in places.values()):
        return None
    series: dict[str, list[tuple]] = {}
    levels: dict[str, float] = {}
    for row, place in places.items():
        if place and place.x:
            series.setdefault(_line(row), []).append((place.x, row.auroc.value, row.auroc.sd))
        else:
            levels[row.label] = row.auroc.value
    words = AXES.get(x_key, x_key.rpartition(".")[2].replace("_", " "))
    figure = figures.auroc_curves(series, levels, xlabel=words, split=SPLITS[results.split], styles=styles)
    text = f"AUROC on {results.split} (higher score = more anomalous), mean and standard deviation over seeds; "
    return Picture.of(figure, text + "a bar along x is a range of it; rows without x lie across.", 120)


def _drawings(cells: pd.DataFrame) -> list[Drawn]:
    """Return the figures that cells drew, with their numbers."""
    drawings = []
    for _, cell in cells[cells["state"] == "done"].iterrows():
        png, numbers = (Path(cell["folder"]) / f"figure.{kind}" for kind in ("png", "json"))
        if png.exists() and numbers.exists():
            drawn = read_json(numbers)
            values = [[row[name] for name in drawn["columns"]] for row in drawn["rows"]]
            rows = [[f"{value:.4g}" if isinstance(value, float) else value for value in row] for row in values]
            names = [name.replace("_", " ") for name in drawn["columns"]]
            drawings.append(Drawn(cell["label"], Picture(png.read_bytes(), drawn["caption"]), names, rows))
    return drawings
