"""Runs → tables → one HTML page that needs neither network nor script.

Everything on the page comes from run folders; it renders partial suites and says n of N.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from diawork import figures
from diawork.base.errors import UsageError, printable
from diawork.base.files import write_text
from diawork.evaluation.sentences import interval, p_value, signed
from diawork.report.findings import over_sets
from diawork.report.sections import section
from diawork.report.tables import collect, groups, summary_table
from diawork.runs.presets import preset
from diawork.runs.run import Run

MAX_BYTES = 5_000_000
MOST_POINTS = 1_000  # of one loss curve
SHOWN, LISTED = 60, 200  # new images on their page, and files left out that it names
Runs: TypeAlias = pd.DataFrame | Path | str | Iterable[Path | str]


def write_html(runs: Runs, out: Path | str, *, title: str, asked: str, sweep: dict[str, Any] | None = None) -> Path:
    """Write the page of ``runs`` (a frame of ``collect``, a folder of runs or run folders) to ``out``.

    ``sweep`` is what ``report.sweep`` adds: cells, tests against the baseline, published tables. Where the page
    would outgrow ``MAX_BYTES``, the slider and then the other pictures are left out.
    """
    frame = runs if isinstance(runs, pd.DataFrame) else collect(runs)
    out = Path(out)
    if out.is_dir():
        raise UsageError("the report needs a file name, this is a folder.", path=out, hint="For instance report.html.")
    for pictures in ("all", "few", "none"):
        context = _context(frame, out, pictures, sweep) | {"title": title, "asked": asked, "sweep": sweep}
        page = render("report.html.j2", context)
        if len(page.encode()) <= MAX_BYTES:
            break
    write_text(out, page)
    return out


def render(template: str, context: dict[str, Any]) -> str:
    """Return a page of the house: names are escaped, and what would not print is spelt out."""
    templates = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, finalize=_printable, trim_blocks=True
    )
    environment.filters |= {
        "number": _decimal, "signed": signed, "place": _place, "seconds": _seconds, "pvalue": p_value,
        "interval": interval, "base64": lambda data: base64.b64encode(data).decode("ascii"),
    }  # fmt: skip
    return environment.get_template(template).render(context)


def _printable(value: Any) -> Any:
    """Spell out what would not print: control characters, and those that turn the direction of text."""
    return printable(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


def _decimal(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"


def _place(value: float, low: float) -> float:
    """Return where a value stands on an axis from ``low`` to 1, in percent."""
    return round(100 * min(max((value - low) / (1 - low), 0), 1), 1)


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.1f} h"


def _context(frame: pd.DataFrame, out: Path, pictures: str, sweep: dict[str, Any] | None) -> dict[str, Any]:
    table, rows = summary_table(frame), groups(frame)
    styles = sweep["styles"] if sweep else figures.styles_of(row["label"] for row, _ in rows)
    sections = []
    for name in dict.fromkeys(table["section"] if len(table) else ()):
        runs = {row["label"]: runs for row, runs in rows if row["section"] == name}
        sections.append(section(table[table["section"] == name], runs, pictures, styles=styles, sweep=sweep))
    environment, mixed = _environment(frame)
    return {
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "reduced": pictures != "all", "sections": sections,
        "smoke": bool(len(frame)) and any(map(_is_smoke, frame["settings"])),
        "finished": len(frame), "found": max(frame.attrs.get("found", 0), len(frame)),
        "missing": [*frame.attrs.get("unfinished", ()), *frame.attrs.get("unreadable", ())],
        "over_sets": over_sets(table), "costs": table.to_dict("records"), "environment": environment, "mixed": mixed,
        "losses": _losses(rows, styles) if pictures != "none" else None,
        "runs": [_details(name["label"], run, out) for name, runs in rows for _, run in runs.iterrows()],
    }  # fmt: skip


def _is_smoke(settings: dict[str, Any]) -> bool:
    """Say whether a run trained for as long as the preset ``smoke`` does."""
    smoke = preset("smoke").flat()
    return all(settings.get(key) == smoke[key] for key in ("train.epochs", "train.epoch_size", "train.epoch_n"))


def _environment(frame: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """Return what the runs were made with, and the names in which they differ."""
    versions = pd.DataFrame(list(frame["versions"]) if len(frame) else [])
    values = {name: versions[name].dropna().unique() for name in versions}
    mixed = [name for name, known in values.items() if len(known) > 1]
    return {name: " / ".join(known) for name, known in values.items()}, mixed


def _losses(rows: list[tuple[dict[str, Any], pd.DataFrame]], styles: figures.Styles) -> bytes | None:
    curves: dict[str, list] = {}
    for name, runs in rows:
        for folder in runs["folder"]:
            metrics = Run(folder).metrics()
            if any({"stage", "step", "loss"} <= set(row) for row in metrics):
                curves.setdefault(name["label"], []).append(metrics[:: max(1, len(metrics) // MOST_POINTS)])
    return figures.png_bytes(figures.loss_curve(curves, styles=styles), 110) if curves else None


def _details(label: str, row: pd.Series, out: Path) -> dict[str, Any]:
    """Return one run's details; files are linked where the page lies above them, so that the link travels."""
    kept = ("dataset", "seed", "run", "digest", "data", "created", "selection")
    settings = {**row["facts"], **dict(sorted(row["settings"].items()))}
    folder = Path(row["folder"])
    above = folder.resolve().is_relative_to(out.parent.resolve())
    files = [folder / name for name in ("config.json", "result.json", "executed.ipynb")] if above else []
    return {key: row[key] for key in kept} | {
        "label": label, "auroc": row[f"{row['split']}.auroc"], "links": links(files, out),
        "settings": {str(key): str(value) for key, value in settings.items()},
    }  # fmt: skip


