"""``diawork score``: a finished run applied to images of one's own."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diawork.cli import options
from diawork.cli.options import Renamed, ending, path_option, say

if TYPE_CHECKING:
    from diawork.runs.predict import Predictor, Scored


@click.command(epilog=ending("diawork score runs/mine-dia-s0-1a2b3c4d5e6f scans --html scores.html"))
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
    """Score new images by a finished run.

    RUN is its folder. IMAGES are files, folders, or tables with a column of paths.
    """
    from diawork.base.compute import Compute
    from diawork.base.errors import DataError, UsageError
    from diawork.runs.predict import load_detector, read_scores, score_files

    if html and html.exists() and b"diawork" not in html.read_bytes():
        raise UsageError("this file is no page of diawork, which would replace it.", path=html, hint="Name another.")
    predictor = load_detector(run, compute=Compute.auto(device, precision), data_root=data_root)
    name, make = predictor.mapper() if maps else ("", None)
    write = functools.partial(_write_maps, make=make, folder=maps) if make and maps else None
    unmapped = (lambda image: not (maps / map_name(image)).exists()) if maps else (lambda image: False)
    files, left_out, cut, said = score_files(predictor, images, table, on_batch=write, again=unmapped)
    scores = read_scores(table)
    if html and len(scores):
        _write_page(predictor, scores, files, html, left_out=left_out, maps=(name, make))
    say(f"{len(scores):,} images in {table}" + (f", page: {html}" if html and len(scores) else ""))
    for sentence in predictor.guarantees(scores["p_value"].to_numpy()) if len(scores) else ():
        say(sentence)
    if any("#" in image for image in scores["image"]):
        say(f"a score for each volume, the mean of the highest tenth of its slices: {table.stem}-volumes.csv")
    if predictor.opening.intensity and cut.n:
        say(cut.words(predictor.opening.intensity), err=True)
    for text, n in said.items():
        say(f"{n:,} image{'s' if n > 1 else ''}: {text}", err=True)
    for reason, n in Counter(left_out.values()).most_common(5):
        first = next(file for file, why in left_out.items() if why == reason)
        say(f"left out: {f'{n:,} files, first ' if n > 1 else ''}{first}: {reason}", err=True)
    if len(left_out) > 5:
        say(f"… {len(left_out):,} in all, in {table.stem}-left-out.csv", err=True)
    if not len(scores):
        raise DataError("no image could be scored.", path=table, hint=f"{table.stem}-left-out.csv says why.")


def _write_maps(batch: Scored, make: Any, folder: Path) -> None:
    from diawork import figures
    from diawork.base.files import write_bytes

    for row, image, values in zip(batch.rows, batch.images.numpy(), make(batch.images), strict=True):
        write_bytes(folder / map_name(row["image"]), figures.pixels_png(figures.overlay(image, values)))


def map_name(image: str) -> str:
    """Return the name of an image's map: its own, cut to what a file may be called, and what tells it from others."""
    stem = Path(image).stem.encode()[:200].decode(errors="ignore")
    return f"{stem}-{hashlib.sha256(image.encode()).hexdigest()[:8]}.png"


def _write_page(
    predictor: Predictor, scores: Any, files: dict[str, str], html: Path, *, left_out: dict, maps: tuple[str, Any]
) -> None:
    import numpy as np
    import torch

    from diawork import figures
    from diawork.base.errors import DiaworkError
    from diawork.report.page import worst, write_scored

    pictures, (map_name, make) = [], maps
    for name in worst(scores)["image"]:
        try:
            image = predictor.read(files.get(name, name)).image
        except DiaworkError:  # gone since it was scored
            image = np.zeros((1, predictor.opening.size, predictor.opening.size), np.float32)
        values = make(torch.from_numpy(image)[None])[0] if make else None
        pictures.append(figures.colours(image) if values is None else figures.overlay(image, values))
    nearest = predictor.neighbours(worst(scores)["nearest"].dropna())
    healthy = {name: figures.colours(image) for name, image in nearest.items()}
    facts = predictor.record | {"preset": predictor.run.result().get("preset")}
    facts |= {"guarantees": predictor.guarantees(scores["p_value"].to_numpy())}
    write_scored(scores, pictures, html, facts=facts, left_out=left_out, map_name=map_name, healthy=healthy)
