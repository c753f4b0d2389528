"""The pictures of one data set's part of a report, as far as its run folders hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from diawork import figures
from diawork.base.errors import DataError, DiaworkError
from diawork.evaluation.metrics import followed
from diawork.evaluation.strength import dissolving_strength
from diawork.report.findings import SPLITS, focus_of
from diawork.report.tables import pixel_table, score_pairs
from diawork.runs.run import Run

MANY_STEPS = 8  # a strip of more is shown at those of Fig. 1; the slider has them all
MOST_CURVES = 9
MOST_MAPS = 4  # drawn; the table has them all
ALL = "all together"
CONTROL_MAPS = 3  # maps without a model, the last of every run's
NONE: dict[str, Any] = {"curves": (), **dict.fromkeys(("strip", "player", "errors", "maps", "shortcuts"))}
Arrays = Mapping[str, np.ndarray]
Runs = dict[str, pd.DataFrame]  # label → runs, one a seed


def draw_pictures(
    table: pd.DataFrame, runs: Runs, amount: str, styles: figures.Styles
) -> tuple[dict[str, Any], list[str]]:
    """Return what can be drawn of one data set, and a sentence for each picture that is damaged.

    ``amount`` is "all", "few" (no slider, no histograms) or "none".
    """
    if amount == "none":
        return NONE, []
    few = amount == "few"
    order = [focus_of(table)["label"], *table["label"]]
    drawn, failures = dict(NONE), []
    for draw in (
        lambda: _curves(table, runs, few, styles),
        lambda: _dissolving(*_evidence(order, runs, "strip"), few),
        lambda: _errors(*_evidence(order, runs, "errors_images")),
        lambda: localisation(*_evidence(order, runs, "maps"), runs),
        lambda: _followed(table, runs),
    ):
        try:
            drawn |= draw()
        except DiaworkError as error:
            failures.append(f"A picture is missing: {error}")
    return drawn, failures


def _evidence(labels: Sequence[str], runs: Runs, wanted: str) -> tuple[str, Arrays]:
    """Return label and evidence of the first run, in the order of ``labels``, that keeps ``wanted``; else nothing."""
    for label in labels:
        for folder in runs[label]["folder"]:
            arrays = Run(folder).evidence()
            if len(arrays.get(wanted, ())):
                return label, arrays
    return "", {}


def _picture(figure: figures.Figure, caption: str, dpi: int = 110) -> dict[str, Any]:
    return {"image": figures.png_bytes(figure, dpi), "caption": caption}


def _curves(table: pd.DataFrame, runs: Runs, few: bool, styles: figures.Styles) -> dict[str, Any]:
    labels, split = list(table["label"])[:MOST_CURVES], table["split"].iloc[0]
    pairs = {label: score_pairs(runs[label]) for label in labels}
    roc = _picture(figures.roc(pairs, styles=styles), "ROC curves, mean and one standard deviation over seeds.")
    if few:
        return {"curves": [roc]}
    limits = {label: runs[label].iloc[0].get(f"{split}.threshold") for label in labels}
    first = {label: seeds[0] for label, seeds in pairs.items()}
    histograms = figures.score_histogram(first, threshold=limits, columns=3 if len(labels) < 7 else 4)
    text = f"Scores of the {SPLITS[split]} images, first seed, each group's area 1; the end bins hold what lies beyond."
    return {"curves": [roc, _picture(histograms, text, 100)]}


def _dissolving(label: str, arrays: Arrays, few: bool) -> dict[str, Any]:
    if not arrays:
        return {}
    strip, ts = arrays["strip"], arrays["strip_ts"].astype(int).tolist()
    kept = _steps_shown(ts)
    rows = arrays["strip_label"].astype(str).tolist() if "strip_label" in arrays else None
    figure = figures.dissolve_strip(strip[:, [0, *(i + 1 for i in kept)]], [ts[i] for i in kept], rows)
    changes = np.square(strip[:, 1:].astype(float) - strip[:, :1]).mean((2, 3))
    grows = f" {dissolving_strength(changes, np.array(ts)).sentence}" if len(strip) > 1 and len(ts) > 1 else ""
    text = f"Images through the dissolver of {label} (Eq. 4).{grows}"
    picture = {"strip": _picture(figure, text, 90)}
    if few:
        return picture
    frames = figures.dissolve_frames(strip[:, 0], strip[:, 1:], ts, dpi=120)
    start = int(np.argmin(np.abs(np.array(ts) - 100)))
    return picture | {"player": figures.player_html(frames, [f"t = {t}" for t in ts], "dissolving step", start=start)}


def _steps_shown(ts: Sequence[int]) -> Sequence[int]:
    """Return which of many steps a strip shows: those of the paper's figure, else a few spread over all."""
    if len(ts) <= MANY_STEPS:
        return range(len(ts))
    of_the_paper = [i for i, t in enumerate(ts) if t in figures.FIGURE_STEPS]
    return of_the_paper or range(0, len(ts), math.ceil(len(ts) / MANY_STEPS))


