"""Decisions with a guarantee, from healthy images alone: conformal p values and thresholds for a false-alarm rate.

With n healthy calibration images, exchangeable with the healthy images to come (none was fitted on or chosen by),

    p(s) = (1 + #{i: s_i ≥ s}) / (n + 1),    P(p ≤ α) ≤ α    for every α (Vovk et al., 2005),

ties counted against the alarm. The rate that one calibration realises is Beta(k, n + 1 − k) with k = ⌊α (n + 1)⌋, or
smaller where scores tie. With several images a patient the images are not exchangeable, but the patients are: each of
G patients then weighs 1, shared among its images (Lee, Barber and Willett, 2023), and the guarantee speaks of an image
drawn from a new healthy patient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import beta, betabinom

from diawork.base.errors import DataError, UsageError
from diawork.evaluation.metrics import finite

FALSE_ALARMS = 0.05  # share of healthy images, where nobody says another
ROUNDING = 1e-9  # of α (n + 1): 0.29 · 100 is 29, not 28.999…
REALISED = 0.95  # share of calibrations whose realised rate the stated range holds


@dataclass(frozen=True)
class Calibration:
    """Healthy scores (n,) in ascending order, the weight of each, and the number of units: images, or patients."""

    scores: np.ndarray
    weights: np.ndarray
    units: int
    unit: str = "image"

    @property
    def finest(self) -> float:
        """Return the smallest p value there can be, and so the smallest false-alarm rate: 1 / (units + 1)."""
        return 1 / (self.units + 1)

    def weight_at_least(self, scores: np.ndarray) -> np.ndarray:
        """Return the weight (M,) of the calibration images that score at or above each of scores (M,)."""
        above = np.append(np.cumsum(self.weights[::-1])[::-1], 0.0)
        return above[np.searchsorted(self.scores, scores, "left")]

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return the conformal p value (M,) of scores (M,): small where few healthy images score as high."""
        return (1 + self.weight_at_least(finite(scores))) / (self.units + 1)


class Alarm(NamedTuple):
    """A threshold (alarm: score > threshold) and what it guarantees.

    ``rate`` ≤ ``alpha`` is the expected share of false alarms; ``low`` to ``high`` holds the share that 95 % of
    calibrations realise (NaN by patient, where its distribution is not known). With ``confidence``, alpha bounds the
    realised share itself in that share of calibrations.
    """

    threshold: float
    alpha: float
    rate: float
    low: float
    high: float
    units: int
    unit: str
    confidence: float | None

    @property
    def guarantee(self) -> str:
        """Return the guarantee as one sentence."""
        healthy = f"{self.units:,} healthy {self.unit}s that had no part in fitting"
        if self.confidence is not None:
            return (
                f"With {100 * self.confidence:g} % confidence, at most {_percent(self.alpha)} of further healthy "
                f"images raise an alarm (from {healthy}, if those to come are like them)."
            )
        of = "further healthy images" if self.unit == "image" else "images of further healthy patients"
        said = f"On average over calibrations, at most {_percent(self.rate)} of {of} raise an alarm"
        own = f"; this calibration's own share is at most {_percent(self.high)} with 97.5 % confidence"
        return f"{said}{own if self.unit == 'image' else ''} (from {healthy}, if those to come are like them)."


def calibrate(healthy: np.ndarray, groups: np.ndarray | None = None) -> Calibration:
    """Return the calibration by healthy scores (n,); ``groups`` (n,) names each image's patient, where known."""
    healthy = finite(healthy)
    order = np.argsort(healthy, kind="stable")
    if groups is None:
        return Calibration(healthy[order], np.ones(len(healthy)), len(healthy))
    groups = np.asarray(groups)
    if groups.shape != healthy.shape:
        raise DataError(f"{groups.shape} patients do not fit {healthy.shape} scores; both must be (n,).")
    _, patient, size = np.unique(groups, return_inverse=True, return_counts=True)
    return Calibration(healthy[order], (1 / size[patient])[order], len(size), "patient")


def alarm(calibration: Calibration, alpha: float, *, confidence: float | None = None) -> Alarm:
    """Return the lowest threshold whose false alarms are guaranteed to be at most ``alpha`` of healthy images.

    ``confidence``: None bounds the mean over calibrations; 0.95 bounds this calibration's own rate in 95 % of cases.
    """
    if not 0 < alpha < 1 or (confidence is not None and not 0 < confidence < 1):
        raise UsageError(f"alpha={alpha} and confidence={confidence} must lie in (0, 1).")
    if confidence is not None and calibration.unit != "image":
        raise UsageError(
            f"confidence={confidence} needs images that are their own units; by {calibration.unit} only the mean over "
            "calibrations is bounded.", hint="Leave confidence out, or calibrate with one image a patient.",
        )  # fmt: skip
    n, by_patient = calibration.units, calibration.unit == "patient"
    if confidence is None:
        k = alpha * (n + 1)
    else:  # the largest k with P(Beta(k, n + 1 − k) ≤ alpha) ≥ confidence; 0 where there is none
        ranks = np.arange(1, n + 1)
        k = int((beta.cdf(alpha, ranks, n + 1 - ranks) >= confidence).sum())
    if k < 1 - ROUNDING:
        raise UsageError(_too_few(calibration, alpha, confidence))
    rank = math.floor(k + ROUNDING)
    allowed = (k if by_patient else rank) - 1  # weight of healthy images that may score at or above an alarm
    above = calibration.weight_at_least(calibration.scores)
    threshold = float(calibration.scores[above > allowed + ROUNDING].max())
    low, high = (math.nan, math.nan) if by_patient else realised(n, rank)
    return Alarm(threshold, alpha, alpha if by_patient else rank / (n + 1), low, high, n, calibration.unit, confidence)


