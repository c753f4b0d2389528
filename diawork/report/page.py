"""Rows → sections → one HTML page that needs neither network nor script.

Everything on the page comes from run folders; it renders partial suites and says n of N.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from diawork import figures
from diawork.base.errors import UsageError, printable
from diawork.base.files import write_text
from diawork.evaluation.comparison import CELLS, MARGIN
from diawork.evaluation.sentences import counted, interval, p_value, signed
from diawork.report.pictures import draw_losses
from diawork.report.rows import Finished, Results, collect
from diawork.report.sections import SweepSection, section
from diawork.report.sentences import ends, over_sets
from diawork.runs.presets import preset

MAX_BYTES = 5_000_000
SHOWN, LISTED = 60, 200  # new images on their page, and files left out that it names


def write_html(
    runs: Results | Path | str | Iterable[Path | str], out: Path | str, *, title: str, asked: str,
    sweep: SweepSection | None = None,
) -> Path:  # fmt: skip
    """Write the page of ``runs`` (of ``collect``, a folder of runs or run folders) to ``out``.

    Where the page would outgrow ``MAX_BYTES``, the slider and then the other pictures are left out.
    """
    results, out = runs if isinstance(runs, Results) else collect(runs), Path(out)
    if out.is_dir():
        raise UsageError("the report needs a file name, this is a folder.", path=out, hint="For instance report.html.")
    styles = sweep.styles if sweep else results.styles
    tests = sweep.tests if sweep and sweep.sweep.baseline else None
    declared = sweep.sweep.repeats if sweep else None
    versions = pd.DataFrame([run.versions for run in results.runs])
    environment = {str(name): versions[name].dropna().unique() for name in versions}
    for pictures in ("all", "few", "none"):
        page = render(
            "report.html.j2", title=title, asked=asked, sweep=sweep, made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            results=results, reduced=pictures != "all", smoke=any(map(_is_smoke, results.runs)),
            sections=[section(name, rows, pictures, styles=styles, tests=tests, declared=declared)
                      for name, rows in results.sections.items()],
            over_sets=over_sets(results.rows), environment={name: " / ".join(v) for name, v in environment.items()},
            mixed=[name for name, known in environment.items() if len(known) > 1],
            losses=draw_losses(results.in_order, styles) if pictures != "none" else None,
            runs=[(row, run, _files(run, out)) for row in results.in_order for run in row.runs],
        )  # fmt: skip
        if len(page.encode()) <= MAX_BYTES:
            break
    write_text(out, page)
    return out


def _is_smoke(run: Finished) -> bool:
    """Say whether a run trained for as long as the preset ``smoke`` does, or says that it is its preset."""
    if run.preset:
        return run.preset == "smoke"
    smoke = preset("smoke").flat()
    return all(run.settings.get(key) == smoke[key] for key in ("train.epochs", "train.epoch_size", "train.epoch_n"))


def _files(run: Finished, out: Path) -> list[tuple[str, str]]:
    """Return links to a run's files, where the page lies above them, so that a link travels with both."""
    above = run.run.folder.resolve().is_relative_to(out.parent.resolve())
    return links(run.run.files, out) if above else []


def links(files: Iterable[Path], out: Path) -> list[tuple[str, str]]:
    """Return name and address, relative to the page ``out``, of those files that are there."""
    folder = out.parent.resolve()
    addresses = {file: os.path.relpath(file.resolve(), folder) for file in files if file.exists()}
    return [(file.name, "./" + quote(Path(address).as_posix())) for file, address in addresses.items()]


# --- the templates --------------------------------------------------------------------------------------


def render(template: str, **context: Any) -> str:
    """Return a page of the house: names are escaped, and what would not print is spelt out."""
    return templates().get_template(template).render(context)


@cache
def templates() -> Environment:
    """Return the templates with the filters by which they spell numbers."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined,
        finalize=_printable, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "number": _decimal, "signed": signed, "place": _place, "seconds": _seconds, "pvalue": p_value,
        "interval": interval, "ends": ends, "spread": _spread, "base64": _base64, "counted": counted,
    }  # fmt: skip
    made.globals |= {"margin": MARGIN, "cells": CELLS}
    return made


def _printable(value: Any) -> Any:
    """Spell out what would not print: control characters, and those that turn the direction of text."""
    return printable(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


def _base64(data: bytes) -> Markup:
    return Markup(base64.b64encode(data).decode("ascii"))  # letters that need no escape


def _decimal(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"


def _spread(value: float, sd: float) -> str:
    """Return "0.903 ± 0.010", or the value alone where it has no spread."""
    return _decimal(value) if math.isnan(sd) else f"{_decimal(value)} ± {_decimal(sd)}"


def _place(value: float, low: float) -> float:
    """Return where a value stands on an axis from ``low`` to 1, in percent."""
    return round(100 * min(max((value - low) / (1 - low), 0), 1), 1)


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.1f} h"


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
    page = render(
        "scored.html.j2", title=f"{len(scores):,} images scored by {facts['detector']}", rows=rows, facts=facts,
        n=len(scores), alarms=alarms, left_out=dict(list(left_out.items())[:LISTED]), left=len(left_out),
        map_name=map_name, isnan=math.isnan, with_healthy=bool(known),
    )  # fmt: skip
    write_text(out, page)
    return out
