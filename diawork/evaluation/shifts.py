"""Is a shift a task on these images? Answered from healthy images before anything is trained.

A shift that maps every image onto itself (a symmetry of the organ) leaves nothing to tell apart, and one that a linear
map of thumbnails names at once need not teach fine structure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diawork.base.errors import DataError, NumericError
from diawork.evaluation.collapse import NO_TASK, TRIVIAL

RIDGE = 0.1  # of the rows' number, on standardised pixels
SYMMETRIC = 0.1  # a shift that moves images by less than this share of what lies between two of them is near a symmetry


@dataclass(frozen=True)
class ShiftProbe:
    """What a linear probe of thumbnails says of K shifts.

    ``accuracy``: share of held-out views whose shift it names, its standard error by image. ``moved`` (K − 1,): mean
    squared change by each shift but the first, as a share of that between two healthy images.
    """

    accuracy: float
    se: float
    moved: tuple[float, ...]
    n: int

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> ShiftProbe:
        """Return the probe that a run's result keeps."""
        moved = tuple(map(float, recorded["moved"]))
        return cls(float(recorded["accuracy"]), float(recorded["se"]), moved, int(recorded["n"]))

    @property
    def chance(self) -> float:
        """Return what guessing names rightly."""
        return 1 / (len(self.moved) + 1)

    def sentence(self, shift: str) -> str:
        """Return what a page says of the shift before training."""
        moved = ", ".join(f"{share:.2f}" for share in self.moved)
        return (
            f"Before training, a linear probe of thumbnails named {self.accuracy:.0%} ± {self.se:.0%} (standard error) "
            f"of the {shift} shifts of {self.n} held-out healthy images (chance {self.chance:.0%}); they move an image "
            f"by {moved} of the squared distance between two healthy images. {self._reading}"
        )

    @property
    def _reading(self) -> str:
        if min(self.moved) < SYMMETRIC:
            nearest = int(np.argmin(self.moved)) + 1
            return f"Shift {nearest} is near a symmetry of these images, so it is hardly a task."
        if self.accuracy - 1.96 * self.se < self.chance + NO_TASK:
            return "The probe hardly tells the shifts apart; a network may, so look at its shift classifier."
        if self.accuracy >= TRIVIAL:
            return "The task is easy for a linear map, so it need not teach fine structure."
        return "The shifts are a task, and not one that a linear map solves."


def shift_probe(known: np.ndarray, held_out: np.ndarray) -> ShiftProbe:
    """Fit a ridge classifier to thumbnails known (K, N, P) under K shifts and try it on held_out (K, M, P)."""
    known, held_out = (np.asarray(views, np.float64) for views in (known, held_out))
    if known.ndim != 3 or held_out.ndim != 3 or known.shape[::2] != held_out.shape[::2] or len(known) < 2:
        raise DataError(f"views {known.shape} and {held_out.shape} do not fit; wanted (K, N, P) and (K, M, P), K ≥ 2.")
    if min(known.shape[1], held_out.shape[1]) < 2:
        raise DataError("a probe of shifts needs two images or more on either side.")
    if not (np.isfinite(known).all() and np.isfinite(held_out).all()):
        raise NumericError("the thumbnails hold values that are not finite.")
    right = _named(known, held_out) == np.arange(len(known))[:, None]
    share = right.mean(0)
    between = np.square(held_out[0] - np.roll(held_out[0], 1, axis=0)).sum(-1).mean()
    if between == 0:
        raise DataError("all held-out healthy images are equal, so that no distance lies between two of them.")
    moved = np.square(held_out[1:] - held_out[0]).sum(-1).mean(1) / between
    se = float(share.std(ddof=1)) / math.sqrt(len(share))
    return ShiftProbe(float(share.mean()), se, tuple(moved.tolist()), len(share))


def _named(known: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return the shift (K, M) that ridge regression onto one-hot labels names for each held-out view."""
    rows = known.reshape(-1, known.shape[-1])
    mean, sd = rows.mean(0), rows.std(0)
    sd[sd == 0] = 1.0
    x, labels = (rows - mean) / sd, np.repeat(np.eye(len(known)), known.shape[1], axis=0)
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (labels - labels.mean(0)))
    return (((held_out - mean) / sd) @ weights).argmax(-1)
