"""Is detector a ahead of detector b: for other images and other seeds, not for those at hand alone?

Images and seeds are crossed: every seed scores every image. The difference D_s of seed s, averaged over r seeds, has

    Var = MS / r + C,    MS: variance of D_s over seeds,    C: covariance of D_s and D_s' (s ≠ s') through the images,

the model of Obuchowski and Rockette (1995) with seeds in the place of readers. C comes from the structural components
of DeLong et al. (1988), the degrees of freedom from Hillis (2007), df = Var² / ((MS / r)² / (r − 1)), with an upper
bound of MS in its place. Where the seeds of a and b have nothing in common, each side brings its own MS, and the
formulas add up (Welch and Satterthwaite).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import chi2, t

from diawork.base.errors import DataError, UsageError
from diawork.evaluation.metrics import by_class, holm, placements

MARGIN = 0.01  # of AUROC: detectors that differ by less are equal for every purpose named here
LEVEL = 0.95
POWER = 0.8  # of the difference that could have been seen
UPPER = {1: 0.35, 2: 0.6}  # sources of seeds → quantile of χ² at which each variance is put for df
IMAGES, CROSSED = "images", "images and seeds"
SIDES = ("a", "b")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """AUROC of a minus AUROC of b, and what may be said of it.

    ``low`` and ``high`` speak of other images and seeds where ``covers`` says so, of other images alone where a side
    has one seed. ``detectable`` is the difference that would have been found with 80 % power. ``family`` counts the
    comparisons that ``p`` (Holm), ``low``, ``high`` and ``detectable`` (Bonferroni, all together) are adjusted for.
    """

    difference: float
    low: float
    high: float
    p: float
    se: float
    df: float
    detectable: float
    covers: str
    n_normal: int
    n_anomalous: int
    seeds_a: int
    seeds_b: int
    margin: float = MARGIN
    level: float = LEVEL
    family: int = 1

    @property
    def verdict(self) -> str:
        """Return "undecided" (one seed), "ahead", "behind", "equal" or "open", of a against b."""
        if self.covers != CROSSED:
            return "undecided"
        if self.p < 1 - self.level:
            return "ahead" if self.difference > 0 else "behind"
        return "equal" if self._within_margin else "open"

    @property
    def swapped(self) -> Comparison:
        """Return the comparison of b with a."""
        return dataclasses.replace(
            self, difference=-self.difference, low=-self.high, high=-self.low, seeds_a=self.seeds_b,
            seeds_b=self.seeds_a,
        )  # fmt: skip

    @property
    def _within_margin(self) -> bool:
        return -self.margin < self.low and self.high < self.margin

    def reading(self, a: str = "a", b: str = "b") -> str:
        """Return the verdict in words; with one seed on a side it claims nothing about the detectors."""
        if self.verdict == "undecided":
            return "undecided: one seed, so the interval covers the images only, not another training"
        if self.verdict == "equal":
            return f"equal within {self.margin:g}"
        if self.verdict == "open":
            return f"not told apart; {seen_from(self.detectable)}"
        first = f"{a if self.verdict == 'ahead' else b} is ahead"
        if self._within_margin:
            return f"{first}, by less than {self.margin:g}"
        unsized = self.low <= 0 <= self.high  # only in a family: Holm's later steps ask less than Bonferroni's interval
        return f"{first}; by how much is open, for the joint interval holds 0" if unsized else first


def seen_from(difference: float) -> str:
    """Say which differences of AUROC could have been seen; none is larger than 1."""
    if difference > 1:
        return "too few seeds to see any difference"
    return f"differences from {difference:.3f} could have been seen"


class _Parts(NamedTuple):
    """Variance of the mean difference: through the images, and (variance, df) of each source of seeds."""

    images: float
    seeds: tuple[tuple[float, int], ...]


class _Test(NamedTuple):
    """What a difference, its standard error and their degrees of freedom say."""

    difference: float
    low: float
    high: float
    p: float
    detectable: float


def compare_detectors(
    a: np.ndarray,
    b: np.ndarray,
    anomalous: np.ndarray,
    *,
    paired_seeds: bool,
    fixed: Collection[str] = (),
    margin: float = MARGIN,
    level: float = LEVEL,
) -> Comparison:
    """Compare the mean AUROC of scores a (S_a, N) with that of b (S_b, N) on the same images, anomalous (N,).

    ``paired_seeds``: row s of a and row s of b share their draws. ``fixed`` names the sides ("a", "b") that draw
    nothing, as a trivial control does: their one row is what every seed would give.
    """
    if not 0 < margin < 1 or not 0 < level < 1:
        raise UsageError(f"margin={margin} and level={level} must lie in (0, 1).")
    if not set(fixed) <= set(SIDES):
        raise UsageError(f"fixed={tuple(fixed)} may name the sides 'a' and 'b' only.")
    sides = [_rows(a, "a"), _rows(b, "b")]
    seeds = [len(rows) for rows in sides]
    one_seed = any(n == 1 and side not in fixed for n, side in zip(seeds, SIDES, strict=True))
    if not one_seed:
        sides = [_repeated(x, other, s in fixed) for x, other, s in zip(sides, sides[::-1], SIDES, strict=True)]
    areas, covariance, counts = _areas(np.concatenate(sides), anomalous)
    areas_a, areas_b = np.split(areas, [len(sides[0])])
    if one_seed:
        parts = _Parts(_of_means(covariance, len(areas_a)), ())
    elif paired_seeds:
        parts = _paired(areas_a, areas_b, covariance)
    else:
        parts = _independent(areas_a, areas_b, covariance)
    variance, df = _satterthwaite(parts)
    difference = float(areas_a.mean() - areas_b.mean())
    if variance == 0 and difference != 0:
        raise DataError(
            "every image says the same of the difference, so neither an interval nor a p value can be given."
        )
    test = _tested(difference, math.sqrt(variance), df, level)
    return Comparison(
        **test._asdict(), se=math.sqrt(variance), df=df, covers=IMAGES if one_seed else CROSSED, n_normal=counts[1],
        n_anomalous=counts[0], seeds_a=seeds[0], seeds_b=seeds[1], margin=margin, level=level,
    )  # fmt: skip


def adjust(family: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons of one family adjusted for their number M.

    p is Holm's: the chance of any false "ahead" stays below 1 − level. The intervals are Bonferroni's, each at
    1 − (1 − level) / M: all M hold their differences together with probability ``level`` or more.
    """
    adjusted = []
    for one, p in zip(family, holm([c.p for c in family]), strict=True):
        joint = _tested(one.difference, one.se, one.df, 1 - (1 - one.level) / len(family))
        adjusted.append(dataclasses.replace(one, **(joint._asdict() | {"p": float(p), "family": len(family)})))
    return adjusted


