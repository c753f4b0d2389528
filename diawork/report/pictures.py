"""The pictures of a page, as far as the run folders behind its rows hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from diawork import figures
from diawork.base.errors import DataError, DiaworkError
from diawork.evaluation.diagnostics import dissolving_strength
from diawork.evaluation.metrics import followed
from diawork.report.rows import Row, map_table, pixel_table
from diawork.report.sentences import SPLITS, focus_of

MANY_STEPS = 8  # a strip of more is shown at those of Fig. 1; the slider has them all
MOST_CURVES = 9
MOST_MAPS = 4  # drawn; the table has them all
MOST_POINTS = 1_000  # of one loss curve
ALL = "all together"
Arrays = Mapping[str, np.ndarray]


class Picture(NamedTuple):
    """A PNG and what stands below it."""

    image: bytes
    caption: str

    @classmethod
    def of(cls, figure: figures.Figure, caption: str, dpi: int = 110) -> Picture:
        """Return a figure drawn."""
        return cls(figures.png_bytes(figure, dpi), caption)


@dataclass(frozen=True)
class Pictures:
    """What can be drawn of one data set; what is None is not known of any run."""

    curves: Sequence[Picture] = ()
    strip: Picture | None = None
    player: Markup | None = None
    errors: Picture | None = None
    maps: Picture | None = None
    map_rows: Sequence[Mapping[Any, Any]] = ()
    map_counts: str = ""
    shortcuts: Picture | None = None
    failures: Sequence[str] = ()  # a sentence for each picture that is damaged


def draw_pictures(rows: Sequence[Row], amount: str, styles: figures.Styles) -> Pictures:
    """Draw one data set. ``amount`` is "all", "few" (no slider, no histograms) or "none"."""
    if amount == "none":
        return Pictures()
    few, order = amount == "few", [focus_of(rows), *rows]
    drawn: dict[str, Any] = {}
    failures = []
    for draw in (
        lambda: {"curves": _curves(rows[:MOST_CURVES], few, styles)},
        lambda: _dissolving(*_evidence(order, "strip"), few),
        lambda: _errors(*_evidence(order, "errors_images")),
        lambda: localisation(*_evidence(order, "maps"), rows),
        lambda: _followed([row for row in rows if not row.oracle]),
    ):
        try:
            drawn |= draw()
        except (DiaworkError, ArithmeticError, LookupError, TypeError, ValueError) as error:  # an edited evidence.npz
            failures.append(f"A picture is missing: {error}")
    return Pictures(**drawn, failures=failures)


def _evidence(rows: Sequence[Row], wanted: str) -> tuple[Row, Arrays]:
    """Return row and evidence of the first run, in the order of ``rows``, that keeps ``wanted``; else nothing."""
    for row in rows:
        for run in row.runs:
            if len(run.evidence.get(wanted, ())):
                return row, run.evidence
    return rows[0], {}


def _curves(rows: Sequence[Row], few: bool, styles: figures.Styles) -> list[Picture]:
    pairs = {row.label: [run.pair for run in row.runs] for row in rows}
    text = "ROC curves, mean and one standard deviation over seeds."
    roc = Picture.of(figures.roc(pairs, styles=styles), text)
    if few:
        return [roc]
    limits = {row.label: row.runs[0].metrics[row.split].get("threshold") for row in rows}
    first = {label: seeds[0] for label, seeds in pairs.items()}
    histograms = figures.score_histogram(first, threshold=limits, columns=3 if len(rows) < 7 else 4)
    split = SPLITS[rows[0].split]
    text = f"Scores of the {split} images, first seed, each group's area 1; the end bins hold what lies beyond."
    return [roc, Picture.of(histograms, text, 100)]


def _dissolving(row: Row, arrays: Arrays, few: bool) -> dict[str, Any]:
    if not arrays:
        return {}
    strip, ts = arrays["strip"], arrays["strip_ts"].astype(int).tolist()
    kept: Sequence[int] = range(len(ts))
    if len(ts) > MANY_STEPS:
        of_the_paper = [i for i in kept if ts[i] in figures.FIGURE_STEPS]
        kept = of_the_paper or range(0, len(ts), math.ceil(len(ts) / MANY_STEPS))
    labels = arrays["strip_label"].astype(str).tolist() if "strip_label" in arrays else None
    figure = figures.dissolve_strip(strip[:, [0, *(i + 1 for i in kept)]], [ts[i] for i in kept], labels)
    changes = np.square(strip[:, 1:].astype(float) - strip[:, :1]).mean((2, 3))
    variance = float(strip[:, 0].astype(float).var((1, 2)).mean())
    grows = (
        f" {dissolving_strength(changes, np.array(ts), variance).sentence}" if len(strip) > 1 and len(ts) > 1 else ""
    )
    picture = Picture.of(figure, f"Images through the dissolver of {row.label} (Eq. 4).{grows}", 90)
    if few:
        return {"strip": picture}
    frames = figures.dissolve_frames(strip[:, 0], strip[:, 1:], ts, dpi=120)
    start = int(np.argmin(np.abs(np.array(ts) - 100)))
    player = figures.player_html(frames, [f"t = {t}" for t in ts], "dissolving step", start=start)
    return {"strip": picture, "player": player}


def _errors(row: Row, arrays: Arrays) -> dict[str, Any]:
    if not arrays:
        return {}
    parts = (arrays[f"errors_{part}"] for part in ("images", "nearest", "score", "label"))
    text = (
        f"Worst errors of {row.label}: healthy images scored highest and anomalous ones scored lowest, each above the "
        "healthy training image that the detector finds nearest."
    )
    return {"errors": Picture.of(figures.nearest_neighbours(*parts), text, 100)}


def localisation(row: Row, arrays: Arrays, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a run's anomaly maps beside the masks, and the table of all rows' maps."""
    if not arrays:
        return {}
    try:
        n, anomalous, regions = map(int, arrays["maps_counts"])
        drawn = dict(zip(pixel_table(arrays)["map"][:MOST_MAPS], arrays["maps"], strict=False))
        labels = [str(name) for name in arrays["maps_label"]]
        figure = figures.maps_grid(arrays["maps_images"], arrays["maps_masks"], drawn, labels)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the maps of {row.label} are incomplete ({type(error).__name__}: {error}).") from None
    text = (
        f"Anomaly maps of {row.label} on images it never saw, trained on healthy images alone; outlined: the mask. "
        "Brighter is more anomalous, one scale a row."
    )
    counts = f"{n} images, {anomalous} of them with {regions} lesions"
    table = map_table(rows).to_dict("records")
    return {"maps": Picture.of(figure, text, 90), "map_rows": table, "map_counts": counts}


