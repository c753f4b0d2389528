"""The probe of shifts: a symmetry is no task, a plain one is easy, and a page says which."""

import numpy as np
import pytest

from diawork.base.errors import DataError, NumericError
from diawork.evaluation.diagnostics import shift_probe


def turned(n, seed, ramp=3.0, side=6):
    """Views (4, n, side²) of random images under rotations by 90°, brighter to the right by ``ramp``."""
    images = np.random.default_rng(seed).normal(size=(n, side, side)) + ramp * np.linspace(0, 1, side)
    return np.stack([np.rot90(images, k, (1, 2)).reshape(n, -1) for k in range(4)])


def test_a_plain_shift_is_easy():
    probe = shift_probe(turned(80, 0), turned(60, 1), "rotation")
    assert probe.accuracy > 0.995 and probe.n == 60 and probe.chance == 0.25
    assert "linear probe of thumbnails named 100% ± 0% (standard error) of the rotation shifts of 60" in probe.sentence
    assert "easy for a linear map" in probe.sentence


def test_a_symmetry_is_no_task():
    views = np.repeat(turned(40, 0)[:1], 4, axis=0)
    probe = shift_probe(views, views, "rotation")
    assert probe.moved == (0, 0, 0) and probe.accuracy == pytest.approx(0.25, abs=1e-9)
    assert "Shift 1 is near a symmetry" in probe.sentence


def test_shifts_of_noise_are_not_told_apart():
    probe = shift_probe(turned(80, 0, ramp=0), turned(60, 1, ramp=0), "cutperm")
    assert abs(probe.accuracy - 0.25) < 3 * 0.06 and "hardly tells the shifts apart" in probe.sentence
    assert all(0.8 < share < 1.2 for share in probe.moved)  # a turned image of noise is another image of noise


@pytest.mark.parametrize(
    ("views", "error", "words"),
    [
        (np.ones((4, 5, 6)), DataError, "all held-out healthy images are equal"),
        (np.ones((4, 1, 6)), DataError, "two images or more"),
        (np.ones((5, 6)), DataError, "do not fit"),
        (np.full((4, 5, 6), np.nan), NumericError, "not finite"),
    ],
)
def test_refuses(views, error, words):
    with pytest.raises(error, match=words):
        shift_probe(views, views, "rotation")
