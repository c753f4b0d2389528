"""The findings of ``bench`` as one offline HTML page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diawork import figures
from diawork.base.errors import CheckpointError
from diawork.base.files import nulled, read_json, write_json, write_text
from diawork.bench.ceilings import load_words
from diawork.evaluation.sentences import counted
from diawork.report.page import render

TITLE = "What diawork costs"
NO_GPU = "No GPU was there: the path for CUDA is the same code and was not measured."


def read_costs(path: Path | str) -> dict[str, Any]:
    """Return the stages, ceilings and machine of a bench's JSON file; another file is a ``CheckpointError``."""
    costs = read_json(path)
    wanted = ("machine", "compute", "ceilings", "others", "torch", "rows")
    if not isinstance(costs, dict) or not set(wanted) <= set(costs):
        raise CheckpointError("this file was not written by diawork bench.", path=path, hint="Bench that machine anew.")
    return {name: costs[name] for name in wanted}


def write_costs(costs: dict[str, Any], out: Path | str) -> Path:
    """Write the page of what ``measure_cost`` returned, with ``accuracy`` and ``beside`` where asked, and its JSON."""
    write_json(Path(out).with_suffix(".json"), nulled(costs))
    accuracy, settings = costs.get("accuracy") or {}, costs["settings"]
    sizes = f"batch {settings['batch']}, {settings['size']} px, UNet of width {settings['dim']}"
    facts = [*_machine(costs), f"torch {costs['torch']}", sizes]
    runs = [costs, *costs.get("beside", [])]
    beside = [{"words": ", ".join(_machine(run)), "rows": {row["stage"]: row for row in run["rows"]}} for run in runs]
    shares = [row for row in costs["rows"] if row["share_of_ceiling"]]
    faster = figures.cost_bars(costs["rows"], value="ratio", label="stage")
    closer = figures.cost_bars(shares, value="share_of_ceiling", label="stage")
    pictures = [("Times faster than the released scheme", figures.png_bytes(faster)),
                ("Share of the measured ceiling", figures.png_bytes(closer))]  # fmt: skip
    page = render(
        "cost.html.j2", title=TITLE, made=f"{datetime.now(UTC):%Y-%m-%d}", settings=settings, rows=costs["rows"],
        precision="bf16" if "conv_bf16" in costs["ceilings"] else "fp32", facts=facts, figures=pictures,
        accuracy=accuracy, paths=accuracy.get("paths"), pretraining=accuracy.get("pretraining"),
        last=accuracy.get("last"), parts=costs["parts"], scaling=costs.get("scaling"), bank=costs.get("bank"),
        loss_memory=costs["loss_memory"], rivals=costs.get("rivals"), beside=beside,
        gpu=NO_GPU if costs["compute"]["device"] == "cpu" else f"Measured on {costs['machine']}.",
    )  # fmt: skip
    write_text(Path(out), page)
    return Path(out)


def _machine(costs: dict[str, Any]) -> list[str]:
    """Return on what a run was measured: processor, threads and precision, load, rates."""
    compute = costs["compute"]
    load = [load_words(costs["others"])] if "others" in costs else []  # not in reports of older versions
    rates = [f"{name.replace('_', ', ')}: {rate / 1e9:.0f} GFLOP/s" for name, rate in costs["ceilings"].items()]
    return [costs["machine"], f"{counted(compute['threads'], 'thread')}, {compute['precision']}", *load, *rates]