# --- input --------------------------------------------------------------------------------------------


def _rows(scores: np.ndarray, side: str) -> np.ndarray:
    scores = np.atleast_2d(np.asarray(scores, np.float64))
    if scores.ndim != 2 or not scores.size:
        raise DataError(f"scores {side} of shape {scores.shape} cannot be compared; they must be (seeds, images).")
    return scores


def _repeated(rows: np.ndarray, other: np.ndarray, fixed: bool) -> np.ndarray:
    """Return a fixed side's one row as often as the other side has rows: no spread over seeds, as is the case."""
    return np.repeat(rows, max(2, len(other)), axis=0) if fixed and len(rows) == 1 else rows


def _areas(rows: np.ndarray, anomalous: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Return the AUROC of each row (S,), their covariance through the images (S, S), and P and Q."""
    classes = [by_class(row, anomalous) for row in rows]
    abnormal, normal = (np.stack(scores) for scores in zip(*classes, strict=True))
    shares = placements(abnormal, normal)
    counts = abnormal.shape[1], normal.shape[1]
    if min(counts) < 2:
        raise DataError(
            f"{counts[0]} anomalous and {counts[1]} normal images: an interval over images needs two of each."
        )
    covariance = sum(np.atleast_2d(np.cov(part)) / part.shape[1] for part in shares)
    return shares[0].mean(1), covariance, counts


# --- variance -----------------------------------------------------------------------------------------


def _between(covariance: np.ndarray) -> float:
    """Return the mean covariance of different seeds (r, r) → scalar, through images they share."""
    r = len(covariance)
    return float((covariance.sum() - np.trace(covariance)) / (r * (r - 1)))


def _of_means(covariance: np.ndarray, split: int) -> float:
    """Return the variance through the images of mean(first ``split``) − mean(rest)."""
    n = len(covariance)
    weights = np.where(np.arange(n) < split, 1 / split, -1 / (n - split))
    return max(0.0, float(weights @ covariance @ weights))


def _paired(a: np.ndarray, b: np.ndarray, covariance: np.ndarray) -> _Parts:
    r = len(a)
    if len(b) != r:
        raise UsageError(f"{r} and {len(b)} seeds cannot be paired; give the seeds both sides have, in one order.")
    aa, ab, bb = covariance[:r, :r], covariance[:r, r:], covariance[r:, r:]
    return _Parts(max(0.0, _between(aa + bb - ab - ab.T)), ((float(np.var(a - b, ddof=1)) / r, r - 1),))


def _independent(a: np.ndarray, b: np.ndarray, covariance: np.ndarray) -> _Parts:
    r = len(a)
    shared = _between(covariance[:r, :r]) + _between(covariance[r:, r:]) - 2 * float(covariance[:r, r:].mean())
    seeds = tuple((float(np.var(x, ddof=1)) / len(x), len(x) - 1) for x in (a, b))
    return _Parts(max(0.0, shared), seeds)


def _satterthwaite(parts: _Parts) -> tuple[float, float]:
    """Return the variance and its degrees of freedom; the images are many, so only the seeds limit them.

    For df alone a seed variance is put where ``UPPER`` says: where few seeds agree by chance, the variance comes out
    small and, as found, would pass for certain, too (3 paired seeds: up to 7.8 % errors at 5 %; so 4.3 to 5.8 %).
    """
    variance = parts.images + sum(part for part, _ in parts.seeds)
    spread = [(part, df) for part, df in parts.seeds if part > 0]
    if not spread:
        return variance, math.inf
    bounds = [(part * df / float(chi2.ppf(UPPER[len(spread)], df)), df) for part, df in spread]
    return variance, (parts.images + sum(part for part, _ in bounds)) ** 2 / sum(part**2 / df for part, df in bounds)


def _tested(difference: float, se: float, df: float, level: float) -> _Test:
    reach = float(t.ppf((1 + level) / 2, df))
    p = 2 * float(t.sf(abs(difference) / se, df)) if se > 0 else float(difference == 0)
    detectable = (reach + float(t.ppf(POWER, df))) * se
    return _Test(difference, difference - reach * se, difference + reach * se, p, detectable)
