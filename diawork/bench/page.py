"""The findings of ``bench`` as one offline HTML page."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diawork import figures
from diawork.base.files import PACKAGE, write_text
from diawork.bench.machine import load_words
from diawork.evaluation.wording import interval

NO_GPU = "No GPU was there: the path for CUDA is the same code and was not measured."


def write_cost_html(costs: dict[str, Any], out: Path | str, *, title: str = "What diawork costs") -> Path:
    """Write the page of what ``bench`` returned (with ``parts``, ``loss_memory`` and, where asked, ``accuracy``)."""
    environment = Environment(
        loader=FileSystemLoader(PACKAGE / "report" / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    environment.filters["interval"] = interval
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    accuracy = costs.get("accuracy") or {}
    page = environment.get_template("cost.html.j2").render(
        title=title, made=f"{datetime.now(UTC):%Y-%m-%d}", settings=costs["settings"], rows=costs["rows"],
        precision="bf16" if "conv_bf16" in costs["ceilings"] else "fp32", facts=_facts(costs), figures=_figures(costs),
        accuracy=accuracy, paths=accuracy.get("paths"), pretraining=accuracy.get("pretraining"),
        last=accuracy.get("last"), parts=costs["parts"], scaling=costs.get("scaling"), bank=costs.get("bank"),
        loss_memory=costs["loss_memory"], rivals=costs.get("rivals"),
        gpu=NO_GPU if costs["compute"]["device"] == "cpu" else f"Measured on {costs['machine']}.",
    )  # fmt: skip
    write_text(Path(out), page)
    return Path(out)


def _facts(costs: dict[str, Any]) -> list[str]:
    compute, settings = costs["compute"], costs["settings"]
    rates = [f"{name.replace('_', ', ')}: {rate / 1e9:.0f} GFLOP/s" for name, rate in costs["ceilings"].items()]
    sizes = f"batch {settings['batch']}, {settings['size']} px, UNet of width {settings['dim']}"
    arithmetic = f"{compute['threads']} threads, {compute['precision']}"
    load = [load_words(costs["others"])] if "others" in costs else []  # pages made before it was measured
    return [costs["machine"], arithmetic, *load, f"torch {costs['torch']}", sizes, *rates]


def _figures(costs: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Return the two pictures: how many times faster, how close to the ceiling."""
    rows = [row for row in costs["rows"] if row["ratio"] < 100]
    shares = [row for row in costs["rows"] if row["share_of_ceiling"]]
    pictures = {
        "Times faster than the released scheme": figures.cost_bars(rows, value="ratio", label="stage"),
        "Share of the measured ceiling": figures.cost_bars(shares, value="share_of_ceiling", label="stage"),
    }
    return [(name, figures.png_bytes(figure)) for name, figure in pictures.items()]
