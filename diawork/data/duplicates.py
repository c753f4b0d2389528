"""Duplicates within and across splits: exact ones by digest, near ones by thumbnails and then by their fine texture.

Two pictures of one anatomy may be alike as thumbnails. One picture that was saved again, resized, cropped or lit
otherwise keeps its noise and fine texture, which no other picture has.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from diawork.data.images import ImageSet, Splits
from diawork.data.preprocess import resized
from diawork.data.readers.picture import read_picture

Finer = Callable[[int], Tensor | None]  # row → the texture of its picture, where it has a fine one
THUMBNAIL, SIDE = 32, 256  # px: where pairs are sought, and where they are confirmed
TEXTURE = 0.9  # correlation of fine texture from which two are one: copies reach 0.91, neighbouring CT slices 0.88
CROP = 0.07  # share of the sides that a copy may lack, beside what shifts and scales find
LOOSER, LOOSE, NEAREST = 0.9, 5.0, 3  # as NEAR and CLOSER, of how many pictures, where texture is looked at
NEAR = 0.97  # correlation from which two images may be the same picture
CLOSER = 30.0  # and how many times closer they are than the median image of the other split
SAME = 0.999  # correlation from which they are the same whatever the other images are like


class Pair(NamedTuple):
    """Two images that are the same picture; ``first`` lies in the earlier split."""

    kind: str  # "exact", "near" (one picture) or "alike" (by thumbnails alone)
    first_split: str
    first_index: int
    first_class: str
    second_split: str
    second_index: int
    second_class: str
    similarity: float  # correlation, 1 = equal up to brightness and contrast: of texture, or of thumbnails
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
    fitted = kind != "alike" and a.split == "train" and b.split != "train" and not a.anomalous[i]
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
        yield from _near(reference, images, _finer(reference, splits), _finer(images, splits))


def shown_by(train: ImageSet, splits: Splits) -> list[Pair]:
    """Return the val and test images that the healthy images of another set show, too, whatever their size."""
    healthy = train.normal()
    every = [pair for images in (splits.val, splits.test) for pair in _near(healthy, images)]
    return [pair for pair in every if pair.kind == "near"]


def _near(reference: ImageSet, images: ImageSet, *finer: Finer | None, rows: int = 512) -> Iterator[Pair]:
    """Yield each image's nearest picture in ``reference`` where it is the same one, or by thumbnails alone alike.

    ``finer`` opens the pictures of both by row; where one has none, there is nothing finer than the thumbnails.
    """
    if not len(reference) or not len(images):
        return
    side = min(THUMBNAIL, *(max(part.images.shape[-2:]) for part in (reference, images)))
    opened = [functools.lru_cache(1024)(one) for one in finer if one is not None]
    confirmed = len(opened) == 2
    for start, similarity in _similarities(reference, images, side, cropped=confirmed, rows=rows):
        nearest, position = similarity.topk(min(NEAREST, similarity.shape[1])) if confirmed else similarity.max(1, True)
        median = similarity.median(1, keepdim=True).values
        # sets of one anatomy are alike throughout: a duplicate is far closer than the set's usual image
        strict = (nearest >= SAME) | ((nearest >= NEAR) & ((1 - nearest) * CLOSER <= 1 - median))
        loose = (nearest >= LOOSER) & ((1 - nearest) * LOOSE <= 1 - median) & confirmed
        for j in (strict[:, 0] | loose[:, 0]).nonzero()[:, 0].tolist():
            likely = position[j][strict[j] | loose[j]].tolist()
            textures = [_texture_in_common(opened, i, start + j) for i in likely] if confirmed else []
            known = [value for value in textures if value is not None]
            if known and max(known) >= TEXTURE:
                i = likely[textures.index(max(known))]
                yield _pair("near", reference, i, images, start + j, similarity=max(known))
            elif strict[j, 0]:
                best = min(1.0, float(nearest[j, 0]))
                yield _pair("alike" if known else "near", reference, likely[0], images, start + j, similarity=best)


def shrunk(images: Tensor, most: int = THUMBNAIL) -> Tensor:
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


def _cut(images: Tensor, share: float) -> Tensor:
    """Return images without ``share`` of their height and width, half on each side, at the size they had."""
    height, width = (max(1, round(side * share / 2)) for side in images.shape[-2:])
    if not share:
        return images
    inside = images[..., height : images.shape[-2] - height, width : images.shape[-1] - width]
    return F.interpolate(inside, list(images.shape[-2:]), mode="bilinear", align_corners=False)


def _finer(images: ImageSet, splits: Splits) -> Finer | None:
    """Return what opens an image of the set by its row, from its file, or from pixels that are fine enough."""
    if images.files is None or splits.folder is None:
        if min(images.images.shape[-2:]) < SIDE // 2:
            return None
        return lambda row: _fine_texture(images.images[row].numpy())
    folder, files, window, usual = splits.folder, images.files, splits.manifest.intensity, splits.manifest.frame
    return lambda row: _fine_texture(read_picture(folder, files[row], window, usual=usual).image)


def same_texture(a: np.ndarray, b: np.ndarray) -> float:
    """Return how far the fine texture of two grey pictures (SIDE, SIDE) is the same: 1 for a copy, whatever its light.

    The correlation of what lies between 2.2 and 6 px, at equal local contrast, the best of shifts and scales.
    """
    return _in_common(_texture(a), _texture(b))


def _texture(image: np.ndarray) -> Tensor:
    band = gaussian_filter(image, 2.2) - gaussian_filter(image, 6.0)
    contrast = np.sqrt(gaussian_filter(band**2, 8.0))
    return torch.from_numpy(band / (contrast + 0.25 * contrast.mean() + 1e-6))


def _correlation(a: Tensor, b: Tensor, tall: float, wide: float) -> float:
    """Return the highest correlation of ``a`` and a rescaled ``b`` over shifts of an eighth of the side."""
    side = a.shape[-1]
    size = [round(side * tall), round(side * wide)]
    scaled = F.interpolate(b[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    height, width = (min(side, scale) for scale in size)
    window = (torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)).sqrt()
    x, y = ((image - image.mean()) * window for image in (_middle(a, height, width), _middle(scaled, height, width)))
    product = torch.fft.rfft2(x) * torch.fft.rfft2(y).conj()
    reach = side // 8
    over_shifts = torch.fft.irfft2(product, s=(height, width)).roll((reach, reach), (0, 1))[: 2 * reach, : 2 * reach]
    return float(over_shifts.max() / (x.norm() * y.norm()).clamp_min(1e-9))


def _middle(image: Tensor, height: int, width: int) -> Tensor:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _fine_texture(image: np.ndarray) -> Tensor | None:
    """Return the texture (SIDE, SIDE) of an image (C, H, W), None where it has not half as many pixels a side."""
    fine = min(image.shape[-2:]) >= SIDE // 2
    return _texture(resized(image.mean(0, keepdims=True), SIDE, "squash")[0]) if fine else None


def _similarities(
    reference: ImageSet, images: ImageSet, side: int, *, cropped: bool, rows: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield, from row ``start`` on, the correlation (n, M) of thumbnails, the best of shifts and of one cropped."""
    crops = (0.0, CROP) if cropped else (0.0,)
    windows = [normalised(torch.cat([shrunk(_cut(x, by), side)[:, 1:-1, 1:-1] for x in reference.batches()]))
               for by in crops]  # fmt: skip
    small = [torch.cat([shrunk(_cut(x, by), side) for x in images.batches()]) for by in crops]
    for start in range(0, len(images), rows):
        found = best_over_shifts(small[0][start : start + rows], windows[0])
        if cropped:
            found = torch.maximum(found, best_over_shifts(small[0][start : start + rows], windows[1]))
            found = torch.maximum(found, best_over_shifts(small[1][start : start + rows], windows[0]))
        yield start, found


def _texture_in_common(opened: Sequence[Finer], i: int, j: int) -> float | None:
    """Return how far the fine texture of two rows is the same, None where one has no finer picture."""
    a, b = opened[0](i), opened[1](j)
    return None if a is None or b is None else _in_common(a, b)


def _in_common(one: Tensor, other: Tensor) -> float:
    """Return the best correlation of two textures; scales are sought at half the size."""
    a, b = (F.avg_pool2d(texture[None], 2)[0] for texture in (one, other))
    coarse = {(s, s): _correlation(a, b, s, s) for s in (0.9, 0.95, 1.0, 1.05, 1.1)}
    if (best := max(coarse.values())) < 0.6:
        return best
    scale = max(coarse, key=coarse.__getitem__)
    found = {scale: _correlation(one, other, *scale)}
    for step in (0.05, 0.025, 0.0125):
        y, x = max(found, key=found.__getitem__)
        for near in ((y + step, x), (y - step, x), (y, x + step), (y, x - step)):
            found[near] = found.get(near) or _correlation(one, other, *near)
    return min(1.0, max(found.values()))