def realised(n: int, k: int, share: float = REALISED) -> tuple[float, float]:
    """Return the central range of the false-alarm rate that a calibration with n images and rank k realises."""
    ends = beta(k, n + 1 - k).ppf([(1 - share) / 2, (1 + share) / 2])
    return float(ends[0]), float(ends[1])


def images_needed(alpha: float, confidence: float | None = None) -> int:
    """Return how many healthy images (or patients) a false-alarm rate takes: 1/(n + 1) ≤ α, or (1 − α)ⁿ ≤ 1 − conf."""
    if confidence is None:
        return max(1, math.ceil(1 / alpha - 1 - ROUNDING))
    return math.ceil(math.log(1 - confidence) / math.log(1 - alpha) - ROUNDING)


def _too_few(calibration: Calibration, alpha: float, confidence: float | None) -> str:
    least = calibration.finest if confidence is None else 1 - (1 - confidence) ** (1 / calibration.units)
    sure = "" if confidence is None else f" with {100 * confidence:g} % confidence"
    return (
        f"a false-alarm rate of {alpha:g} is beyond {calibration.units} healthy {calibration.unit}s{sure}: the "
        f"smallest they reach is {least:.4g}, and {alpha:g} takes {images_needed(alpha, confidence):,} of them."
    )


class Batch(NamedTuple):
    """Which images of a batch stand out: those with p ≤ ``p``, ``flagged`` of them, and what holds of them."""

    p: float
    flagged: int
    sentence: str


def false_discoveries(p: np.ndarray, calibration: Calibration, rate: float = 0.1) -> Batch:
    """Flag images by their conformal p values (m,) so that few flagged ones are healthy (Benjamini and Hochberg, 1995).

    The share of healthy ones among those flagged is at most ``rate`` on average (Bates et al., 2023, Theorem 2).
    """
    p, (m, n) = np.sort(p), (len(p), calibration.units)
    passing = np.flatnonzero(p <= rate * np.arange(1, m + 1) / m + ROUNDING)
    flagged = int(passing[-1]) + 1 if passing.size else 0
    least = math.ceil(m / (rate * (n + 1)) - ROUNDING)  # images at the smallest p there can be
    limit = float(p[flagged - 1]) if flagged else 0.0
    those = f"{flagged:,} of {m:,} images (p ≤ {limit:.3g})" if flagged else f"None of {m:,} images"
    said = (
        f"{those} flagged: on average at most {_percent(rate)} of flagged images are healthy (false-discovery rate). "
    )
    said += f"It holds if healthy images to come are like the {n:,} healthy {calibration.unit}s of the calibration"
    said += "." if calibration.unit == "image" else "; for several images a patient no proof is known."
    if least > m:
        said += f" With so few of them nothing can be flagged here: that takes {math.ceil(1 / rate) - 1:,} or more."
    elif least > 1:
        said += f" At least {least:,} images must score above all of them before any is flagged."
    return Batch(limit, flagged, said)


# --- does the guarantee hold where the images come from elsewhere? ------------------------------------


class AlarmCheck(NamedTuple):
    """False alarms counted on healthy images with labels, their exact interval, and p for "at most alpha"."""

    alarms: int
    n: int
    rate: float
    low: float
    high: float
    p: float
    sentence: str


def check_alarm(made: Alarm, healthy: np.ndarray) -> AlarmCheck:
    """Count the false alarms among healthy scores (m,) that took no part, and say whether the guarantee held.

    p is the chance of so many alarms, or more, if these images were like the calibration's: the count is then
    beta-binomial (by patient about so, as if each gave one image).
    """
    healthy = finite(healthy)
    m, alarms = len(healthy), int((healthy > made.threshold).sum())
    k = math.floor(made.rate * (made.units + 1) + ROUNDING)
    p = float(betabinom(m, k, made.units + 1 - k).sf(alarms - 1))
    low = float(beta.ppf(0.025, alarms, m - alarms + 1)) if alarms else 0.0
    high = float(beta.ppf(0.975, alarms + 1, m - alarms)) if alarms < m else 1.0
    verdict = (
        "more than chance allows: these images are not like the healthy ones of the calibration"
        if p < 0.05 else "in keeping with the guarantee"
    )  # fmt: skip
    sentence = (
        f"{alarms} of {m} healthy images raise an alarm, {_percent(alarms / m)} (95 % interval {_percent(low)} to "
        f"{_percent(high)}), {_percent(made.alpha)} being allowed: {verdict}."
    )
    return AlarmCheck(alarms, m, alarms / m, low, high, p, sentence)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
