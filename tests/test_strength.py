"""Strength: falls of the change with t are found beyond noise, rarely where there is none, and said in a sentence."""

import numpy as np
import pytest

from diawork.base.errors import DataError, NumericError
from diawork.evaluation.diagnostics import dissolving_strength

STEPS = np.array([50, 100, 200, 400])


def changes(mean, n=64, noise=0.1, seed=0):
    """Changes (n, T) around ``mean`` (T,): images differ as a whole, and by ``noise`` from step to step."""
    rng, mean = np.random.default_rng(seed), np.asarray(mean)
    return mean * np.exp(0.5 * rng.normal(size=(n, 1)) + noise * rng.normal(size=(n, len(mean))))


def test_a_rising_curve_is_monotone():
    found = dissolving_strength(changes([0.01, 0.02, 0.03, 0.05]), STEPS)
    assert found.monotone and found.falls == ()
    assert found.sentence.startswith("Larger t changes more, at every step from t = 50 to 400 (64 images, mean squared")


def test_a_fall_is_found_with_its_place_and_size():
    values = changes([0.01, 0.02, 0.03, 0.018])
    found = dissolving_strength(values, STEPS)
    (fall,) = found.real_falls
    difference = values[:, 2] - values[:, 3]
    assert (fall.start, fall.end, fall.drop) == (200, 400, pytest.approx(difference.mean()))
    assert fall.share == pytest.approx(difference.mean() / values[:, 2].mean()) and not found.monotone
    assert fall.se == pytest.approx(difference.std(ddof=1) / 8)
    assert (
        f"from t = 200 to 400 it falls by {fall.share:.0%} ({fall.drop / fall.se:.1f} standard errors)"
        in found.sentence
    )


def test_a_gradual_fall_counts_as_one_stretch():
    found = dissolving_strength(changes([0.03, 0.029, 0.028, 0.027, 0.026], noise=0.02), np.arange(5))
    assert [(fall.start, fall.end) for fall in found.real_falls] == [(0, 4)]


def test_a_fall_within_noise_is_not_called_one():
    found = dissolving_strength(changes([0.01, 0.02, 0.0201, 0.02], n=8, noise=0.3, seed=3), STEPS)
    assert found.falls and found.monotone and "is within sampling noise" in found.sentence


def test_a_flat_curve_is_rarely_accused():
    accused = [
        not dissolving_strength(changes(np.full(6, 0.02), n=20, seed=s), np.arange(6)).monotone for s in range(300)
    ]
    assert np.mean(accused) <= 0.08


def test_order_of_images_does_not_matter_and_the_same_fall_everywhere_is_certain():
    values = changes([0.03, 0.02, 0.04, 0.01])
    one, two = (np.array(dissolving_strength(rows, STEPS).falls) for rows in (values, values[::-1]))
    assert one == pytest.approx(two)
    certain = dissolving_strength(np.tile([0.5, 0.25], (3, 1)), STEPS[:2])
    assert certain.real_falls[0].p == 0 and "by 50% (∞ standard errors)" in certain.sentence


@pytest.mark.parametrize(
    ("values", "steps", "error", "words"),
    [
        (np.ones((4, 3)), STEPS, DataError, r"changes \(4, 3\) do not fit steps \(4,\)"),
        (np.ones((1, 4)), STEPS, DataError, "N and T ≥ 2"),
        (np.ones((4, 4)), STEPS[::-1], DataError, r"steps \[400, 200, 100, 50\] must ascend"),
        (np.full((4, 4), np.nan), STEPS, NumericError, "finite and not negative"),
        (-np.ones((4, 4)), STEPS, NumericError, "finite and not negative"),
    ],
)
def test_refuses(values, steps, error, words):
    with pytest.raises(error, match=words):
        dissolving_strength(values, steps)
