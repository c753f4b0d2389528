"""Rows judged over several data sets: mean ranks, Friedman's test and Nemenyi's critical difference (Demšar, 2006)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata, studentized_range

from diawork.base.errors import DataError, NumericError

LEVEL = 0.95
PERMUTATIONS = 9_999


@dataclass(frozen=True)
class Ranking:
    """Mean and worst rank (k,) of k rows over n sets (1: the highest AUROC), Friedman's p, Nemenyi's difference."""

    mean: np.ndarray
    worst: np.ndarray
    p: float
    critical: float
    n: int
    clusters: int

    @property
    def sentence(self) -> str:
        """Return what the ranks say of the rows as a family."""
        p = "< 0.001" if self.p < 0.001 else f"= {self.p:.3f}"
        together = f" in {self.clusters} clusters" if self.clusters < self.n else ""
        over = f"Over {self.n} data sets{together} the mean ranks of {len(self.mean)} rows"
        if self.p >= 1 - LEVEL:
            return f"{over} are not told apart (Friedman, by permutation, p {p})."
        return (
            f"{over} differ (Friedman, by permutation, p {p}). Two rows are told apart where theirs differ by more "
            f"than {self.critical:.2f} (Nemenyi, {LEVEL:.0%})."
        )


def rank_over_sets(auroc: np.ndarray, clusters: Sequence[str] | None = None, seed: int = 0) -> Ranking:
    """Rank the columns of auroc (n, k) in each set and test whether their mean ranks differ.

    ``clusters`` (n,) names what a set shares its anatomy or images with: each of the c clusters is permuted as a whole.
    χ² grows with Σ_j (R̄_j − (k + 1) / 2)². The critical difference is
    q √(k (k + 1) / (6 c)), q of the studentised range over √2.
    """
    auroc = np.asarray(auroc, np.float64)
    if auroc.ndim != 2 or min(auroc.shape) < 2:
        raise DataError(f"AUROCs of shape {auroc.shape} cannot be ranked; wanted two sets and two rows or more.")
    if not np.isfinite(auroc).all():
        raise NumericError("the AUROCs to be ranked hold values that are not finite.")
    n, k = auroc.shape
    ranks = rankdata(-auroc, axis=1)
    grouped = pd.DataFrame(ranks).groupby(np.array(clusters or range(n)))
    means, sizes = grouped.mean().to_numpy(), grouped.size().to_numpy()
    shuffled = np.random.default_rng(seed).permuted(np.tile(means, (PERMUTATIONS, 1, 1)), axis=2)
    found, drawn = ranks.mean(0), np.average(shuffled, axis=1, weights=sizes)
    spread, by_chance = (np.square(one - (k + 1) / 2).sum(-1) for one in (found, drawn))
    p = (1 + int((by_chance >= spread - 1e-9).sum())) / (1 + PERMUTATIONS)
    q = float(studentized_range.ppf(LEVEL, k, np.inf)) / math.sqrt(2)
    return Ranking(found, ranks.max(0), p, q * math.sqrt(k * (k + 1) / (6 * len(means))), n, len(means))