def _errors(label: str, arrays: Arrays) -> dict[str, Any]:
    if not arrays:
        return {}
    figure = figures.nearest_neighbours(*(arrays[f"errors_{part}"] for part in ("images", "nearest", "score", "label")))
    text = f"Worst errors of {label}: healthy images scored highest and anomalous ones scored lowest, each above the "
    return {"errors": _picture(figure, text + "healthy training image that the detector finds nearest.", 100)}


def localisation(label: str, arrays: Arrays, runs: Runs) -> dict[str, Any]:
    """Return a run's anomaly maps beside the masks, and the rows of the table of all runs' maps."""
    if not arrays:
        return {}
    try:
        table = pixel_table(arrays)
        n, anomalous, regions = map(int, arrays["maps_counts"])
        drawn = dict(zip(table["map"][:MOST_MAPS], arrays["maps"], strict=False))
        labels = [str(name) for name in arrays["maps_label"]]
        figure = figures.maps_grid(arrays["maps_images"], arrays["maps_masks"], drawn, labels)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the maps of {label} are incomplete ({type(error).__name__}: {error}).") from None
    caption = (
        f"Anomaly maps of {label} on images it never saw, trained on healthy images alone; outlined: the mask. "
        "Brighter is more anomalous, one scale a row."
    )
    counts = f"{n} images, {anomalous} of them with {regions} lesions"
    return {"maps": _picture(figure, caption, 90) | {"rows": map_table(runs).to_dict("records"), "counts": counts}}


def map_table(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return ``pixel_table`` of each label's first run, where it keeps maps: label and map, the controls last."""
    rows, controls = [], pixel_table({})
    for label, group in runs.items():
        table = pixel_table(Run(group["folder"].iloc[0]).evidence())
        if len(table):
            own, controls = table[:-CONTROL_MAPS], table[-CONTROL_MAPS:]
            rows.append(own.assign(map=f"{label}: " + own["map"]))
    return pd.concat([*rows, controls], ignore_index=True)


def _followed(table: pd.DataFrame, runs: Runs) -> dict[str, Any]:
    """Draw what the scores follow, of the rows that scored the very images whose statistics are known."""
    labels = [str(label) for label in table.loc[~table["oracle"], "label"]]
    label, arrays = _evidence(labels, runs, "statistics")
    if not arrays:
        return {}
    data = set(runs[label]["data"])
    alike = {label: score_pairs(runs[label]) for label in labels if set(runs[label]["data"]) == data}
    return shortcuts(alike, arrays["statistics"], [str(name) for name in arrays["statistics_names"]])


def shortcuts(
    scores: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], statistics: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """Draw how much of each ranking plain statistics already give, from label → one (scores, anomalous) a seed.

    ``statistics`` (N, F) are the images'. Healthy images alone: over both classes whatever differs correlates.
    """
    rows = {}
    for label, seeds in scores.items():
        parts = [followed(values[~anomalous], statistics[~anomalous]) for values, anomalous in seeds]
        rows[label] = np.mean([np.append(rho, explained) for rho, explained in parts], 0)
    healthy = int((~next(iter(scores.values()))[0][1]).sum())
    figure = figures.table_map(np.array([*rows.values()]), list(rows), [*names, ALL])
    caption = (
        f"What the score follows among the {healthy} healthy images: Spearman's ρ with each image statistic (mean over "
        f"seeds), and, under “{ALL}”, the share of the ranks' variance that all of them explain (adjusted R²). Near "
        "±1: the score is little more than that statistic."
    )
    return {"shortcuts": _picture(figure, caption)}
