"""Runs → tables → one HTML page that needs neither network nor script.

Everything on the page comes from run folders; it renders partial suites and says n of N.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from diawork import figures
from diawork.base.errors import UsageError
from diawork.base.files import write_text
from diawork.evaluation.metrics import holm
from diawork.evaluation.wording import signed
from diawork.report.sections import section
from diawork.report.tables import collect, groups, summary_table

MAX_BYTES = 5_000_000
MOST_POINTS = 1_000  # of one loss curve


def write_html(
    runs: pd.DataFrame | Path | str | Iterable[Path | str],
    out: Path | str,
    *,
    title: str,
    asked: str,
    sweep: dict[str, Any] | None = None,
) -> Path:
    """Write the page of ``runs`` (a frame of ``collect``, a folder of runs or run folders) to ``out``.

    ``sweep`` is what ``sweepreport`` adds: cells, tests against the baseline, published tables. Where the page
    would outgrow ``MAX_BYTES``, the slider and then the other pictures are left out.
    """
    frame = runs if isinstance(runs, pd.DataFrame) else collect(runs)
    out = Path(out)
    if out.is_dir():
        raise UsageError("the report needs a file name, this is a folder.", path=out, hint="For instance report.html.")
    for pictures in ("all", "few", "none"):
        page = _render(_context(frame, out, pictures) | {"title": title, "asked": asked, "sweep": sweep})
        if len(page.encode()) <= MAX_BYTES:
            break
    write_text(out, page)
    return out


def _render(context: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined,
        finalize=_printable, trim_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": _number, "signed": signed, "place": _place, "seconds": _seconds, "count": _count, "pvalue": _pvalue,
        "base64": lambda data: base64.b64encode(data).decode("ascii"),
    }  # fmt: skip
    return environment.get_template("report.html.j2").render(context)


def _printable(value: Any) -> Any:
    """Spell out what would not print: control characters, and those that turn the direction of text."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in value)


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _place(value: float, low: float) -> float:
    """Return where a value stands on an axis from ``low`` to 1, in percent."""
    return round(100 * min(max((value - low) / (1 - low), 0), 1), 1)


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.1f} h"


def _count(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.0f}"


def _pvalue(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _context(frame: pd.DataFrame, out: Path, pictures: str) -> dict[str, Any]:
    table, named = summary_table(frame), groups(frame)
    sections = []
    for name in dict.fromkeys(table["section"] if len(table) else ()):
        runs = {n["label"]: r for n, r in named if n["section"] == name}
        sections.append(section(frame, table[table["section"] == name], runs, pictures))
    pairs = [pair for one in sections for pair in one["pairs"]]
    for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_holm"] = p
    missing = [*frame.attrs.get("unfinished", ()), *frame.attrs.get("unreadable", ())]
    environment, mixed = _environment(frame)
    return {
        "reduced": pictures != "all",
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "finished": len(frame), "missing": missing,
        "found": max(frame.attrs.get("found", 0), len(frame)), "sections": sections, "costs": table.to_dict("records"),
        "losses": _losses(named) if pictures != "none" else None, "environment": environment, "mixed": mixed,
        "runs": [_run(name, row, out) for name, runs in named for _, row in runs.iterrows()],
    }  # fmt: skip


def _environment(frame: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """Return what the runs were made with, and the names in which they differ."""
    made = list(frame["versions"]) if len(frame) else []
    seen = {name: dict.fromkeys(v[name] for v in made if name in v) for v in made for name in v}
    return {name: " / ".join(values) for name, values in seen.items()}, [n for n, v in seen.items() if len(v) > 1]


def _losses(named: list[tuple[dict[str, Any], pd.DataFrame]]) -> bytes | None:
    curves: dict[str, list] = {}
    for name, runs in named:
        rows = [_metrics(Path(folder) / "metrics.jsonl") for folder in runs["folder"]]
        rows = [r for r in rows if any({"stage", "step", "loss"} <= set(row) for row in r)]
        if rows:
            curves.setdefault(name["label"], []).extend(rows)
    return figures.png_bytes(figures.loss_curve(curves), 110) if curves else None


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl``, thinned; a torn last line of a killed run is passed over."""
    rows = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows[:: max(1, len(rows) // MOST_POINTS)]


def _run(name: dict[str, Any], row: pd.Series, out: Path) -> dict[str, Any]:
    """Return one run's details; files are linked where the page lies above them, so that the link travels."""
    folder, above = Path(row["folder"]).resolve(), out.parent.resolve()
    links = []
    if folder.is_relative_to(above):
        inside = folder.relative_to(above).as_posix()
        files = [f for f in ("config.json", "result.json", "executed.ipynb") if (folder / f).exists()]
        links = [(file, "./" + quote(f"{inside}/{file}")) for file in files]
    kept = ("dataset", "seed", "run", "digest", "data", "created", "selection")
    details = {key: row[key] for key in kept} | {"label": name["label"], "auroc": row[f"{row['split']}.auroc"]}
    shown = {**row["facts"], **dict(sorted(row["settings"].items()))}
    return details | {"links": links, "settings": {str(k): str(v) for k, v in shown.items()}}
