"""Duplicates within and across splits: exact ones by digest, near ones by correlation of shrunken images."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diawork.data.images import ImageSet, Splits

NEAR = 0.97  # correlation from which two images may be the same picture
CLOSER = 30.0  # and how many times closer they are than the median image of the other split
SAME = 0.999  # correlation from which they are the same whatever the other images are like


class Pair(NamedTuple):
    """Two images that are the same picture; ``first`` lies in the earlier split."""

    kind: str  # "exact" or "near"
    first_split: str
    first_index: int
    first_class: str
    second_split: str
    second_index: int
    second_class: str
    similarity: float  # correlation, 1 = equal up to brightness and contrast
    fitted: bool  # across splits, and ``first`` is a healthy training image

    @property
    def across(self) -> bool:
        """Say whether the two lie in different splits."""
        return self.first_split != self.second_split

    @property
    def places(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Return split and index of both."""
        return (self.first_split, self.first_index), (self.second_split, self.second_index)

    def __str__(self) -> str:
        first = f"{self.first_split} {self.first_index} ({self.first_class})"
        return f"{first} and {self.second_split} {self.second_index} ({self.second_class})"


def find_pairs(splits: Splits) -> list[Pair]:
    """Return all pairs, those of fitted images first, then those across splits; an exact one is not near, too."""
    exact = list(_exact_pairs(splits))
    known = {pair.places for pair in exact}
    near = [pair for pair in _near_pairs(splits) if pair.places not in known]
    return sorted(exact + near, key=lambda pair: (not pair.fitted, not pair.across, pair.kind, pair[1:]))


def _pair(kind: str, a: ImageSet, i: int, b: ImageSet, j: int, *, similarity: float = 1.0) -> Pair:
    fitted = a.split == "train" and b.split != "train" and not a.anomalous[i]
    first = (a.split, int(a.index[i]), str(a.class_names[i]))
    second = (b.split, int(b.index[j]), str(b.class_names[j]))
    return Pair(kind, *first, *second, round(similarity, 4), bool(fitted))


def _exact_pairs(splits: Splits) -> Iterator[Pair]:
    """Yield, for every image seen before, the first equal one in its split, and of each role in earlier splits."""
    seen: dict[bytes, dict[tuple, tuple[ImageSet, int]]] = defaultdict(dict)
    for images in splits.all():
        for row, content in enumerate(images.digests()):
            firsts, in_this_split = seen[content], False
            for (split, _), (other, i) in firsts.items():
                if split != images.split or not in_this_split:
                    yield _pair("exact", other, i, images, row)
                in_this_split |= split == images.split
            firsts.setdefault((images.split, bool(images.anomalous[row])), (images, row))


def _near_pairs(splits: Splits) -> Iterator[Pair]:
    """Yield, for every val and test image, the nearest picture of each earlier split if it is the same one."""
    train, val, test = splits.all()
    healthy, ill = train.normal(), train.take(train.anomalous)
    for reference, images in ((healthy, val), (healthy, test), (ill, val), (ill, test), (val, test)):
        yield from _near(reference, images)


def shown_by(train: ImageSet, splits: Splits) -> list[Pair]:
    """Return the val and test images that the healthy images of another set show, too, whatever their size."""
    healthy = train.normal()
    return [pair for images in (splits.val, splits.test) for pair in _near(healthy, images)]


def _near(reference: ImageSet, images: ImageSet, *, rows: int = 512) -> Iterator[Pair]:
    if not len(reference) or not len(images):
        return
    side = min(32, *(max(part.images.shape[-2:]) for part in (reference, images)))
    windows = normalised(torch.cat([shrunk(x, side)[:, 1:-1, 1:-1] for x in reference.batches()]))
    small = torch.cat([shrunk(x, side) for x in images.batches()])
    for start in range(0, len(images), rows):
        similarity = best_over_shifts(small[start : start + rows], windows)
        nearest, position = similarity.max(1)
        median = similarity.median(1).values
        # sets of one anatomy are alike throughout: a duplicate is far closer than the set's usual image
        same = (nearest >= SAME) | ((nearest >= NEAR) & ((1 - nearest) * CLOSER <= 1 - median))
        for j in same.nonzero()[:, 0].tolist():
            best = min(1.0, float(nearest[j]))
            yield _pair("near", reference, int(position[j]), images, start + j, similarity=best)


def shrunk(images: Tensor, most: int = 32) -> Tensor:
    """Return grey images (N, S, S) of at most ``most`` px without fine grain: what survives JPEG."""
    grey = images.mean(1, keepdim=True)
    if max(grey.shape[-2:]) > most or grey.shape[-2] != grey.shape[-1]:
        grey = F.interpolate(grey, (most, most), mode="area")
    bell = torch.tensor([1.0, 2.0, 1.0]) / 4
    return F.conv2d(grey, (bell[:, None] * bell)[None, None])[:, 0]


def normalised(windows: Tensor) -> Tensor:
    """Return (N, P) rows of mean 0 and length 1; a constant window becomes zeros."""
    flat = windows.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    length = flat.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-4, flat / length.clamp_min(1e-4), torch.zeros_like(flat))


def best_over_shifts(images: Tensor, windows: Tensor) -> Tensor:
    """Return the correlation (N, M) of images (N, S, S) with inner windows (M, P), the best of 3 × 3 shifts."""
    size = images.shape[-1] - 2
    best = torch.full((len(images), len(windows)), -1.0)
    for dy in range(3):
        for dx in range(3):
            shifted = normalised(images[:, dy : dy + size, dx : dx + size])
            best = torch.maximum(best, shifted @ windows.T)
    return best
