"""How far the images of one set are those of another, cropped and shrunken."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diawork.base.errors import DataError
from diawork.cli.main import main
from diawork.data import duplicates
from diawork.data.datasets import load
from diawork.data.images import ImageSet

REAL = Path(os.environ.get("DIAWORK_DATA", "/nowhere"))


def made(images, anomalous, name="made"):
    anomalous = np.asarray(anomalous, bool)
    return ImageSet(images, np.where(anomalous, "b", "a"), anomalous, np.arange(len(images)), "test", name)


def scenes(n, seed):
    coarse = torch.rand(n, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (96, 96), mode="bicubic", antialias=True).clamp(0, 1)


def small(images):
    """The middle three quarters of the width, at 28 px."""
    return F.interpolate(images[..., 12:84], (28, 28), mode="area")


LARGE = scenes(10, 0)
FIRST = made(LARGE, np.arange(10) >= 5)
SECOND = made(torch.cat([small(LARGE[:8]), small(scenes(4, 1))]), [*(np.arange(8) >= 4), 0, 0, 1, 1], "other")


def test_cropped_and_shrunken_images_are_known_again():
    found = duplicates.overlap(FIRST, SECOND)
    assert found.nearest[:8].tolist() == list(range(8)) and found.mutual[:8].all()
    assert found.similarity[:8].min() > 0.97 > found.similarity[8:].max()
    assert found.agree[:8].tolist() == [i != 4 for i in range(8)]  # an image whose label was changed
    assert (found.second <= found.similarity).all()


def test_it_is_the_same_from_the_other_side():
    there, back = duplicates.overlap(FIRST, SECOND), duplicates.overlap(SECOND, FIRST)
    assert back.similarity[:8] == pytest.approx(there.similarity[:8], abs=1e-5)
    assert back.nearest[:8].tolist() == list(range(8))


def test_it_is_told_by_level():
    lines = list(duplicates.overlap(FIRST, SECOND).lines())
    assert "correlation 0.97 or more: 8 of 10 (80.0%), 8 mutual, labels agree on 7" in lines
    assert "in the median" in lines[-1]


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="10 and 0 images to compare"):
        duplicates.overlap(FIRST, made(LARGE[:0], []))


def test_the_command_compares_a_set_with_itself(tmp_path, capsys):
    assert main(["data", "overlap", "phantom", "phantom", "--split", "val"]) == 0
    said = capsys.readouterr().out
    assert "phantom val against phantom val" in said and "(100.0%)" in said


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "chestxray224").is_dir(), reason="no chestxray224")
def test_the_published_remark_says_what_is_measured():
    found = duplicates.overlap(load("chestxray224", REAL).test, load("pneumoniamnist", REAL).test)
    match = found.similarity >= 0.98
    assert match.sum() == 554 and found.agree[match].all() and len(match) == 624
