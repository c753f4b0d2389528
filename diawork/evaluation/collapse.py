"""Below chance, blind or collapsed: what an interval and a detector's features say, and the likely reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diawork.base.errors import DataError, NumericError
from diawork.evaluation.sentences import signed

COLLAPSED = 1e-5  # variance of unit feature vectors, 1 where they point everywhere; rounding to bf16 leaves 2e-7
NO_TASK = 0.1  # accuracy above chance that a shift classifier needs for its task to be one
TRIVIAL = 0.995  # accuracy from which the shifts are told apart whatever else an image shows
FOLLOWED = 0.7  # rank correlation from which a score is said to follow a statistic
CHANCE = 0.5


class Spread(NamedTuple):
    """How features fill their space: variance of the unit vectors in [0, 1], and effective dimensions."""

    variance: float
    dimensions: float


@dataclass(frozen=True)
class Facts:
    """What is known of a detector on healthy validation images; whatever is None is not known.

    ``shift_accuracy``: share of views whose shift, of ``shifts``, is named rightly. ``follows``: the image statistic
    that the score follows most, and their rank correlation.
    """

    shift_accuracy: float | None = None
    shifts: int | None = None
    features: Spread | None = None
    follows: tuple[str, float] | None = None


def verdict(low: float, high: float) -> str:
    """Return "below chance", "blind" or "notices" for an AUROC's interval."""
    if high < CHANCE:
        return "below chance"
    return "blind" if low <= CHANCE else "notices"


def feature_spread(features: np.ndarray) -> Spread:
    """Return how features (N, D) fill their space: 1 − |mean unit vector|², and (Σλ)² / Σλ² of their covariance."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise DataError(f"features of shape {features.shape} have no spread; wanted (N, D) with N ≥ 2.")
    if not np.isfinite(features).all():
        raise NumericError("the features hold values that are not finite.")
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    centred = unit - unit.mean(0)
    power = np.linalg.svd(centred, compute_uv=False) ** 2
    total = float(power.sum())
    return Spread(total / len(features), total**2 / float(np.square(power).sum()) if total > 0 else 0.0)


def collapse(features: Spread | None) -> str:
    """Return how features collapsed, as a sentence; empty where they did not or are not known.

    Healthy images may well lie close together: runs of AUROC 0.86 to 0.92 were measured at variances from 0.0007 and
    at 1.0 to 1.9 dimensions.
    """
    if features is None:
        return ""
    if features.variance < COLLAPSED:
        return f"All features point the same way (variance {features.variance:.1g} of 1): the encoder collapsed."
    return ""


def likely_reasons(facts: Facts) -> list[str]:
    """Return the likely reasons that a score sees nothing or the opposite, from what is known; one sentence each."""
    said = [collapse(facts.features)]
    if facts.shift_accuracy is not None and facts.shifts:
        accuracy, chance = facts.shift_accuracy, 1 / facts.shifts
        named = f"the shift classifier names {accuracy:.0%} of the shifts of healthy images (chance {chance:.0%})"
        if accuracy < chance + NO_TASK:
            said.append(f"A likely reason: {named}, so the shifts were no task and their part of the score is noise.")
        elif accuracy >= TRIVIAL:
            said.append(f"A likely reason: {named}, so the task was easy and need not have taught fine structure.")
    if facts.follows is not None and abs(facts.follows[1]) >= FOLLOWED:
        name, rho = facts.follows
        said.append(f"A likely reason: the score follows the image's {name} (rank correlation {signed(rho, 2)}).")
    said = [sentence for sentence in said if sentence]
    return said or ["None of the facts recorded about this detector gives a reason."]


def explain(name: str, low: float, high: float, facts: Facts) -> list[str]:
    """Return what a page says of an AUROC's interval on labelled images: nothing where it lies above chance."""
    found, collapsed = verdict(low, high), collapse(facts.features)
    if low == high == CHANCE:
        return [f"All scores of {name} are equal: it collapsed.", *([collapsed] if collapsed else [])]
    if found == "below chance":
        said = f"{name} is below chance (interval {low:.3f} to {high:.3f})"
        return [f"{said}: it scores anomalous images lower than healthy ones.", *likely_reasons(facts)]
    return [f"{name}: {collapsed}"] if collapsed else []
