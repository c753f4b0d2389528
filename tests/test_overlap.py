"""Two published sets show largely the same chests: the remark of ``published.yaml``, measured."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diawork.data.datasets import load
from diawork.data.duplicates import best_over_shifts, normalised, shrunk

REAL = Path(os.environ.get("DIAWORK_DATA", "/nowhere"))
SIDES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)  # short over long side, as pictures may have been


def likeness(larger, smaller):
    """Return the correlation (N, M) of images with those of a smaller set, whichever sides were cropped or squashed."""
    size = smaller.shape[-1]
    windows = normalised(shrunk(smaller, size)[:, 1:-1, 1:-1])
    best = torch.full((len(larger), len(smaller)), -1.0)
    for share, dim in ((1.0, 3), *((share, dim) for share in SIDES for dim in (2, 3))):
        kept = round(share * larger.shape[dim])  # of one side, from the middle
        parts = larger.narrow(dim, (larger.shape[dim] - kept) // 2, kept)
        best = torch.maximum(best, best_over_shifts(shrunk(parts, size), windows))
    return best


def test_cropped_and_shrunken_images_are_known_again():
    coarse = torch.rand(12, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    scenes = F.interpolate(coarse, (96, 96), mode="bicubic", antialias=True).clamp(0, 1)
    found = likeness(scenes[:10], F.interpolate(scenes[2:, :, :, 12:84], (28, 28), mode="area"))
    assert found.argmax(1)[2:].tolist() == list(range(8)) and found.amax(1)[2:].min() > 0.97 > found.amax(1)[:2].max()


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "chestxray224").is_dir(), reason="no chestxray224")
def test_the_published_remark_says_what_is_measured():
    first, second = load("chestxray224", REAL).test, load("pneumoniamnist", REAL).test
    similarity, nearest = likeness(first.images[:], second.images[:]).max(1)
    match = (similarity >= 0.98).numpy()
    agree = first.anomalous == second.anomalous[nearest.numpy()]
    assert match.sum() == 554 and agree[match].all() and len(match) == 624
