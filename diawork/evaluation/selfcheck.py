"""Does a score notice anything? Answered from healthy validation images and their pseudo-anomalies, without a label.

Image i and its pseudo-anomalies go together, so that the interval of an AUROC Â resamples images, not scores: with
V_i the share of healthy images below pseudo-anomaly i, and W_i the share of pseudo-anomalies above healthy image i,
Var(Â) = Σ (V_i + W_i − 2 Â)² / (N (N − 1)) (Obuchowski, 1997), on the logit scale. The mean over kinds averages them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata, spearmanr

from diawork.base.errors import DataError, UsageError
from diawork.evaluation.collapse import CHANCE, Facts, collapse, likely_reasons, verdict
from diawork.evaluation.metrics import finite, placements

LEVEL = 0.95
PERMUTATIONS = 9_999
RULES = ("pseudo", "val")  # what an epoch may be chosen by
EQUAL = 1e-6  # of the largest score: a smaller range is rounding


class Noticed(NamedTuple):
    """AUROC of pseudo-anomalies of one kind and strength against healthy images, its interval (joint for all rows).

    ``above_own``: share of images that score below their own pseudo-anomaly, ties half.
    """

    kind: str
    strength: float
    auroc: float
    low: float
    high: float
    above_own: float


@dataclass(frozen=True)
class SelfCheck:
    """The rows, the mean AUROC over them with its 95 % interval, and what they say of N images.

    The AUROC also asks that changed images stand out among all healthy ones, as real anomalies must; ``above_own``
    only that each stands out from itself, and so is far more easily met.
    """

    rows: tuple[Noticed, ...]
    auroc: float
    low: float
    high: float
    n: int
    all_equal: bool
    facts: Facts

    @classmethod
    def of(cls, record: Mapping[str, Any], facts: Facts) -> SelfCheck:
        """Return the check of which a run kept the numbers, so that its words are today's."""
        rows = tuple(Noticed(str(kind), *map(float, numbers)) for kind, *numbers in record["rows"])
        mean, low, high = (float(record[name]) for name in ("auroc", "low", "high"))
        return cls(rows, mean, low, high, int(record["n"]), bool(record["all_equal"]), facts)

    @property
    def above_own(self) -> float:
        """Return the share of images that score below their own pseudo-anomaly, mean over the rows."""
        return float(np.mean([row.above_own for row in self.rows]))

    @property
    def verdict(self) -> str:
        """Return "collapsed", "below chance", "blind" (the interval holds 0.5) or "notices"."""
        if self.all_equal or collapse(self.facts.features):
            return "collapsed"
        return verdict(self.low, self.high)

    def findings(self) -> list[str]:
        """Return what was found, in sentences: the verdict, its likely reason, and the kinds that pass unnoticed."""
        images = f"{self.n} healthy validation images"
        number = f"mean AUROC {self.auroc:.3f}, {100 * LEVEL:g} % interval {self.low:.3f} to {self.high:.3f}"
        number += f"; {self.above_own:.0%} score above their own image"
        if self.all_equal:
            return [f"All scores of {images} and of their pseudo-anomalies are equal: the detector collapsed."]
        said = {
            "collapsed": "The features collapsed",
            "below chance": "The score is below chance: pseudo-anomalies score lower than healthy images",
            "blind": "The score does not tell pseudo-anomalies from healthy images",
            "notices": "The score notices pseudo-anomalies",
        }[self.verdict]
        reasons = [] if self.verdict == "notices" else likely_reasons(self.facts)
        return [f"{said} ({number}; {images}).", *reasons, *self._kinds()]

    def _kinds(self) -> list[str]:
        names = {
            "Below chance": [row for row in self.rows if row.high < CHANCE],
            "Unnoticed": [row for row in self.rows if row.low <= CHANCE <= row.high],
        }
        text = {k: ", ".join(f"{r.kind} at {r.strength:g} ({r.auroc:.2f})" for r in rows) for k, rows in names.items()}
        return [f"{name}: {rows}." for name, rows in text.items() if rows]


