"""Pixel AUROC and AUPRO against slow references, closed forms, and bad input."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from diawork.base.errors import DataError, NumericError, UsageError
from diawork.evaluation.pixels import aupro, pixel_auroc, pixel_summary, regions


def case(seed=0, n=6, side=9, levels=None):
    """Random maps with two healthy images, lesions of different sizes, and (with ``levels``) many ties."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, side, side), bool)
    for i in range(n - 2):
        masks[i, 1 : 3 + i % 3, 1:4] = True
    masks[0, 6:8, 6:9] = True  # a second region
    maps = rng.random(masks.shape) + 0.4 * masks
    return (np.floor(maps * levels) / levels if levels else maps), masks


def slow_aupro(maps, masks, limit):
    """Walk over every threshold, as the definition says, and integrate by the trapezoid rule."""
    numbered, healthy = regions(masks), maps[~masks]
    fpr, overlap = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        fpr.append((healthy >= threshold).mean())
        overlap.append(np.mean([(maps[numbered == r] >= threshold).mean() for r in range(1, numbered.max() + 1)]))
    fpr, overlap = np.array(fpr), np.array(overlap)
    inside = fpr < limit
    ends = np.append(fpr[inside], limit), np.append(overlap[inside], np.interp(limit, fpr, overlap))
    return np.trapezoid(ends[1], ends[0]) / limit


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("seed", range(3))
def test_agree_with_slow_references(seed, levels):
    maps, masks = case(seed, levels=levels)
    assert pixel_auroc(maps, masks) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()))
    for limit in (0.05, 0.3, 1.0):
        assert aupro(maps, masks, limit) == pytest.approx(slow_aupro(maps, masks, limit))


def test_closed_forms():
    _, masks = case()
    assert (pixel_auroc(masks, masks), aupro(masks, masks)) == pytest.approx((1, 1))
    flat = np.zeros(masks.shape)
    assert pixel_auroc(flat, masks) == pytest.approx(0.5)
    assert aupro(flat, masks) == pytest.approx(0.15)  # half of the limit
    assert aupro(-1.0 * masks, masks) == 0


def test_every_region_counts_the_same_in_aupro_and_every_pixel_in_auroc():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, :4, :4] = masks[0, 7, 7] = True
    found = np.zeros(masks.shape)
    found[0, :4, :4] = 1
    assert aupro(found, masks, 0.3) == pytest.approx(0.5 + 0.5 * 0.15)
    assert pixel_auroc(found, masks) == pytest.approx(16 / 17 + 0.5 / 17)


def test_regions_touch_diagonally_but_never_across_images():
    masks = np.zeros((2, 4, 4), bool)
    masks[:, 0, 0] = masks[:, 1, 1] = masks[0, 3, 3] = True
    assert regions(masks).max() == 3


def test_intervals_hold_the_value_and_depend_on_the_seed_alone():
    maps, masks = case(n=20)
    row = pixel_summary(maps, masks, n=200)
    assert row == pixel_summary(maps, masks[:, None], n=200)
    assert row["pixel_auroc_low"] < row["pixel_auroc"] < row["pixel_auroc_high"]
    assert row["aupro_low"] < row["aupro"] < row["aupro_high"]
    assert (row["n_images"], row["n_anomalous"], row["n_regions"]) == (20, 18, 19)
    assert row != pixel_summary(maps, masks, n=200, seed=1)


def test_the_bootstrap_draws_whole_images():
    """Resampling by hand, with an image repeated, gives the weighted value."""
    from diawork.evaluation.pixels import _curves

    maps, masks = case()
    rows = [0, 0, 1, 3, 4, 4]
    weights = np.bincount(rows, minlength=len(maps))[:, None].astype(float)
    by_hand = pixel_auroc(maps[rows], masks[rows]), aupro(maps[rows], masks[rows])
    assert _curves(maps, masks, weights, 0.3)[:, 0] == pytest.approx(by_hand)


def test_no_interval_is_given_where_the_images_cannot_give_one():
    maps, masks = case(n=6)
    perfect = pixel_summary(masks.astype(float), masks, n=20)
    masks[np.flatnonzero(masks.any((1, 2)))[1:]] = False
    single = pixel_summary(maps, masks, n=20)
    assert np.isnan([row[f"aupro_{end}"] for row in (perfect, single) for end in ("low", "high")]).all()


def test_bad_input_is_refused():
    maps, masks = case()
    with pytest.raises(DataError, match="do not fit masks"):
        pixel_auroc(maps[:, :4], masks)
    with pytest.raises(DataError, match="all 6 images are empty"):
        aupro(maps, masks & False)
    with pytest.raises(DataError, match="all 6 images are full"):
        aupro(maps, masks | True)
    with pytest.raises(NumericError, match="1 of 6 maps hold values that are not finite, the first is 2"):
        pixel_auroc(np.where(np.arange(6)[:, None, None] == 2, np.nan, maps), masks)
    with pytest.raises(UsageError, match=r"limit=0 outside \(0, 1\]"):
        aupro(maps, masks, 0)
