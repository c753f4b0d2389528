"""Does dissolving remove more with larger t? Mean squared changes at several t, tested for falls between them.

Every image is dissolved at every t, so that a fall from t to t' > t is the mean over images of c_i(t) − c_i(t'), with
the spread of these differences as its noise. Each stretch on which the mean curve falls is tested by a one-sided t
test; as the stretches were picked by looking, p counts for all T (T − 1) / 2 pairs of steps (Bonferroni).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from diawork.base.errors import DataError, NumericError

LEVEL = 0.05


class Fall(NamedTuple):
    """A stretch on which the change falls: from step to step, by how much, its standard error, and p (adjusted)."""

    start: int
    end: int
    drop: float
    share: float  # of the change at its start
    se: float
    p: float

    @property
    def real(self) -> bool:
        """Whether sampling noise does not explain it."""
        return self.p < LEVEL


@dataclass(frozen=True)
class Strength:
    """Mean squared change (T,) at steps (T,), over n images, and the stretches on which it falls."""

    steps: np.ndarray
    mean: np.ndarray
    n: int
    falls: tuple[Fall, ...]

    @property
    def real_falls(self) -> tuple[Fall, ...]:
        """The falls that sampling noise does not explain."""
        return tuple(fall for fall in self.falls if fall.real)

    @property
    def monotone(self) -> bool:
        """Whether no fall is beyond sampling noise."""
        return not self.real_falls

    @property
    def sentence(self) -> str:
        """Return what a page says: where the change grows with t and where it does not."""
        first, last = int(self.steps[0]), int(self.steps[-1])
        basis = f"{self.n} images, mean squared change {self.mean[0]:.2g} to {self.mean[-1]:.2g}"
        if not self.falls:
            return f"Larger t changes more, at every step from t = {first} to {last} ({basis})."
        if self.monotone:
            worst = max(self.falls, key=lambda fall: fall.share)
            within = (
                f"its largest fall, {worst.share:.0%} from t = {worst.start} to {worst.end}, is within sampling noise"
            )
            return f"Between t = {first} and {last} no fall of the change is shown: {within} ({basis})."
        parts = [
            f"from t = {fall.start} to {fall.end} it falls by {fall.share:.0%} ({_ratio(fall)} standard errors)"
            for fall in self.real_falls
        ]
        return f"Larger t does not always change more: {', '.join(parts)} ({basis})."


def dissolving_strength(changes: np.ndarray, steps: np.ndarray) -> Strength:
    """Test whether mean squared changes (N, T) of N images at ascending steps (T,) grow with t."""
    changes, steps = np.asarray(changes, np.float64), np.asarray(steps)
    if changes.ndim != 2 or changes.shape[1:] != steps.shape or len(changes) < 2 or len(steps) < 2:
        raise DataError(f"changes {changes.shape} do not fit steps {steps.shape}; wanted (N, T) and (T,), N and T ≥ 2.")
    if not (np.diff(steps) > 0).all():
        raise DataError(f"steps {steps.tolist()} must ascend, as their changes do or do not.")
    if not np.isfinite(changes).all() or (changes < 0).any():
        raise NumericError("the changes must be finite and not negative.")
    mean = changes.mean(0)
    pairs = len(steps) * (len(steps) - 1) // 2
    falls = tuple(_fall(changes, steps, start, end, pairs) for start, end in _falling(mean))
    return Strength(steps, mean, len(changes), falls)


def _falling(mean: np.ndarray) -> list[tuple[int, int]]:
    """Return (start, end) of each stretch of mean (T,) that falls at every step."""
    down = np.diff(np.concatenate([[0], (np.diff(mean) < 0).astype(int), [0]]))
    return list(zip(np.flatnonzero(down == 1).tolist(), np.flatnonzero(down == -1).tolist(), strict=True))


def _fall(changes: np.ndarray, steps: np.ndarray, start: int, end: int, pairs: int) -> Fall:
    difference = changes[:, start] - changes[:, end]
    n, drop = len(difference), float(difference.mean())
    se = float(difference.std(ddof=1)) / math.sqrt(n)
    p = float(student.sf(drop / se, n - 1)) if se > 0 else 0.0
    share = drop / float(changes[:, start].mean())
    return Fall(int(steps[start]), int(steps[end]), drop, share, se, min(1.0, pairs * p))


def _ratio(fall: Fall) -> str:
    return f"{fall.drop / fall.se:.1f}" if fall.se > 0 else "∞"
