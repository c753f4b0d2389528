"""Numbers from arrays: every score is "higher = more anomalous", every label "is anomalous".

Ties count half in the AUROC and stand or fall together elsewhere, so constant scores give 0.5.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import bootstrap, rankdata

from diawork.base.errors import DataError, NumericError, UsageError, did_you_mean
from diawork.base.shown import Shown

BCA_MAX_IMAGES = 5_000  # above, the jackknife of BCa costs minutes and moves the interval by nothing visible
_BATCH_VALUES = 2_000_000  # resampled scores in memory at once
_TPR = 0.95

Arrays = tuple[np.ndarray, np.ndarray]


def by_class(scores: np.ndarray, anomalous: np.ndarray) -> Arrays:
    """Return the scores of anomalous and of normal images, or say what is wrong with them."""
    scores, anomalous = finite(scores), np.asarray(anomalous)
    if scores.shape != anomalous.shape:
        raise DataError(f"{scores.shape} scores do not fit {anomalous.shape} labels; both must be (N,).")
    if not np.isin(anomalous, (0, 1)).all():
        raise DataError("labels must be true (anomalous) or false (normal).")
    anomalous = anomalous.astype(bool)
    if anomalous.all() or not anomalous.any():
        only = "anomalous" if anomalous.any() else "normal"
        raise DataError(
            f"all {len(scores)} images are {only}, so there is nothing to tell apart.",
            hint="Evaluate a split that has both classes.",
        )
    return scores[anomalous], scores[~anomalous]


def finite(scores: np.ndarray) -> np.ndarray:
    """Return scores (N,) as float64; refuse an empty, non-numeric or non-finite array."""
    try:
        scores = np.asarray(scores, np.float64)
    except (TypeError, ValueError):
        raise DataError("scores must be numbers.") from None
    if scores.ndim != 1 or not scores.size:
        raise DataError(f"scores of shape {scores.shape} cannot be evaluated; they must be (N,) with N ≥ 1.")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise NumericError(f"{bad.size} of {len(scores)} scores are not finite, the first at position {bad[0]}.")
    return scores


# --- statistics of (…, P) anomalous and (…, Q) normal scores → (…), vectorised for the bootstrap -----


def _pooled(abnormal: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return (…, P + Q); a jackknifed sample brings leading axes which the other lacks."""
    lead = np.broadcast_shapes(abnormal.shape[:-1], normal.shape[:-1])
    return np.concatenate([np.broadcast_to(a, lead + a.shape[-1:]) for a in (abnormal, normal)], axis=-1)


def _auroc(abnormal: np.ndarray, normal: np.ndarray, axis: int = -1) -> np.ndarray:
    """P(anomalous > normal) + ½ P(equal), by the rank sum of Mann and Whitney."""
    p, q = abnormal.shape[-1], normal.shape[-1]
    ranks = rankdata(_pooled(abnormal, normal), axis=-1)[..., :p]
    return (ranks.sum(-1) - p * (p + 1) / 2) / (p * q)


