"""Synthetic anomalies: a patch of noise, its own field for every image.

Simplex noise (Perlin, 2001): gradients at the corners of a simplex grid, each fading with (0.6 − r²)⁴; a fractal
adds octaves of half the wavelength each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from diawork.base.rivals import Scrd4adConfig

# the middles of a cube's edges: twelve gradients, none of which favours an axis
GRADIENTS = torch.tensor(
    [e for e in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, e)) == 2], dtype=torch.float32
)
TABLE = 256


def simplex(points: Tensor, table: Tensor) -> Tensor:
    """Return simplex noise (P,), about −1 … 1, at points (P, 3); ``table`` (256,) is a permutation."""
    cell = (points + points.sum(1, keepdim=True) / 3).floor()  # skewed to a grid of cubes, each six simplices
    inside = points - cell + cell.sum(1, keepdim=True) / 6
    rank = inside.argsort(dim=1, descending=True, stable=True).argsort(
        dim=1
    )  # of each axis in the walk through the cube
    total = torch.zeros(len(points))
    for corner in range(4):
        offset = (rank < corner).float()
        d = inside - offset + corner / 6
        fade = (0.6 - d.square().sum(1)).clamp_min(0).pow(4)
        total += fade * (GRADIENTS[_hashed(cell + offset, table)] * d).sum(1)
    return 32 * total


def _hashed(cells: Tensor, table: Tensor) -> Tensor:
    """Return a gradient's number (P,) for grid points (P, 3)."""
    x, y, z = cells.long().remainder(TABLE).unbind(1)
    return table[(x + table[(y + table[z]) % TABLE]) % TABLE] % len(GRADIENTS)


def fractal(height: int, width: int, channels: int, *, wavelength: float, octaves: int, persistence: float,
            generator: torch.Generator) -> Tensor:  # fmt: skip
    """Return fractal simplex noise (channels, height, width), a slice of one 3-D field a channel."""
    table = torch.randperm(TABLE, generator=generator)
    axes = (torch.arange(channels), torch.arange(height), torch.arange(width))
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).float()
    points = points + TABLE * torch.rand(3, generator=generator)  # not always the same corner of the field
    layers = (persistence**i * simplex(points * 2**i / wavelength, table) for i in range(octaves))
    return torch.stack(list(layers)).sum(0).reshape(channels, height, width)


def corrupted(x: Tensor, cfg: Scrd4adConfig, generators: list[torch.Generator]) -> Tensor:
    """Return images (B, C, H, W) with one noisy rectangle each, drawn from the image's own generator."""
    out = x.clone()
    for image, own in zip(out, generators, strict=True):
        box = _box(tuple(image.shape[1:]), cfg.patch, own)
        image[(slice(None), *box)] = NOISES[cfg.noise](image, box, cfg, own)
    return out


Box = tuple[slice, slice]


def _box(size: tuple[int, ...], share: tuple[float, float], generator: torch.Generator) -> Box:
    """Draw the rows and columns of a rectangle whose sides are uniform between two shares of the image's."""
    sides = []
    for n in size:
        shortest, longest = (min(n, max(1, round(part * n))) for part in share)
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        start = int(torch.randint(0, n - length + 1, (), generator=generator))
        sides.append(slice(start, start + length))
    return sides[0], sides[1]


def _shape(box: Box) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def _simplex(image: Tensor, box: Box, cfg: Scrd4adConfig, generator: torch.Generator) -> Tensor:
    """x + λ·n, not clipped, as released."""
    noise = fractal(
        *_shape(box), len(image), wavelength=max(1.0, cfg.frequency * image.shape[-1]), octaves=cfg.octaves,
        persistence=cfg.persistence, generator=generator,
    )  # fmt: skip
    return image[(slice(None), *box)] + cfg.strength * noise


def _gaussian(image: Tensor, box: Box, cfg: Scrd4adConfig, generator: torch.Generator) -> Tensor:
    return image[(slice(None), *box)] + cfg.strength * torch.randn(len(image), *_shape(box), generator=generator)


def _cutpaste(image: Tensor, box: Box, cfg: Scrd4adConfig, generator: torch.Generator) -> Tensor:
    """Blend the rectangle with another of the same size: λ = 1 replaces it."""
    starts = [
        int(torch.randint(0, n - m + 1, (), generator=generator))
        for n, m in zip(image.shape[1:], _shape(box), strict=True)
    ]
    other = image[:, starts[0] : starts[0] + _shape(box)[0], starts[1] : starts[1] + _shape(box)[1]].clone()
    return torch.lerp(image[(slice(None), *box)], other, cfg.strength)


NOISES: dict[str, Callable[[Tensor, Box, Scrd4adConfig, torch.Generator], Tensor]] = {
    "simplex": _simplex, "gaussian": _gaussian, "cutpaste": _cutpaste,
}  # fmt: skip
