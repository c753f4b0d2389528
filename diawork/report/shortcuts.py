"""What a score follows: how much of its ranking of healthy images a few plain statistics already give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from diawork import figures
from diawork.base.errors import DataError

ALL = "all together"


def followed(scores: Any, statistics: Any) -> tuple[np.ndarray, float]:
    """Return Spearman's ρ of scores (N,) with each statistic (N, F), and R² of their ranks by all of them.

    Adjusted for F regressors, so that statistics of pure noise explain about 0.
    """
    scores, statistics = np.asarray(scores, float), np.asarray(statistics, float)
    n, regressors = statistics.shape
    if scores.shape != (n,) or n < regressors + 2:
        raise DataError(f"{scores.shape} scores and {statistics.shape} statistics do not fit, or are too few.")
    y, x = _standard(rankdata(scores)), _standard(rankdata(statistics, axis=0))
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    unexplained = (residual**2).sum() / max((y**2).sum(), 1e-12)
    return x.T @ y / n, float(1 - unexplained * (n - 1) / (n - regressors - 1))


def _standard(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    return centred / np.maximum(centred.std(0), 1e-12)


def shortcuts(
    scores: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], statistics: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """Return a report's picture, from label → one (scores, anomalous) a seed and the images' statistics (N, F).

    Healthy images alone: over both classes whatever differs between them correlates.
    """
    rows = {}
    for label, seeds in scores.items():
        found = [followed(values[~anomalous], statistics[~anomalous]) for values, anomalous in seeds]
        rows[label] = np.append(np.mean([rho for rho, _ in found], 0), np.mean([r2 for _, r2 in found]))
    healthy = int((~next(iter(scores.values()))[0][1]).sum())
    figure = figures.table_map(np.array([*rows.values()]), list(rows), [*names, ALL])
    caption = (
        f"What the score follows among the {healthy} healthy images: Spearman's ρ with each image statistic (mean over "
        f"seeds), and, under “{ALL}”, the share of the ranks' variance that all of them explain (adjusted R²). Near "
        "±1: the score is little more than that statistic."
    )
    return {"shortcuts": {"image": figures.png_bytes(figure, 110), "caption": caption}}
