"""The findings of ``bench`` as one offline HTML page."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diawork import figures
from diawork.base.files import PACKAGE, write_text

NO_GPU = "No GPU was there: the path for CUDA is the same code and was not measured."


def write_cost_html(found: dict[str, Any], out: Path | str, *, title: str = "What diawork costs") -> Path:
    """Write the page of what ``bench`` returned (with ``parts``, ``loss_memory`` and, where asked, ``accuracy``)."""
    environment = Environment(
        loader=FileSystemLoader(PACKAGE / "report" / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    accuracy = found.get("accuracy") or {}
    page = environment.get_template("cost.html.j2").render(
        title=title, made=f"{datetime.now(UTC):%Y-%m-%d}", settings=found["settings"], rows=found["rows"],
        precision="bf16" if "conv_bf16" in found["ceilings"] else "fp32", facts=_facts(found), figures=_figures(found),
        accuracy=accuracy, paths=accuracy.get("paths"), pretraining=accuracy.get("pretraining"),
        last=accuracy.get("last"), parts=found["parts"], scaling=found.get("scaling"), bank=found.get("bank"),
        loss_memory=found["loss_memory"],
        gpu=NO_GPU if found["compute"]["device"] == "cpu" else f"Measured on {found['machine']}.",
    )  # fmt: skip
    write_text(Path(out), page)
    return Path(out)


def _facts(found: dict[str, Any]) -> list[str]:
    compute, settings = found["compute"], found["settings"]
    rates = [f"{name.replace('_', ', ')}: {rate / 1e9:.0f} GFLOP/s" for name, rate in found["ceilings"].items()]
    sizes = f"batch {settings['batch']}, {settings['size']} px, UNet of width {settings['dim']}"
    return [found["machine"], f"{compute['threads']} threads", f"torch {found['torch']}", sizes, *rates]


def _figures(found: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Return the two pictures: how many times faster, how close to the ceiling."""
    rows = [row for row in found["rows"] if row["ratio"] < 100]
    shares = [row for row in found["rows"] if row["share_of_ceiling"]]
    pictures = {
        "Times faster than the released scheme": figures.cost_bars(rows, value="ratio", label="stage"),
        "Share of the measured ceiling": figures.cost_bars(shares, value="share_of_ceiling", label="stage"),
    }
    return [(name, figures.png_bytes(figure)) for name, figure in pictures.items()]
