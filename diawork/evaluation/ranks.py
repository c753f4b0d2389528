"""Rows judged over several data sets: mean ranks, Friedman's test and Nemenyi's critical difference (Demšar, 2006)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
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

    @property
    def sentence(self) -> str:
        """Return what the ranks say of the rows as a family."""
        rows = f"{self.n} data sets and {len(self.mean)} rows"
        p = "< 0.001" if self.p < 0.001 else f"= {self.p:.3f}"
        if self.p >= 1 - LEVEL:
            return f"Over {rows} the mean ranks are not told apart (Friedman, by permutation, p {p})."
        return (
            f"Over {rows} the mean ranks differ (Friedman, by permutation, p {p}); two rows are told apart where their "
            f"mean ranks differ by more than {self.critical:.2f} (Nemenyi, {LEVEL:.0%})."
        )


def rank_over_sets(auroc: np.ndarray, seed: int = 0) -> Ranking:
    """Rank the columns of auroc (n, k) in each set and test whether their mean ranks differ.

    χ² grows with Σ_j (R̄_j − (k + 1) / 2)²; as sets are few, its p is that of ranks shuffled within each set. The
    critical difference is q √(k (k + 1) / (6 n)), q of the studentised range over √2.
    """
    auroc = np.asarray(auroc, np.float64)
    if auroc.ndim != 2 or min(auroc.shape) < 2:
        raise DataError(f"AUROCs of shape {auroc.shape} cannot be ranked; wanted two sets and two rows or more.")
    if not np.isfinite(auroc).all():
        raise NumericError("the AUROCs to be ranked hold values that are not finite.")
    n, k = auroc.shape
    ranks = rankdata(-auroc, axis=1)
    shuffled = np.random.default_rng(seed).permuted(np.tile(ranks, (PERMUTATIONS, 1, 1)), axis=2).mean(1)
    spread, by_chance = (np.square(means - (k + 1) / 2).sum(-1) for means in (ranks.mean(0), shuffled))
    p = (1 + int((by_chance >= spread - 1e-9).sum())) / (1 + PERMUTATIONS)
    q = float(studentized_range.ppf(LEVEL, k, np.inf)) / math.sqrt(2)
    return Ranking(ranks.mean(0), ranks.max(0), p, q * math.sqrt(k * (k + 1) / (6 * n)), n)