def links(files: Iterable[Path], out: Path) -> list[tuple[str, str]]:
    """Return name and address, relative to the page ``out``, of those files that are there."""
    folder = out.parent.resolve()
    addresses = {file: os.path.relpath(file.resolve(), folder) for file in files if file.exists()}
    return [(file.name, "./" + quote(Path(address).as_posix())) for file, address in addresses.items()]


# --- new images, scored by one run ------------------------------------------------------------------------


def worst(scores: pd.DataFrame, n: int = SHOWN) -> pd.DataFrame:
    """Return the n rows of the highest scores, the highest first."""
    return scores.sort_values("score", ascending=False, kind="stable").head(n)


def write_scored(
    scores: pd.DataFrame, pictures: Sequence[np.ndarray], out: Path, *, facts: Mapping[str, Any],
    left_out: Mapping[str, str], map_name: str = "", healthy: Mapping[str, np.ndarray] | None = None,
) -> Path:  # fmt: skip
    """Write the page of all ``scores``; ``pictures`` (H, W, 3) are those of the ``worst``.

    ``healthy`` holds the pictures of what the column ``nearest`` names, where they can be had.
    """
    known = {name: figures.pixels_png(picture) for name, picture in (healthy or {}).items()}
    rows = worst(scores).head(len(pictures)).to_dict("records")
    for row, picture in zip(rows, pictures, strict=True):
        row["picture"] = figures.pixels_png(picture)
        row["name"] = Path(str(row["image"])).name
        row["nearest"] = row["nearest"] if isinstance(row["nearest"], str) else ""
        row["healthy"] = known.get(row["nearest"])
    alarms = None if facts["threshold"] is None else int(scores["alarm"].sum())
    context = {
        "title": f"{len(scores):,} images scored by {facts['detector']}", "rows": rows, "facts": facts,
        "n": len(scores), "alarms": alarms, "left_out": dict(list(left_out.items())[:LISTED]),
        "left": len(left_out), "map_name": map_name, "isnan": math.isnan,
        "with_healthy": bool(known),
    }  # fmt: skip
    write_text(out, render("scored.html.j2", context))
    return out