def _followed(rows: Sequence[Row]) -> dict[str, Any]:
    """Draw what the scores follow, of the rows that scored the very images whose statistics are known."""
    row, arrays = _evidence(rows, "statistics") if rows else (None, {})
    if not row or not arrays:
        return {}
    data = {run.data for run in row.runs}
    alike = {r.label: [run.pair for run in r.runs] for r in rows if {run.data for run in r.runs} == data}
    return {"shortcuts": shortcuts(alike, arrays["statistics"], [str(name) for name in arrays["statistics_names"]])}


def shortcuts(
    scores: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], statistics: np.ndarray, names: Sequence[str]
) -> Picture:
    """Draw how much of each ranking plain statistics already give, from label → one (scores, anomalous) a seed.

    ``statistics`` (N, F) are the images'. Healthy images alone: over both classes whatever differs correlates.
    """
    rows = {}
    for label, seeds in scores.items():
        parts = [followed(values[~anomalous], statistics[~anomalous]) for values, anomalous in seeds]
        rows[label] = np.mean([np.append(rho, explained) for rho, explained in parts], 0)
    healthy = int((~next(iter(scores.values()))[0][1]).sum())
    figure = figures.table_map(np.array([*rows.values()]), list(rows), [*names, ALL])
    text = (
        f"What the score follows among the {healthy} healthy images: Spearman's ρ with each image statistic (mean over "
        f"seeds), and, under “{ALL}”, the share of the ranks' variance that all of them explain (adjusted R²). Near "
        "±1: the score is little more than that statistic."
    )
    return Picture.of(figure, text)


def draw_losses(rows: Sequence[Row], styles: figures.Styles) -> Picture | None:
    """Draw the losses of the runs that kept any, of the first ``MOST_CURVES`` rows: more cannot be told apart."""
    curves: dict[str, list] = {}
    for row in rows:
        for run in row.runs if len(curves) < MOST_CURVES or row.label in curves else ():
            steps = pd.DataFrame(run.run.metrics()).reindex(columns=["stage", "step", "loss"])
            steps = steps.assign(**{name: pd.to_numeric(steps[name], errors="coerce") for name in ("step", "loss")})
            if len(steps := steps.dropna()):
                curves.setdefault(row.label, []).append(steps[:: max(1, len(steps) // MOST_POINTS)])
    text = "Loss against the step: every value faint, the running mean on top, one line a seed."
    return Picture.of(figures.loss_curve(curves, styles=styles), text) if curves else None
