"""Matching: alternatives as strong as the dissolver, on healthy images."""

import pytest
import torch

from diawork.base.config import DissolveConfig
from diawork.base.errors import UsageError
from diawork.data.datasets import load
from diawork.method.operators import AddNoise, GaussianBlur, build_operator, matched, mean_squared_change


@pytest.fixture(scope="module")
def healthy():
    return load("phantom").train.images[:48]


def strength(operator, target, x):
    cfg = DissolveConfig(operator=operator, match="ddpm")
    found = matched(cfg, target, x)
    return found, build_operator(cfg.model_copy(update=found["settings"]))


@pytest.mark.parametrize("operator", ["gaussian_blur", "noise"])
def test_dialled_alternatives_meet_the_target(operator, healthy):
    found, alternative = strength(operator, AddNoise(0.05), healthy)
    assert found["wanted"] == pytest.approx(mean_squared_change(AddNoise(0.05), healthy))
    assert mean_squared_change(alternative, healthy) == pytest.approx(found["wanted"], rel=0.02)


def test_noise_finds_itself(healthy):
    assert strength("noise", AddNoise(0.07), healthy)[0]["settings"]["noise_sd"] == pytest.approx(0.07, rel=0.02)


@pytest.mark.parametrize(("operator", "name"), [
    pytest.param("median_blur", "kernel_size", marks=pytest.mark.slow), ("resize", "resize_to"),
])  # fmt: skip
def test_whole_numbers_take_the_nearest(operator, name, healthy):
    found, _ = strength(operator, GaussianBlur(7, 1.5), healthy)
    assert isinstance(found["settings"][name], int)
    assert found["mean_squared_change"] == pytest.approx(found["wanted"], rel=0.5)


def test_change_of_a_known_operator_is_its_closed_form():
    def darker(x, **_):
        return x - 0.1, None

    assert mean_squared_change(darker, torch.full((130, 1, 4, 4), 0.5)) == pytest.approx(0.01)


def test_refuses_what_cannot_be_reached(healthy):
    def inverted(x, **_):
        return 1 - x, None

    with pytest.raises(UsageError, match=r"gaussian_blur changes images by .* out of its reach"):
        strength("gaussian_blur", inverted, healthy)
    with pytest.raises(UsageError, match="'identity' has no strength"):
        strength("identity", AddNoise(), healthy)
