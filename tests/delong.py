"""DeLong's paired test, the plain form that comparisons over images and seeds come down to at one seed."""

from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from diawork.evaluation import metrics


class PairedTest(NamedTuple):
    """AUROC of a minus AUROC of b on the same images, its confidence interval and two-sided p value."""

    difference: float
    low: float
    high: float
    p: float


def paired_test(a, b, anomalous, level=0.95):
    """Compare the AUROC of two detectors on the same images (DeLong, DeLong and Clarke-Pearson, 1988)."""
    one, two = (metrics.placements(*metrics.by_class(scores, anomalous)) for scores in (a, b))
    difference = float(metrics.auroc(a, anomalous) - metrics.auroc(b, anomalous))
    sd = float(np.sqrt(sum(np.var(x - y, ddof=1) / len(x) for x, y in zip(one, two, strict=True))))
    half = float(norm.ppf((1 + level) / 2)) * sd
    p = 2 * float(norm.sf(abs(difference) / sd)) if sd > 0 else 1.0
    return PairedTest(difference, difference - half, difference + half, p)
