"""Numbers for anomaly maps: pixel AUROC and AUPRO, with intervals from resampled images.

A map is "higher = more anomalous" at every pixel. Pixels of one image are not independent, so the
bootstrap draws whole images, the anomalous and the healthy ones apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import label

from diawork.base.errors import DataError, NumericError, UsageError

FPR_LIMIT = 0.3  # of the AUPRO, as in the literature on anomaly localisation
_BATCH_VALUES = 4_000_000  # counts in memory at once


class _Lesions(NamedTuple):
    """The pixels inside masks: their values, images and regions, and each region's size."""

    value: np.ndarray  # (P,)
    image: np.ndarray  # (P,)
    region: np.ndarray  # (P,)
    region_image: np.ndarray  # (R,)
    region_size: np.ndarray  # (R,)


def _checked(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return maps float64 and masks bool, both (N, H, W), or say what is wrong with them."""
    maps, masks = np.asarray(maps, np.float64), np.asarray(masks)
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if maps.shape != masks.shape or maps.ndim != 3:
        raise DataError(f"maps {maps.shape} do not fit masks {masks.shape}; both must be (N, H, W).")
    masks = masks.astype(bool)
    if masks.all() or not masks.any():
        raise DataError(
            f"the masks of all {len(masks)} images are {'full' if masks.any() else 'empty'}: nothing to tell apart."
        )
    bad = np.flatnonzero(~np.isfinite(maps).all((1, 2)))
    if bad.size:
        raise NumericError(f"{bad.size} of {len(maps)} maps hold values that are not finite, the first is {bad[0]}.")
    return maps, masks


def regions(masks: np.ndarray) -> np.ndarray:
    """Return int64 (N, H, W): 0 outside, 1 … R for the connected lesions (8 neighbours) of all images."""
    masks = np.asarray(masks, bool)
    neighbours = np.zeros((3, 3, 3), bool)
    neighbours[1] = True  # never across images
    return label(masks, neighbours)[0].astype(np.int64)


def _lesions(maps: np.ndarray, masks: np.ndarray) -> _Lesions:
    numbered = regions(masks)
    image, region = np.nonzero(masks)[0], numbered[masks] - 1
    first = np.unique(region, return_index=True)[1]
    return _Lesions(maps[masks], image, region, image[first], np.bincount(region))


def _healthy_above(values: np.ndarray, healthy: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (P, N): how many sorted healthy pixels of each image lie above each value, and at or above it."""
    above = [len(h) - np.searchsorted(h, values, "right") for h in healthy]
    at_least = [len(h) - np.searchsorted(h, values, "left") for h in healthy]
    return np.stack(above, 1).astype(np.float64), np.stack(at_least, 1).astype(np.float64)


def _area(low: np.ndarray, high: np.ndarray, limit: float) -> np.ndarray:
    """Return ∫₀^limit P(U ≤ f) df / limit for U uniform on [low, high], the false-positive rates of a tie."""
    width = np.maximum(high - low, 1e-300)
    below = limit - (low + high) / 2
    across = np.square(np.clip(limit - low, 0, None)) / (2 * width)
    return np.where(high <= limit, below, across) / limit


def _curves(maps: np.ndarray, masks: np.ndarray, draws: np.ndarray, limit: float) -> np.ndarray:
    """Return (2, B): pixel AUROC and AUPRO under the image weights ``draws`` (N, B).

    The AUROC is the mean over lesion pixels of the share of healthy pixels below them; the AUPRO the mean
    over regions of the same within the false-positive rates [0, limit]. Ties are joined by a straight line.
    """
    lesions = _lesions(maps, masks)
    healthy = [np.sort(one[~mask]) for one, mask in zip(maps, masks, strict=True)]
    total = np.array([len(h) for h in healthy]) @ draws
    roc, overlap = np.zeros(draws.shape[1]), np.zeros(draws.shape[1])
    block = max(1, _BATCH_VALUES // max(len(maps), draws.shape[1]))
    by_region = 1 / lesions.region_size[lesions.region]
    for start in range(0, len(lesions.value), block):
        rows = slice(start, start + block)
        low, high = (count @ draws / total for count in _healthy_above(lesions.value[rows], healthy))
        weight = draws[lesions.image[rows]]
        roc += (weight * _area(low, high, 1.0)).sum(0)
        overlap += (weight * by_region[rows, None] * _area(low, high, limit)).sum(0)
    return np.stack([roc / draws[lesions.image].sum(0), overlap / draws[lesions.region_image].sum(0)])


def _draws(masks: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return (N, 1 + n) weights of images: first all once, then n resamples within each class."""
    rng, anomalous = np.random.default_rng(seed), masks.any((1, 2))
    draws = np.ones((len(masks), 1 + n))
    for rows in (np.flatnonzero(anomalous), np.flatnonzero(~anomalous)):
        if len(rows):
            draws[rows, 1:] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), n).T
    return draws


def _check_limit(limit: float) -> None:
    if not 0 < limit <= 1:
        raise UsageError(f"limit={limit} outside (0, 1].")


def pixel_auroc(maps: np.ndarray, masks: np.ndarray) -> float:
    """Area under the ROC curve over all pixels of maps (N, H, W) against masks (N, H, W); 0.5 is chance."""
    maps, masks = _checked(maps, masks)
    return float(_curves(maps, masks, np.ones((len(maps), 1)), FPR_LIMIT)[0, 0])


def aupro(maps: np.ndarray, masks: np.ndarray, limit: float = FPR_LIMIT) -> float:
    """Area under the per-region overlap up to a false-positive rate of ``limit``, divided by it.

    Every connected lesion counts the same, whatever its size (Bergmann et al., 2021). A map of noise has
    ``limit`` / 2, e.g. 0.15 with 0.3.
    """
    _check_limit(limit)
    maps, masks = _checked(maps, masks)
    return float(_curves(maps, masks, np.ones((len(maps), 1)), limit)[1, 0])


def pixel_summary(
    maps: np.ndarray,
    masks: np.ndarray,
    *,
    limit: float = FPR_LIMIT,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float | int]:
    """Return pixel AUROC and AUPRO with percentile intervals over resampled images, and the counts.

    The ends are NaN where one image alone has a lesion, or every resample says the same.
    """
    _check_limit(limit)
    maps, masks = _checked(maps, masks)
    values = _curves(maps, masks, _draws(masks, n, seed), limit)
    row: dict[str, float | int] = {}
    anomalous = masks.any((1, 2))
    for name, drawn in zip(("pixel_auroc", "aupro"), values, strict=True):
        same = np.ptp(drawn[1:]) < 1e-9 and np.ptp(maps) > 0  # but for rounding
        ends = [np.nan, np.nan]
        if not same and anomalous.sum() >= 2:
            ends = np.quantile(drawn[1:], [(1 - level) / 2, (1 + level) / 2]).tolist()
        row |= {name: float(drawn[0]), f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return row | {"n_images": len(maps), "n_anomalous": int(anomalous.sum()), "n_regions": int(regions(masks).max())}