def _auprc(abnormal: np.ndarray, normal: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over anomalous images of the precision at their score (= the step-wise average precision)."""
    p = abnormal.shape[-1]
    flagged = rankdata(-_pooled(abnormal, normal), method="max", axis=-1)[..., :p]
    hits = rankdata(-abnormal, method="max", axis=-1)
    return (hits / flagged).mean(-1)


def _fpr(abnormal: np.ndarray, normal: np.ndarray, axis: int = -1, tpr: float = _TPR) -> np.ndarray:
    """Share of normal images at or above the highest threshold that still finds ``tpr`` of the anomalous."""
    p = abnormal.shape[-1]
    missed = p - max(1, int(np.ceil(tpr * p - 1e-9)))
    threshold = np.partition(abnormal, missed, axis=-1)[..., missed, None]
    return (normal >= threshold).mean(-1)


METRICS: dict[str, Callable[..., np.ndarray]] = {"auroc": _auroc, "auprc": _auprc, "fpr95": _fpr}


# --- the public face ---------------------------------------------------------------------------------


def auroc(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """Area under the ROC curve of scores (N,) against labels (N,); 0.5 is chance, ties count half."""
    return float(_auroc(*by_class(scores, anomalous)))


def bootstrap_ci(
    scores: np.ndarray,
    anomalous: np.ndarray,
    metric: str = "auroc",
    *,
    level: float = 0.95,
    n: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Confidence interval by the bootstrap within each class: BCa, or percentile above ``BCA_MAX_IMAGES``.

    Where BCa is undefined the percentiles are returned, and (NaN, NaN) where these images can give no interval:
    one of a class, or classes so far apart that every resample says the same.
    """
    if metric not in METRICS:
        raise UsageError(f"{metric!r} is not a metric.", hint=did_you_mean(metric, METRICS))
    if not 0 < level < 1 or n < 2:
        raise UsageError(f"level={level} must lie in (0, 1) and n={n} be at least 2.")
    samples = by_class(scores, anomalous)
    size = sum(map(len, samples))
    if min(map(len, samples)) < 2:
        return np.nan, np.nan
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # degenerate data: handled below
        result = bootstrap(
            samples, METRICS[metric], n_resamples=n, confidence_level=level, vectorized=True,
            batch=max(1, _BATCH_VALUES // size), method="BCa" if size <= BCA_MAX_IMAGES else "percentile",
            rng=np.random.default_rng(seed),
        )  # fmt: skip
    if np.ptp(result.bootstrap_distribution) == 0 and np.ptp(np.concatenate(samples)) > 0:
        return np.nan, np.nan
    interval = np.array(result.confidence_interval)
    if np.isnan(interval).any():
        interval = np.quantile(result.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
    return float(interval[0]), float(interval[1])


def placements(abnormal: np.ndarray, normal: np.ndarray) -> Arrays:
    """Return the share of normal images below each anomalous one (…, P), of anomalous above each normal one (…, Q)."""
    p, q = abnormal.shape[-1], normal.shape[-1]
    ranks = rankdata(np.concatenate([abnormal, normal], axis=-1), axis=-1)
    below = (ranks[..., :p] - rankdata(abnormal, axis=-1)) / q
    return below, 1 - (ranks[..., p:] - rankdata(normal, axis=-1)) / p


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return p values (M,) adjusted for M comparisons (Holm, 1979): the chance of any false one stays below p."""
    p = finite(np.asarray(p)) if len(p) else np.empty(0)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    adjusted = np.empty_like(p)
    adjusted[order] = steps
    return adjusted


def threshold_at_specificity(normal_scores: np.ndarray, specificity: float = 0.95) -> float:
    """Lowest threshold that leaves at least this share of healthy images unflagged (flagged: score > threshold)."""
    if not 0 < specificity <= 1:
        raise UsageError(f"specificity={specificity} outside (0, 1].")
    return float(np.quantile(finite(normal_scores), specificity, method="inverted_cdf"))


def sensitivity_at(scores: np.ndarray, anomalous: np.ndarray, specificity: float) -> float:
    """Return the share of anomalous images above the threshold that these healthy ones give a specificity."""
    abnormal, normal = by_class(scores, anomalous)
    return float((abnormal > threshold_at_specificity(normal, specificity)).mean())


def by_kind(scores: np.ndarray, anomalous: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    """Return the AUROC of each anomalous kind of ``kinds`` (N,) against all healthy images."""
    found = {str(kind): ~anomalous | (kinds == kind) for kind in np.unique(kinds[anomalous])}
    return {kind: auroc(scores[rows], anomalous[rows]) for kind, rows in found.items()}


class Summary(Shown, dict[str, float | int]):
    """Name → number; shows itself as a sentence and a table with intervals."""

    def shown(self) -> tuple[str, Mapping[str, object]]:
        """Return what the AUROC is of, and each metric with its interval."""
        images = f"{self['n_anomalous']:,} anomalous and {self['n_normal']:,} healthy images"
        words = {"auroc": "AUROC", "auprc": "AUPRC", "fpr95": "FPR at 95 % TPR"}
        title = f"Of {images}, an anomalous one scores higher than a healthy one in {self['auroc']:.1%} of all pairs."
        return title, {words[name]: self._cell(name) for name in words}

    def _cell(self, name: str) -> str:
        low, high = self[f"{name}_low"], self[f"{name}_high"]
        ends = "no interval can be given" if math.isnan(low + high) else f"95 % interval {low:.3f} to {high:.3f}"
        return f"{self[name]:.3f}   {ends}"


def summary(
    scores: np.ndarray, anomalous: np.ndarray, *, threshold: float | None = None, seed: int = 0
) -> Summary:  # fmt: skip
    """Return AUROC, AUPRC and FPR@95TPR with 95 % intervals; with ``threshold`` also what it achieves.

    The ends of an interval that cannot be given are NaN.
    """
    abnormal, normal = by_class(scores, anomalous)
    row = Summary()
    for name, statistic in METRICS.items():
        row[name] = float(statistic(abnormal, normal))
        row[f"{name}_low"], row[f"{name}_high"] = bootstrap_ci(scores, anomalous, name, seed=seed)
    row |= {"n_normal": len(normal), "n_anomalous": len(abnormal)}
    row.update({} if threshold is None else _at_threshold(abnormal, normal, threshold))
    return row


def _at_threshold(abnormal: np.ndarray, normal: np.ndarray, threshold: float) -> dict[str, float]:
    hits, alarms = int((abnormal > threshold).sum()), int((normal > threshold).sum())
    p, q = len(abnormal), len(normal)
    return {
        "threshold": float(threshold),
        "f1": 2 * hits / (hits + alarms + p),
        "accuracy": (hits + q - alarms) / (p + q),
        "sensitivity": hits / p,
        "specificity": 1 - alarms / q,
    }


def at_best(scores: np.ndarray, anomalous: np.ndarray, aim: str) -> dict[str, float]:
    """Return what is achieved at the threshold that maximises ``aim`` ("f1", "accuracy") on these very labels.

    It is an oracle's, as some papers' thresholds are (a detector's ``paper_rule``); of equal ones it is the highest.
    """
    abnormal, normal = by_class(scores, anomalous)
    levels = np.unique(np.concatenate([abnormal, normal]))
    levels = np.concatenate([[np.nextafter(levels[0], -np.inf)], levels])  # below all: everything is flagged
    hits, alarms = (len(part) - np.searchsorted(np.sort(part), levels, "right") for part in (abnormal, normal))
    p, q = len(abnormal), len(normal)
    aims = {"f1": 2 * hits / (hits + alarms + p), "accuracy": (hits + q - alarms) / (p + q)}
    best = np.flatnonzero(aims[aim] == aims[aim].max())[-1]
    return _at_threshold(abnormal, normal, levels[best])


def draws_noise(
    scores: np.ndarray, noise: np.ndarray, anomalous: np.ndarray, *, repeats: int = 200, seed: int = 0
) -> dict[str, float]:
    """Return what other draws would do to scores (N,) with a noise of their own (N,): ``noise_share``, ``noise_auroc``.

    The share is σ / sd(scores) with σ² = mean noise², the other the standard deviation of the AUROC of scores + σ·ε.
    """
    by_class(scores, anomalous)  # refuses what cannot be evaluated
    sigma, rng = float(np.sqrt(np.mean(np.square(noise)))), np.random.default_rng(seed)
    areas = [auroc(scores + sigma * rng.standard_normal(len(scores)), anomalous) for _ in range(repeats)]
    return {"noise_share": sigma / max(float(np.std(scores)), 1e-12), "noise_auroc": float(np.std(areas, ddof=1))}


def followed(scores: np.ndarray, statistics: np.ndarray) -> tuple[np.ndarray, float]:
    """Return Spearman's ρ of scores (N,) with each statistic (N, F), and R² of their ranks by all of them.

    Adjusted for F regressors, so that statistics of pure noise explain about 0.
    """
    scores, statistics = np.asarray(scores, float), np.asarray(statistics, float)
    n, regressors = statistics.shape
    if scores.shape != (n,) or n < regressors + 2:
        raise DataError(f"{scores.shape} scores and {statistics.shape} statistics do not fit, or are too few.")
    y, x = _standard(rankdata(scores)), _standard(rankdata(statistics, axis=0))
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    unexplained = (residual**2).sum() / max((y**2).sum(), 1e-12)
    return x.T @ y / n, float(1 - unexplained * (n - 1) / (n - regressors - 1))


def _standard(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    return centred / np.maximum(centred.std(0), 1e-12)
