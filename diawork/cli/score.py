"""``diawork score``: a finished run applied to images of one's own."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diawork.cli import options
from diawork.cli.options import Renamed, path_option, say

if TYPE_CHECKING:
    from diawork.runs.predict import Predictor, Scored


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@path_option(
    "--csv", "--out", "table", cls=Renamed, default=Path("scores.csv"), show_default=True,
    help="Rows that it has already are kept.",
)  # fmt: skip
@path_option("--maps", help="A folder for each image under its anomaly map (PNG).")
@path_option("--html", help="One page with the worst first.")
@options.data_root
@options.device
@options.precision
def score(
    run: Path, images: tuple[Path, ...], table: Path, maps: Path | None, html: Path | None, data_root: Path | None,
    device: str, precision: str,
) -> None:  # fmt: skip
    """Score IMAGES (files, folders, tables with a column of paths) by the finished run in the folder RUN."""
    from diawork.base.compute import Compute
    from diawork.base.errors import DataError
    from diawork.runs.predict import load_detector, score_files

    predictor = load_detector(run, compute=Compute.auto(device, precision), data_root=data_root)
    name, make = predictor.mapper() if maps else ("", None)
    write = functools.partial(_write_maps, make=make, folder=maps) if make and maps else None
    left_out = score_files(predictor, images, table, on_batch=write)
    scores = read_scores(table)
    if html and len(scores):
        _write_page(predictor, scores, html, left_out=left_out, maps=(name, make))
    say(f"{len(scores):,} images in {table}" + (f", page: {html}" if html and len(scores) else ""))
    for file, reason in list(left_out.items())[:5]:
        say(f"left out: {file}: {reason}", err=True)
    if len(left_out) > 5:
        say(f"… {len(left_out):,} in all, in {table.stem}-left-out.csv", err=True)
    if not len(scores):
        raise DataError("no image could be scored.", path=table, hint=f"{table.stem}-left-out.csv says why.")


def read_scores(path: Path) -> Any:
    """Return the table that ``score_files`` writes."""
    import pandas as pd

    return pd.read_csv(path, dtype={"image": str, "nearest": str}, keep_default_na=False, na_values=[""])


def _write_maps(batch: Scored, make: Any, folder: Path) -> None:
    from diawork import figures
    from diawork.base.files import write_bytes

    for row, image, values in zip(batch.rows, batch.images.numpy(), make(batch.images), strict=True):
        write_bytes(folder / map_name(row["image"]), figures.pixels_png(figures.overlay(image, values)))


def map_name(image: str) -> str:
    """Return the name of an image's map: its own, and what tells it from others of that name elsewhere."""
    return f"{Path(image).stem}-{hashlib.sha256(image.encode()).hexdigest()[:8]}.png"


def _write_page(predictor: Predictor, scores: Any, html: Path, *, left_out: dict, maps: tuple[str, Any]) -> None:
    import torch

    from diawork import figures
    from diawork.report.page import worst, write_scored

    pictures, (map_name, make) = [], maps
    for file in worst(scores)["image"]:
        image = predictor.opening.read(file)
        values = make(torch.from_numpy(image)[None])[0] if make else None
        pictures.append(figures.colours(image) if values is None else figures.overlay(image, values))
    nearest = predictor.neighbours(worst(scores)["nearest"].dropna())
    healthy = {name: figures.colours(image) for name, image in nearest.items()}
    facts = predictor.record
    write_scored(scores, pictures, html, facts=facts, left_out=left_out, map_name=map_name, healthy=healthy)
