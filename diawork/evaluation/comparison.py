"""Is detector a ahead of detector b: for other images and other trainings, not for those at hand alone?

Images and seeds are crossed: every seed scores every image. The difference of two mean AUROCs has the variance

    C + Σ MS / r,    C: through the images that both sides share,    MS: over the r seeds of each side,

the model of Obuchowski and Rockette (1995) with seeds in the place of readers: C from the structural components of
DeLong et al. (1988), degrees of freedom by Satterthwaite, with an upper bound of MS in its place (Hillis, 2007).

Two seeds say little of MS. There it is moderated (Smyth, 2004): on the logit scale σ² ~ (D0 S0² + s²) / χ²_{D0 + 1},
S0 from earlier reports. Where two seeds scatter by more than ``SCATTER``, nothing is said of their detector.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import chi2, norm, t

from diawork.base.errors import DataError, UsageError
from diawork.evaluation.metrics import by_class, holm, placements

MARGIN = 0.01  # of AUROC: detectors that differ by less are equal for every purpose named here
LEVEL = 0.95
POWER = 0.8  # of the difference that could have been seen
UPPER = {1: 0.35, 2: 0.6}  # sources of seeds → quantile of χ² at which each variance is put for df
PAIRED = 4  # seeds from which sides that share their draws are paired; with fewer, unpaired is narrower
S0, D0, CELLS = 0.071, 1, 51  # a seed's standard deviation on the logit scale, its weight, and where it is from
SCATTER = 4 * S0
GRID = 100  # points of each χ² in a mixture
NONE = 1e-15  # in the place of no variance
IMAGES, CROSSED, BORROWED, SCATTERED = "images", "images and seeds", "images and borrowed variance of seeds", "nothing"
SIDES = ("a", "b")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """AUROC of a minus AUROC of b, its own 95 % interval, and what may be said of it.

    ``covers``: what interval and p speak of. ``p_equal``: of "the two differ by ``MARGIN`` or more". ``detectable``:
    the difference found with 80 % power. ``family`` counts the comparisons that both p (Holm) and ``detectable``
    (Bonferroni) are adjusted for. ``areas``: the AUROC of each seed of a and of b. ``doubts``: why nothing may be
    said to be ahead of a, and of b.
    """

    difference: float
    low: float
    high: float
    p: float
    p_equal: float
    detectable: float
    covers: str
    n_normal: int
    n_anomalous: int
    areas: tuple[tuple[float, ...], tuple[float, ...]]
    family: int = 1
    doubts: tuple[str, str] = ("", "")

    @property
    def verdict(self) -> str:
        """Return "undecided" (one seed), "withheld" (a doubt), "ahead", "behind", "equal" or "open", of a."""
        if self.covers == SCATTERED or {"ahead": self.doubts[1], "behind": self.doubts[0]}.get(self.found):
            return "withheld"
        return "undecided" if self.covers == IMAGES else self.found

    @property
    def found(self) -> str:
        """Return "ahead", "behind", "equal" or "open"; with one seed it speaks of the trained models alone."""
        if self.p < 1 - LEVEL:
            return "ahead" if self.difference > 0 else "behind"
        return "equal" if self.p_equal < 1 - LEVEL else "open"

    @property
    def swapped(self) -> Comparison:
        """Return the comparison of b with a."""
        (one, two), (doubt, another) = self.areas, self.doubts
        return dataclasses.replace(
            self, difference=-self.difference, low=-self.high, high=-self.low, areas=(two, one), doubts=(another, doubt)
        )

    def reading(self, a: str = "a", b: str = "b") -> str:
        """Return the verdict in words; with one seed on a side it claims nothing about the detectors."""
        sides = list(zip((a, b), self.areas, self.doubts, strict=True))
        if self.covers == SCATTERED:
            twice = [(name, *areas) for name, areas, _ in sides if len(areas) == 2]
            runs = [f"{name} {one:.3f} and {two:.3f}" for name, one, two in twice]
            return f"no verdict: two seeds that scatter ({', '.join(runs)})"
        if self.verdict == "withheld":
            return f"no verdict: {', '.join(f'{name}, {doubt}' for name, _, doubt in sides if doubt)}"
        words = {
            "ahead": f"{a} is ahead", "behind": f"{b} is ahead", "equal": f"equal within {MARGIN:g}",
            "open": f"not told apart; {seen_from(self.detectable)}",
        }[self.found]  # fmt: skip
        if self.found in ("ahead", "behind") and self.p_equal < 1 - LEVEL:
            words += f", by less than {MARGIN:g}"
        return f"one seed, so of these trained models alone: {words}" if self.verdict == "undecided" else words


def seen_from(difference: float) -> str:
    """Say which differences of AUROC could have been seen."""
    return f"a difference of {difference:.3f} or more would have shown"


def compare_detectors(
    a: np.ndarray, b: np.ndarray, anomalous: np.ndarray, *, paired_seeds: bool, fixed: Collection[str] = (),
    family: int = 1,
) -> Comparison:  # fmt: skip
    """Compare the mean AUROC of scores a (S_a, N) with that of b (S_b, N) on the same images, anomalous (N,).

    ``paired_seeds``: row s of a and row s of b share their draws. ``fixed`` names the sides ("a", "b") that draw
    nothing, as a trivial control does: their one row is what every seed would give. ``family``: how many are compared.
    """
    if not set(fixed) <= set(SIDES):
        raise UsageError(f"fixed={tuple(fixed)} may name the sides 'a' and 'b' only.")
    sides = [_rows(a, "a"), _rows(b, "b")]
    drawn = [i for i, side in enumerate(SIDES) if side not in fixed]
    fewest = min((len(sides[i]) for i in drawn), default=PAIRED)
    if paired_seeds and len(drawn) == 2 and len(sides[0]) != len(sides[1]):
        counts = f"{len(sides[0])} and {len(sides[1])}"
        raise UsageError(f"{counts} seeds cannot be paired; give the seeds both sides have, in one order.")
    found = _areas(sides, anomalous)
    difference = float(found.areas[0].mean() - found.areas[1].mean())
    if difference and not found.covariance.any() and not any(map(np.ptp, found.areas)):
        raise DataError("every image says the same of the difference, so neither interval nor p value can be given.")
    if fewest == 1:
        covers, test = IMAGES, _tested(difference, _student(found.of_means, math.inf), family)
    elif fewest == 2:
        covers, test = _borrowed(found, drawn, family)
    else:
        paired = paired_seeds and len(drawn) == 2 and fewest >= PAIRED
        covers, test = CROSSED, _tested(difference, _student(*_satterthwaite(*_crossed(found, drawn, paired))), family)
    areas = tuple(found.areas[0].tolist()), tuple(found.areas[1].tolist())
    return Comparison(
        difference, **test._asdict(), covers=covers, n_normal=found.normal, n_anomalous=found.anomalous, areas=areas,
        family=family,
    )  # fmt: skip


def adjust(family: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with both p values adjusted for their number (Holm): any false verdict is rarer than 5 %.

    One that was withheld (p NaN) counts as one that found nothing.
    """
    adjusted = [holm(np.nan_to_num([getattr(c, name) for c in family], nan=1.0)) for name in ("p", "p_equal")]
    return [
        c if math.isnan(c.p) else dataclasses.replace(c, p=float(p), p_equal=float(equal), family=len(family))
        for c, p, equal in zip(family, *adjusted, strict=True)
    ]


