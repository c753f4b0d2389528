"""Pseudo-anomalies: the same for the same image, nothing outside the mask, exact blending, strengths as stated."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from diawork.base.errors import DataError, NumericError, UsageError
from diawork.data.phantom import PhantomSpec, make_phantom
from diawork.data.pseudo import GRAIN, KINDS, blend, pseudo_anomalies


def smooth(n=6, channels=1, size=28, seed=0):
    """Images float32 (n, C, H, W) in [0, 1] of soft blobs."""
    noise = np.random.default_rng(seed).random((n, channels, size, size + 3))
    soft = gaussian_filter(noise, (0, 0, 2, 2))
    return ((soft - soft.min()) / np.ptp(soft)).astype(np.float32)


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_range_and_nothing_outside_the_mask(kind, channels):
    images = smooth(channels=channels)
    made = pseudo_anomalies(images, kind)
    assert made.images.shape == images.shape and made.images.dtype == np.float32
    assert made.masks.shape == (6, 28, 31) and made.masks.any((1, 2)).all() and not made.masks.all((1, 2)).any()
    assert made.images.min() >= 0 and made.images.max() <= 1
    changed = (made.images != images).any(1)
    assert not (changed & ~made.masks).any() and changed.any((1, 2)).all()


@every_kind
def test_an_image_has_its_own_in_whatever_batch(kind):
    images = smooth()
    together, order = pseudo_anomalies(images, kind), [4, 1, 3]
    apart = pseudo_anomalies(images[order], kind)
    assert np.array_equal(apart.images, together.images[order]) and np.array_equal(apart.masks, together.masks[order])
    assert np.array_equal(pseudo_anomalies(images[2:3].copy(order="F"), kind).images[0], together.images[2])


@every_kind
def test_seeds_and_images_differ_and_the_input_stays(kind):
    images = smooth()
    before = images.copy()
    one, two = (pseudo_anomalies(images, kind, seed=seed) for seed in (0, 1))
    assert np.array_equal(images, before) and (one.masks != two.masks).any((1, 2)).all()
    assert (one.masks[0] != one.masks[1]).any()


@every_kind
def test_strength_keeps_the_place_and_dials_the_change(kind):
    images = smooth(20)
    made = [pseudo_anomalies(images, kind, strength=s) for s in (0.25, 0.5, 1.0)]
    assert all(np.array_equal(m.masks, made[0].masks) for m in made)
    change = [np.square(m.images - images).mean() for m in made]
    assert change[0] < change[1] < change[2]
    if kind != "warp":  # a mix: twice the strength, four times the squared change, but for clipping
        assert change[1] / change[0] == pytest.approx(4, rel=0.1)


@every_kind
def test_places_where_nothing_would_show_are_left(kind):
    images = np.zeros((8, 1, 28, 28), np.float32)
    images[:, :, 4:18, 4:18] = smooth(8)[:, :, :14, :14]
    if kind == "noise":
        images += 0.1 * (images == 0)
    made = pseudo_anomalies(images, kind)
    assert (np.abs(made.images - images)[:, 0][made.masks].mean() > 0.01) and (made.images != images).any(
        (1, 2, 3)
    ).all()


def test_a_cut_patch_is_the_images_own_mirrored():
    image = smooth(1)
    made = pseudo_anomalies(image, "cutpaste")
    rows, columns = (np.flatnonzero(made.masks[0].any(axis)) for axis in (1, 0))
    patch = made.images[0, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    turned = [patch[::-1], patch[:, ::-1], patch[::-1, ::-1]]
    windows = np.lib.stride_tricks.sliding_window_view(image[0, 0], patch.shape)
    assert any((windows == p).all((-1, -2)).any() for p in turned)


def test_blending_keeps_the_rim_of_the_target_and_the_laplacian_of_the_source():
    rng = np.random.default_rng(0)
    source, target = rng.random((2, 2, 9, 12))
    whole = target.copy()
    whole[:, 1:-1, 1:-1] = blend(source, target)

    def laplacian(f):
        return f[:, :-2, 1:-1] + f[:, 2:, 1:-1] + f[:, 1:-1, :-2] + f[:, 1:-1, 2:] - 4 * f[:, 1:-1, 1:-1]

    assert laplacian(whole) == pytest.approx(laplacian(source), abs=1e-10)


def test_blending_with_what_is_there_or_brighter_by_a_constant_changes_nothing():
    image = np.random.default_rng(0).random((1, 8, 7))
    assert blend(image, image) == pytest.approx(image[:, 1:-1, 1:-1])
    assert blend(image + 0.3, image) == pytest.approx(image[:, 1:-1, 1:-1])


def test_noise_has_the_stated_grain():
    grey = np.full((400, 1, 28, 28), 0.5, np.float32)
    grey += 1e-4 * np.arange(400, dtype=np.float32)[:, None, None, None]
    made = pseudo_anomalies(grey, "noise", strength=0.5)
    assert (made.images - grey)[:, 0][made.masks].std() == pytest.approx(0.5 * GRAIN, rel=0.03)


def test_a_warp_moves_what_is_there_and_adds_no_grey():
    images = smooth(10)
    made = pseudo_anomalies(images, "warp")
    for before, after in zip(images, made.images, strict=True):
        assert before.min() - 0.03 <= after.min() and after.max() <= before.max() + 0.03


def test_patches_cover_two_to_ten_percent():
    made = pseudo_anomalies(smooth(100, size=64), "cutpaste")
    share = made.masks.mean((1, 2))
    assert 0.015 <= share.min() < 0.03 and 0.08 < share.max() <= 0.11


def test_works_on_the_phantom_and_on_constant_images():
    pixels, _ = make_phantom(PhantomSpec(), 8)
    images = pixels[:, None].astype(np.float32) / 255
    assert all((pseudo_anomalies(images, kind).images != images).any((1, 2, 3)).all() for kind in KINDS)
    assert np.array_equal(pseudo_anomalies(np.zeros((1, 1, 16, 16)), "cutpaste").images, np.zeros((1, 1, 16, 16)))
    assert pseudo_anomalies(np.zeros((0, 1, 16, 16)), "warp").masks.shape == (0, 16, 16)


@pytest.mark.parametrize(
    ("images", "options", "error", "words"),
    [
        (np.zeros((2, 1, 28, 28)), {"kind": "cutpast"}, UsageError, "Did you mean 'cutpaste'"),
        (np.zeros((2, 1, 28, 28)), {"strength": 0}, UsageError, r"strength=0 outside \(0, 1\]"),
        (np.zeros((28, 28)), {}, DataError, r"shape \(28, 28\)"),
        (np.zeros((2, 1, 6, 28)), {}, DataError, "of 7 px or more"),
        (np.full((2, 1, 28, 28), 2.0), {}, DataError, r"images in \[2, 2\]"),
        (np.full((2, 1, 28, 28), np.nan), {}, NumericError, "not finite"),
    ],
)
def test_refuses(images, options, error, words):
    with pytest.raises(error, match=words):
        pseudo_anomalies(images, **({"kind": "cutpaste"} | options))
