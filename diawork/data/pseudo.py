"""Pseudo-anomalies: healthy images changed in one place, to see whether a score notices without an anomalous label.

    cutpaste   a rectangle of the image itself, mirrored, pasted elsewhere          x + s · (patch − x)
    poisson    the same, blended so that its gradients stay and its seam vanishes   x + s · (blend − x)
    warp       a disc pushed to one side, by up to s · 0.4 of its radius            x(u + s · d(u))
    noise      a rectangle with grain of 0.15 of the grey range                     x + s · 0.15 · N(0, 1)

s is the strength in (0, 1]. Everything drawn comes from a digest of the image's own pixels, the kind and the seed: an
image has the same place, patch and mask in whatever batch and at whatever strength. The sources are CutPaste (Li et
al., 2021) and Poisson image editing (Perez et al., 2003) as used by NSA (Schlueter et al., 2022).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.fft import dstn, idstn
from scipy.ndimage import map_coordinates

from diawork.base.errors import DataError, NumericError, UsageError, did_you_mean

SCHEME = 1  # of the draws; another number is another set of pseudo-anomalies
AREA = (0.02, 0.10)  # share of the image that a patch covers, log-uniform
ASPECT = (0.5, 2.0)  # height over width, log-uniform
SMALLEST, MARGIN = 3, 1  # px: side of a patch, and how far it stays from the border
PUSH, GRAIN = 0.4, 0.15  # of a disc's radius; of the grey range
_VISIBLE = 0.01  # mean absolute change inside the mask at full strength that a place must allow
_ATTEMPTS = 12  # places tried until a change is visible; the last one stands

Image = np.ndarray  # (C, H, W) float64


class Pseudo(NamedTuple):
    """Images float32 (N, C, H, W) in [0, 1] with a pseudo-anomaly each, and masks bool (N, H, W) of where it lies."""

    images: np.ndarray
    masks: np.ndarray


class _Patch(NamedTuple):
    """A rectangle: its first row and column, its height and width (px)."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: np.ndarray, border: int = 0) -> np.ndarray:
        """Return the part of image (…, H, W) inside, with ``border`` px around it."""
        rows = slice(self.top - border, self.top + self.height + border)
        return image[..., rows, self.left - border : self.left + self.width + border]


def pseudo_anomalies(images: np.ndarray, kind: str, *, strength: float = 1.0, seed: int = 0) -> Pseudo:
    """Return a pseudo-anomaly of every image (N, C, H, W) in [0, 1]; outside its mask an image is untouched."""
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is not a kind of pseudo-anomaly.", hint=did_you_mean(kind, KINDS))
    if not 0 < strength <= 1:
        raise UsageError(f"strength={strength} outside (0, 1].")
    images = np.asarray(images, np.float32)
    least = SMALLEST + 2 * MARGIN + 2
    if images.ndim != 4 or min(images.shape[2:], default=0) < least:
        what = f"images of shape {images.shape} take no pseudo-anomaly; wanted (N, C, H, W) of {least} px or more."
        raise DataError(what)
    if not np.isfinite(images).all():
        raise NumericError("the images hold values that are not finite.")
    if images.size and not 0 <= images.min() <= images.max() <= 1:
        raise DataError(f"images in [{images.min():g}, {images.max():g}] take no pseudo-anomaly; wanted [0, 1].")
    changed, masks = np.empty_like(images), np.zeros((len(images), *images.shape[2:]), bool)
    for i, image in enumerate(images):
        changed[i], masks[i] = _one(image, kind, strength, seed)
    return Pseudo(changed, masks)


