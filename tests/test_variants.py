"""Variants: contamination and dialled lesions are explicit, seeded, recorded, and refused where they make no sense."""

import dataclasses

import numpy as np
import pytest
import torch

from diawork.base.config import ExperimentConfig
from diawork.base.errors import DataError, UsageError
from diawork.data.datasets import contaminated, load
from diawork.data.images import Splits
from tests.conftest import make_images


@pytest.fixture
def splits():
    return Splits(make_images(40, anomalous=20), make_images(0), make_images(8, anomalous=4), load("phantom").manifest)


def test_a_share_of_the_fitted_images_is_anomalous(splits):
    made = contaminated(splits, 0.2)
    fitted = made.train.normal()
    assert len(fitted) == 25 and (fitted.class_names == "lesion").sum() == 5
    assert made.identity != splits.identity and made.train.identity != splits.train.identity
    assert "5 anomalous training images are passed off as healthy, 20% of the 25" in made.notes[-1]
    assert made.test is splits.test and not splits.train.anomalous[:20].any()


def test_the_same_images_whatever_the_share(splits):
    few, many = (set(np.flatnonzero(~contaminated(splits, r).train.anomalous)) for r in (0.1, 0.5))
    assert few < many and len(many) == 40


def test_an_image_that_stands_in_test_too_is_not_mixed_in(splits):
    twins = splits.train.images[20:24]
    test = dataclasses.replace(splits.test, images=torch.cat([splits.test.images[:4], twins]))
    made = contaminated(dataclasses.replace(splits, test=test), 16 / 36)
    assert made.train.anomalous[20:24].all() and not made.train.anomalous[24:].any()
    with pytest.raises(DataError, match="needs 20 anomalous training images beside 20 healthy ones; there are 16"):
        contaminated(dataclasses.replace(splits, test=test), 0.5)


def test_anomalies_come_from_train_alone():
    with pytest.raises(DataError, match=r"needs 53 anomalous training images.*there are none, and none is taken from"):
        load(ExperimentConfig().override({"data.contamination": 0.1}))


def test_lesions_are_dialled_and_nothing_else_moves():
    usual = load("phantom")
    fine = load(ExperimentConfig().override({"data.lesion_size": 6.0, "data.lesion_contrast": 0.5}))
    assert fine.train.identity == usual.train.identity and fine.identity != usual.identity
    assert "twist, 6 px wide, contrast 0.5" in fine.notes[-1]
    healthy = ~usual.test.anomalous
    assert torch.equal(fine.test.images[healthy], usual.test.images[healthy])
    assert fine.test.masks.sum() < usual.test.masks.sum() / 2


def test_without_changes_it_is_the_data_set_itself():
    assert load(ExperimentConfig()).identity == load("phantom").identity


@pytest.mark.parametrize(
    ("dataset", "change", "message"),
    [
        ("phantom", {"data.lesion_size": 20.0}, r"outside \[1, 16\]"),
        ("pneumoniamnist", {"data.lesion_contrast": 0.2}, "'pneumoniamnist' has real images"),
    ],
)
def test_refuses_what_cannot_be_dialled(dataset, change, message):
    with pytest.raises(UsageError, match=message):
        load(ExperimentConfig(dataset=dataset).override(change))