def over_trainings(areas: np.ndarray, ends: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a detector's AUROC from those of r ≥ 2 seeds (r,) and their own intervals (r, 2).

    Each of the ``ends`` speaks of the images alone. (NaN, NaN) where the seeds scatter, or a seed has no interval.
    """
    logits, reach = logit(np.clip(areas, 1e-9, 1 - 1e-9)), logit(np.clip(ends, 1e-9, 1 - 1e-9))
    if not np.std(logits, ddof=1) <= SCATTER or np.isnan(reach).any():
        return math.nan, math.nan
    images = float(np.square(np.diff(reach) / (2 * norm.ppf((1 + LEVEL) / 2))).mean())
    half = _Mixture(images, [_moderated(logits)]).ppf((1 + LEVEL) / 2)
    return float(expit(logits.mean() - half)), float(expit(logits.mean() + half))


# --- input --------------------------------------------------------------------------------------------


class _Test(NamedTuple):
    """What a difference and the law of its error say."""

    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_equal: float = math.nan
    detectable: float = math.nan


class _Found(NamedTuple):
    """AUROCs of each side's seeds, their covariance through the images (S_a + S_b, S_a + S_b), and the counts."""

    areas: list[np.ndarray]
    covariance: np.ndarray
    anomalous: int
    normal: int

    def parts(self, slopes: Sequence[float] = (1, 1)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the covariances of a's seeds, of a's with b's, and of b's, each side's AUROC times its slope."""
        k, (one, two) = len(self.areas[0]), slopes
        c = self.covariance
        return c[:k, :k] * one**2, c[:k, k:] * one * two, c[k:, k:] * two**2

    @property
    def of_means(self) -> float:
        """Return the variance through the images of the difference of means."""
        aa, ab, bb = self.parts()
        return max(0.0, float(aa.mean() + bb.mean() - 2 * ab.mean()))

    def shared(self, slopes: Sequence[float] = (1, 1)) -> float:
        """Return the same for seeds without end."""
        aa, ab, bb = self.parts(slopes)
        return max(0.0, _between(aa) + _between(bb) - 2 * float(ab.mean()))


def _rows(scores: np.ndarray, side: str) -> np.ndarray:
    scores = np.atleast_2d(np.asarray(scores, np.float64))
    if scores.ndim != 2 or not scores.size:
        raise DataError(f"scores {side} of shape {scores.shape} cannot be compared; they must be (seeds, images).")
    return scores


def _areas(sides: Sequence[np.ndarray], anomalous: np.ndarray) -> _Found:
    classes = [by_class(row, anomalous) for side in sides for row in side]
    abnormal, normal = (np.stack(scores) for scores in zip(*classes, strict=True))
    shares = placements(abnormal, normal)
    p, q = abnormal.shape[1], normal.shape[1]
    if min(p, q) < 2:
        raise DataError(f"{p} anomalous and {q} normal images: an interval over images needs two of each.")
    covariance = sum(np.atleast_2d(np.cov(part)) / part.shape[1] for part in shares)
    return _Found(np.split(shares[0].mean(1), [len(sides[0])]), covariance, p, q)


def _between(covariance: np.ndarray) -> float:
    """Return the mean covariance of different seeds (r, r) → scalar; of one row, which draws nothing, its variance."""
    r = len(covariance)
    return float((covariance.sum() - np.trace(covariance)) / (r * (r - 1)) if r > 1 else covariance[0, 0])


# --- three seeds or more: one t distribution ------------------------------------------------------------


def _crossed(found: _Found, drawn: Sequence[int], paired: bool) -> tuple[float, list[tuple[float, int]]]:
    """Return the variance through the images, and (variance, df) of each source of seeds."""
    if paired:
        aa, ab, bb = found.parts()
        changes = found.areas[0] - found.areas[1]
        return max(0.0, _between(aa + bb - ab - ab.T)), [(float(changes.var(ddof=1)) / len(changes), len(changes) - 1)]
    sides = [found.areas[i] for i in drawn]
    return found.shared(), [(float(x.var(ddof=1)) / len(x), len(x) - 1) for x in sides]


def _satterthwaite(images: float, seeds: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return the variance and its degrees of freedom; the images are many, so only the seeds limit them.

    For df alone a seed variance is put where ``UPPER`` says: where few seeds agree by chance, the variance comes out
    small and, as found, would pass for certain, too (3 seeds: up to 7.8 % errors at 5 %; so 4.3 to 5.8 %).
    """
    bounds = [(part * df / float(chi2.ppf(UPPER[len(seeds)], df)), df) for part, df in seeds]
    limited = sum(part**2 / df for part, df in bounds)
    df = (images + sum(part for part, _ in bounds)) ** 2 / limited if limited else math.inf
    return images + sum(part for part, _ in seeds), df


def _student(variance: float, df: float) -> Any:
    return t(df, scale=max(math.sqrt(variance), NONE))


# --- two seeds: a variance borrowed from earlier reports --------------------------------------------------


class _Mixture:
    """Law of an error: normal through the images, and through each of the ``seeds`` with variance scale · df / χ²_df.

    ``seeds`` holds (scale, df).
    """

    def __init__(self, images: float, seeds: Sequence[tuple[float, int]]) -> None:
        self.variance, weight = np.full(1, images), np.ones(1)
        middles = (np.arange(GRID) + 0.5) / GRID  # cubed: finer where χ² is small, and so the variance large
        for scale, df in seeds:
            self.variance = np.add.outer(self.variance, scale * df / chi2.ppf(middles**3, df)).ravel()
            weight = np.multiply.outer(weight, middles**2).ravel()
        self.weight = weight / weight.sum()

    def sf(self, x: float) -> float:
        """Return P(error > x)."""
        return float(self.weight @ norm.sf(x / np.sqrt(self.variance)))

    def ppf(self, q: float) -> float:
        """Return the error that a share ``q`` > ½ lies below."""
        return float(brentq(lambda x: self.sf(x) - (1 - q), 0, 1e6))


def _moderated(logits: np.ndarray) -> tuple[float, int]:
    """Return (scale, df) of the variance of the mean of r seeds' logits (r,)."""
    df = D0 + len(logits) - 1
    return (D0 * S0**2 + (len(logits) - 1) * float(logits.var(ddof=1))) / (df * len(logits)), df


def _borrowed(found: _Found, drawn: Sequence[int], family: int) -> tuple[str, _Test]:
    """Return what is covered and said, on the logit scale and back about the middle of both sides."""
    pairs = found.anomalous * found.normal
    logits = [logit((pairs * x + 0.5) / (pairs + 1)) for x in found.areas]  # half a pair from 0 and 1
    trained = [logits[i] for i in drawn]
    if max(float(x.std(ddof=1)) for x in trained) > SCATTER:
        return SCATTERED, _Test()
    one, two = (float(x.mean()) for x in logits)
    law = _Mixture(found.shared([1 / _slope(one), 1 / _slope(two)]), [_moderated(x) for x in trained])
    middle = (one + two) / 2
    return BORROWED, _tested(
        one - two, law, family, MARGIN / _slope(middle), lambda x: float(expit(middle + x / 2) - expit(middle - x / 2))
    )


def _slope(x: float) -> float:
    """Return dA / dx at A = expit(x)."""
    return float(expit(x) * expit(-x))


def _tested(
    x: float, law: Any, family: int, margin: float = MARGIN,
    area: Callable[[float], float] = lambda x: min(1.0, max(-1.0, x)),
) -> _Test:  # fmt: skip
    """Return what is said of a difference ``x`` with an error by ``law``.

    ``area`` turns a difference on the scale of ``x`` into one of AUROC, in [−1, 1]. p_equal is that of two one-sided
    tests at half the level each.
    """
    reach = float(law.ppf((1 + LEVEL) / 2))
    detectable = float(law.ppf(1 - (1 - LEVEL) / 2 / family)) + float(law.ppf(POWER))
    p, p_equal = (min(1.0, 2 * float(law.sf(distance))) for distance in (abs(x), margin - abs(x)))
    return _Test(area(x - reach), area(x + reach), p, p_equal, area(detectable))