def self_check(
    healthy: np.ndarray, pseudo: Mapping[tuple[str, float], np.ndarray], facts: Facts | None = None
) -> SelfCheck:
    """Return what scores of healthy images (N,) and of their pseudo-anomalies, (kind, strength) → (N,), say."""
    if not pseudo:
        raise UsageError("no scores of pseudo-anomalies were given; score one kind or more.")
    healthy = finite(healthy)
    scores = {key: finite(values) for key, values in pseudo.items()}
    for (kind, strength), values in scores.items():
        if values.shape != healthy.shape or len(healthy) < 2:
            raise DataError(
                f"{len(values)} pseudo-anomalies ({kind} at {strength:g}) do not fit {len(healthy)} healthy images; "
                "wanted one an image, and two images or more."
            )
    shares = [_by_image(healthy, values) for values in scores.values()]
    joint = 1 - (1 - LEVEL) / len(scores)
    rows = tuple(
        Noticed(*key, *_interval(share, joint), _above_own(healthy, values))
        for (key, values), share in zip(scores.items(), shares, strict=True)
    )
    every = np.concatenate([healthy, *scores.values()])
    equal = bool(np.ptp(every) <= EQUAL * np.abs(every).max())
    return SelfCheck(rows, *_interval(np.mean(shares, axis=0), LEVEL), len(healthy), equal, facts or Facts())


def _by_image(healthy: np.ndarray, pseudo: np.ndarray) -> np.ndarray:
    """Return (V_i + W_i) / 2 (N,): what image i and its pseudo-anomaly bring to the AUROC, their mean."""
    below, above = placements(pseudo, healthy)
    return (below + above) / 2


def _above_own(healthy: np.ndarray, pseudo: np.ndarray) -> float:
    return float((np.sign(pseudo - healthy) / 2 + 0.5).mean())


def _interval(shares: np.ndarray, level: float) -> tuple[float, float, float]:
    """Return the AUROC that is the mean of shares (N,) and its interval, inside [0, 1]."""
    n, area = len(shares), float(shares.mean())
    if not 0 < area < 1:  # N of N told apart: the exact bound of a binomial share
        bound = ((1 - level) / 2) ** (1 / n)
        return (area, bound, 1.0) if area >= 1 else (area, 0.0, 1 - bound)
    reach = float(norm.ppf((1 + level) / 2)) * 2 * float(np.std(shares, ddof=1)) / math.sqrt(n) / (area * (1 - area))
    return area, float(expit(logit(area) - reach)), float(expit(logit(area) + reach))


def by_selection(epochs: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the test AUROC of the epoch that each rule takes: pseudo and val where noted, last, and oracle (the best).

    ``epochs`` maps each epoch to its AUROCs: test, and what a rule looks at; of equal epochs the first is taken.
    """
    if not epochs:
        return {}
    rows = [epochs[epoch] for epoch in sorted(epochs, key=int)]
    kept = {"last": rows[-1]["test"], "oracle": max(row["test"] for row in rows)}
    known = [rule for rule in RULES if all(rule in row for row in rows)]
    return {rule: max(rows, key=lambda row: row[rule])["test"] for rule in known} | kept


class Agreement(NamedTuple):
    """Rank correlation over n variants, its interval, and p by permutation."""

    rho: float
    low: float
    high: float
    p: float
    n: int


def rank_agreement(check: np.ndarray, test: np.ndarray, seed: int = 0) -> Agreement:
    """Return how a label-free number (n,) ranks variants as their test AUROC (n,) does (Bonett and Wright, 2000)."""
    check, test = finite(check), finite(test)
    n = len(check)
    if check.shape != test.shape or n < 4:
        raise DataError(
            f"{n} checks and {len(test)} AUROCs cannot be correlated; wanted four variants or more, in pairs."
        )
    if not np.ptp(check) or not np.ptp(test):
        raise DataError(
            f"all {n} {'checks' if not np.ptp(check) else 'AUROCs'} are equal: there is no rank to compare."
        )
    rho = float(spearmanr(check, test).statistic)
    reach = 1.959964 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(min(max(rho, -1 + 1e-9), 1 - 1e-9)) + sign * reach) for sign in (-1, 1))
    ranks = rankdata(check) - (n + 1) / 2
    shuffled = np.random.default_rng(seed).permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1) @ rankdata(test)
    p = (1 + int((np.abs(shuffled) >= abs(ranks @ rankdata(test)) - 1e-9).sum())) / (1 + PERMUTATIONS)
    return Agreement(rho, low, high, p, n)
