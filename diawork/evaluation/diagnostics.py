"""What can be said of a detector without labels: does it notice, did it collapse, and why; are its inputs a task?

Four parts: reasons (features, shifts, statistics), the self-check on pseudo-anomalies, the probe of shifts before
training, and whether dissolving removes more with larger t.

In the self-check image i and its pseudo-anomalies go together, so the interval of an AUROC Â resamples images: with
V_i the share of healthy images below pseudo-anomaly i, and W_i the share of pseudo-anomalies above healthy image i,
Var(Â) = Σ (V_i + W_i − 2 Â)² / (N (N − 1)) (Obuchowski, 1997), on the logit scale. The mean over kinds averages them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter
from scipy.special import expit, logit
from scipy.stats import norm, rankdata, spearmanr
from scipy.stats import t as student
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diawork.base.errors import DataError, NumericError, UsageError
from diawork.evaluation.metrics import finite, placements
from diawork.evaluation.sentences import signed

COLLAPSED = 1e-5  # variance of unit feature vectors, 1 where they point everywhere; rounding to bf16 leaves 2e-7
NO_TASK = 0.1  # accuracy above chance that a shift classifier needs for its task to be one
TRIVIAL = 0.995  # accuracy from which the shifts are told apart whatever else an image shows
FOLLOWED = 0.7  # rank correlation from which a score is said to follow a statistic
CHANCE = 0.5
LEVEL = 0.95
PERMUTATIONS = 9_999
RULES = ("pseudo", "val")  # what an epoch may be chosen by
EQUAL = 1e-6  # of the largest score: a smaller range is rounding
RIDGE = 0.1  # of the rows' number, on standardised pixels
SYMMETRIC = 0.1  # a shift that moves images by less than this share of what lies between two of them is near a symmetry
FALL_LEVEL = 0.05


class Spread(NamedTuple):
    """How features fill their space: variance of the unit vectors in [0, 1], and effective dimensions."""

    variance: float
    dimensions: float


@dataclass(frozen=True)
class Diagnostics:
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


def likely_reasons(facts: Diagnostics) -> list[str]:
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


def explain(name: str, low: float, high: float, facts: Diagnostics) -> list[str]:
    """Return what a page says of an AUROC's interval on labelled images: nothing where it lies above chance."""
    found, collapsed = verdict(low, high), collapse(facts.features)
    if low == high == CHANCE:
        return [f"All scores of {name} are equal: it collapsed.", *([collapsed] if collapsed else [])]
    if found == "below chance":
        said = f"{name} is below chance (interval {low:.3f} to {high:.3f})"
        return [f"{said}: it scores anomalous images lower than healthy ones.", *likely_reasons(facts)]
    return [f"{name}: {collapsed}"] if collapsed else []


# --- the check without labels -------------------------------------------------------------------------


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
    facts: Diagnostics

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


@dataclass(frozen=True)
class Kept:
    """What a page needs of the self-check that a run's result keeps; without one, nothing is known."""

    auroc: float = math.nan
    low: float = math.nan
    high: float = math.nan
    verdict: str = ""
    findings: tuple[str, ...] = ()
    facts: Diagnostics = Diagnostics()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Kept:
        """Read a record; where it keeps its rows, the words are today's, and an older one kept its words alone."""
        record = {**record, "facts": record.get("facts") or {"follows": record.get("follows")}}
        if "rows" in record:
            check = TypeAdapter(SelfCheck).validate_python(record)
            record |= {"verdict": check.verdict, "findings": check.findings()}
        return TypeAdapter(cls).validate_python(record)