def _one(image: np.ndarray, kind: str, strength: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image (C, H, W) float32 changed at ``strength`` and its mask (H, W), where full strength is visible.

    Its generator follows from its pixels: position and company do not matter.
    """
    head = f"pseudo/{SCHEME}/{seed}/{kind}/{image.shape}/".encode()
    digest = hashlib.sha256(head + np.ascontiguousarray(image, "<f4").tobytes()).digest()
    rng, exact = np.random.default_rng(int.from_bytes(digest[:16], "big")), image.astype(np.float64)
    for _ in range(_ATTEMPTS):
        at, mask = KINDS[kind](exact, rng)
        if np.abs(np.clip(at(1.0), 0, 1) - exact)[:, mask].mean() >= _VISIBLE:
            break
    changed = np.clip(at(strength), 0, 1).astype(np.float32)
    return np.where(mask, changed, image), mask


# --- kinds: an image and its generator → strength ↦ changed image, and the mask ------------------------

Change = tuple[Callable[[float], Image], np.ndarray]


def _towards(image: Image, target: Image, patch: _Patch) -> Change:
    """Return the mix of an image with ``target`` (C, h, w) inside a patch."""
    mask = np.zeros(image.shape[1:], bool)
    patch.of(mask)[...] = True
    full = image.copy()
    patch.of(full)[...] = target
    return lambda strength: image + strength * (full - image), mask


def _cutpaste(image: Image, rng: np.random.Generator) -> Change:
    patch, source = _two_patches(image, rng)
    return _towards(image, _mirrored(source.of(image), rng), patch)


def _poisson(image: Image, rng: np.random.Generator) -> Change:
    patch, source = _two_patches(image, rng)
    return _towards(image, blend(_mirrored(source.of(image, 1), rng), patch.of(image, 1)), patch)


def _noise(image: Image, rng: np.random.Generator) -> Change:
    patch = _place(_size(image, rng), image, rng)
    there = patch.of(image)
    return _towards(image, there + GRAIN * rng.standard_normal(there.shape), patch)


def _warp(image: Image, rng: np.random.Generator) -> Change:
    """Push a disc aside: by PUSH · radius in its middle, falling to nothing at its rim."""
    size = _size(image, rng)
    radius = max(SMALLEST, math.sqrt(size[0] * size[1] / math.pi))
    centre = [rng.uniform(MARGIN + radius, n - 1 - MARGIN - radius) if n > 2 * (MARGIN + radius) + 1 else (n - 1) / 2
              for n in image.shape[1:]]  # fmt: skip
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.indices(image.shape[1:], np.float64)
    distance = np.hypot(rows - centre[0], columns - centre[1]) / radius
    push = PUSH * radius * np.square(np.clip(1 - distance**2, 0, None))

    def at(strength: float) -> Image:
        where = [rows + strength * push * math.sin(angle), columns + strength * push * math.cos(angle)]
        return np.stack([map_coordinates(channel, where, order=3, mode="nearest") for channel in image])

    return at, distance < 1


KINDS: dict[str, Callable[[Image, np.random.Generator], Change]] = {
    "cutpaste": _cutpaste, "poisson": _poisson, "warp": _warp, "noise": _noise,
}  # fmt: skip


def blend(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the inside (C, h, w) of ``target`` (C, h + 2, w + 2) with the gradients of ``source``, same shape.

    f solves Δf = Δ source inside with f = target on the rim: f = source + h, Δh = 0, h = target − source on the rim.
    The five-point Laplacian is diagonal in the sine transform (DST-I), so that the solution is exact.
    """
    rim = target - source
    load = np.zeros_like(rim[:, 1:-1, 1:-1])
    load[:, 0] += rim[:, 0, 1:-1]
    load[:, -1] += rim[:, -1, 1:-1]
    load[:, :, 0] += rim[:, 1:-1, 0]
    load[:, :, -1] += rim[:, 1:-1, -1]
    waves = [2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) for n in load.shape[1:]]
    harmonic = idstn(dstn(load, type=1, axes=(1, 2)) / (waves[0][:, None] + waves[1]), type=1, axes=(1, 2))
    return source[:, 1:-1, 1:-1] + harmonic


# --- places -------------------------------------------------------------------------------------------


def _size(image: Image, rng: np.random.Generator) -> tuple[int, int]:
    """Return height and width (px) of a patch: AREA of the image, ASPECT, at least SMALLEST and within the margin."""
    area = np.exp(rng.uniform(*np.log(AREA))) * image.shape[1] * image.shape[2]
    aspect = np.exp(rng.uniform(*np.log(ASPECT)))
    sides = np.rint([np.sqrt(area * aspect), np.sqrt(area / aspect)]).astype(int)
    most = np.array(image.shape[1:]) - 2 * MARGIN
    height, width = np.clip(sides, SMALLEST, most)
    return int(height), int(width)


def _place(size: tuple[int, int], image: Image, rng: np.random.Generator) -> _Patch:
    """Return a patch of this size anywhere inside the margin."""
    top, left = (int(rng.integers(MARGIN, n - side - MARGIN + 1))
                 for side, n in zip(size, image.shape[1:], strict=True))  # fmt: skip
    return _Patch(top, left, *size)


def _two_patches(image: Image, rng: np.random.Generator) -> tuple[_Patch, _Patch]:
    size = _size(image, rng)
    return _place(size, image, rng), _place(size, image, rng)


def _mirrored(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a patch (C, h, w) turned left to right, upside down, or both: never as it was."""
    return np.flip(patch, axis=((2,), (1,), (1, 2))[rng.integers(3)])