def self_check(
    healthy: np.ndarray, pseudo: Mapping[tuple[str, float], np.ndarray], facts: Diagnostics | None = None
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
    # (V_i + W_i) / 2 (N,): what image i and its pseudo-anomaly bring to the AUROC, their mean
    shares = [np.mean(placements(values, healthy), axis=0) for values in scores.values()]
    joint = 1 - (1 - LEVEL) / len(scores)
    rows = tuple(
        Noticed(*key, *_interval(share, joint), float((np.sign(values - healthy) / 2 + 0.5).mean()))
        for (key, values), share in zip(scores.items(), shares, strict=True)
    )
    every = np.concatenate([healthy, *scores.values()])
    equal = bool(np.ptp(every) <= EQUAL * np.abs(every).max())
    return SelfCheck(rows, *_interval(np.mean(shares, axis=0), LEVEL), len(healthy), equal, facts or Diagnostics())


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


# --- are the shifts a task? ---------------------------------------------------------------------------
# A shift that maps every image onto itself (a symmetry of the organ) leaves nothing to tell apart, and one that a
# linear map of thumbnails names at once need not teach fine structure.


@dataclass(frozen=True)
class ShiftProbe:
    """What a linear probe of thumbnails says of K shifts.

    ``accuracy``: share of held-out views whose shift it names, its standard error by image. ``moved`` (K − 1,): mean
    squared change by each shift but the first, as a share of that between two healthy images. ``shift`` names them.
    """

    accuracy: float
    se: float
    moved: tuple[float, ...]
    n: int
    shift: str

    @property
    def chance(self) -> float:
        """Return what guessing names rightly."""
        return 1 / (len(self.moved) + 1)

    @property
    def sentence(self) -> str:
        """Return what a page says of the shift before training."""
        moved = ", ".join(f"{share:.2f}" for share in self.moved)
        return (
            f"Before training, a linear probe of thumbnails named {self.accuracy:.0%} ± {self.se:.0%} (standard error) "
            f"of the {self.shift} shifts of {self.n} held-out healthy images (chance {self.chance:.0%}); they move an "
            f"image by {moved} of the squared distance between two healthy images. {self._reading}"
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


def shift_probe(known: np.ndarray, held_out: np.ndarray, shift: str) -> ShiftProbe:
    """Fit a ridge classifier to thumbnails known (K, N, P) under K shifts and try it on held_out (K, M, P)."""
    known, held_out = (np.asarray(views, np.float64) for views in (known, held_out))
    if known.ndim != 3 or held_out.ndim != 3 or known.shape[::2] != held_out.shape[::2] or len(known) < 2:
        raise DataError(f"views {known.shape} and {held_out.shape} do not fit; wanted (K, N, P) and (K, M, P), K ≥ 2.")
    if min(known.shape[1], held_out.shape[1]) < 2:
        raise DataError("a probe of shifts needs two images or more on either side.")
    if not (np.isfinite(known).all() and np.isfinite(held_out).all()):
        raise NumericError("the thumbnails hold values that are not finite.")
    rows, shifts = known.reshape(-1, known.shape[-1]), np.repeat(np.arange(len(known)), known.shape[1])
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=RIDGE * len(rows))).fit(rows, shifts)
    named = probe.predict(held_out.reshape(-1, held_out.shape[-1])).reshape(held_out.shape[:2])
    share = (named == np.arange(len(known))[:, None]).mean(0)
    between = np.square(held_out[0] - np.roll(held_out[0], 1, axis=0)).sum(-1).mean()
    if between == 0:
        raise DataError("all held-out healthy images are equal, so that no distance lies between two of them.")
    moved = np.square(held_out[1:] - held_out[0]).sum(-1).mean(1) / between
    se = float(share.std(ddof=1)) / math.sqrt(len(share))
    return ShiftProbe(float(share.mean()), se, tuple(moved.tolist()), len(share), shift)


# --- does dissolving remove more with larger t? -------------------------------------------------------
# Every image is dissolved at every t, so that a fall from t to t' > t is the mean over images of c_i(t) − c_i(t'), with
# the spread of these differences as its noise. Each stretch on which the mean curve falls is tested by a one-sided t
# test; as the stretches were picked by looking, p counts for all T (T − 1) / 2 pairs of steps (Bonferroni).


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
        return self.p < FALL_LEVEL


@dataclass(frozen=True)
class Strength:
    """Mean squared change (T,) at steps (T,), over n images, and the stretches on which it falls."""

    steps: np.ndarray
    mean: np.ndarray
    n: int
    falls: tuple[Fall, ...]
    variance: float | None = None  # of the images as they were, the mean over them

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
        if self.variance:
            least, most = (value / self.variance for value in (self.mean[0], self.mean[-1]))
            basis += f", {least:.1%} to {most:.1%} of their variance"
        if not self.falls:
            return f"Larger t changes more, at every step from t = {first} to {last} ({basis})."
        if self.monotone:
            worst = max(self.falls, key=lambda fall: fall.share)
            within = (
                f"its largest fall, {worst.share:.0%} from t = {worst.start} to {worst.end}, is within sampling noise"
            )
            return f"Between t = {first} and {last} no fall of the change is shown: {within} ({basis})."
        parts = []
        for fall in self.real_falls:
            errors = f"{fall.drop / fall.se:.1f}" if fall.se > 0 else "∞"
            parts.append(f"from t = {fall.start} to {fall.end} it falls by {fall.share:.0%} ({errors} standard errors)")
        return f"Larger t does not always change more: {', '.join(parts)} ({basis})."


def dissolving_strength(changes: np.ndarray, steps: np.ndarray, variance: float | None = None) -> Strength:
    """Test whether mean squared changes (N, T) of N images at ascending steps (T,) grow with t.

    ``variance`` is that of the images, to which the sentence compares the change.
    """
    changes, steps = np.asarray(changes, np.float64), np.asarray(steps)
    if changes.ndim != 2 or changes.shape[1:] != steps.shape or len(changes) < 2 or len(steps) < 2:
        raise DataError(f"changes {changes.shape} do not fit steps {steps.shape}; wanted (N, T) and (T,), N and T ≥ 2.")
    if not (np.diff(steps) > 0).all():
        raise DataError(f"steps {steps.tolist()} must ascend, as their changes do or do not.")
    if not np.isfinite(changes).all() or (changes < 0).any():
        raise NumericError("the changes must be finite and not negative.")
    mean, pairs = changes.mean(0), len(steps) * (len(steps) - 1) // 2
    down = np.diff(np.concatenate([[0], (np.diff(mean) < 0).astype(int), [0]]))
    falls = []
    for start, end in zip(np.flatnonzero(down == 1), np.flatnonzero(down == -1), strict=True):
        difference = changes[:, start] - changes[:, end]
        drop, se = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(difference))
        p = float(student.sf(drop / se, len(difference) - 1)) if se > 0 else 0.0
        share = drop / float(mean[start])
        falls.append(Fall(int(steps[start]), int(steps[end]), drop, share, se, min(1.0, pairs * p)))
    return Strength(steps, mean, len(changes), tuple(falls), variance)
