"""Healthy patches as the encoder's first stage sees them, and how far those of an image lie from them.

A patch is a position of the first residual stage's map (4 px apart with the "imagenet" stem), centred
and of unit length; the bank holds healthy ones alone (PatchCore's idea, Roth et al., 2022, with the
contrastive encoder, at every shift).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diawork.base.config import K
from diawork.base.seeding import generator
from diawork.base.stopping import raise_if_stopping
from diawork.data.images import Images, at_once
from diawork.method.encoder import Encoder, evaluating, in_channels
from diawork.method.views import SHIFTS

MOST_IMAGES = 256  # evenly spaced; their patches are more than the bank keeps
BANK = 10_000  # patches a shift
_BLOCK = 2048  # patches compared at once


@dataclass(frozen=True)
class PatchBank:
    """Directions of healthy patches at each shift, and the mean that they are seen from."""

    encoder: Encoder
    shift: str
    means: list[Tensor]  # K × (C,)
    axes: list[Tensor]  # K × (M, C), unit length

    @classmethod
    def fit(cls, encoder: Encoder, healthy: Images, shift: str, *, size: int = BANK, seed: int = 0) -> PatchBank:
        """Keep ``size`` patches a shift, drawn from healthy images (N, C, H, W) in evaluation mode."""
        rows = torch.linspace(0, len(healthy) - 1, min(len(healthy), MOST_IMAGES)).round().long()
        means, axes = [], []
        for k in range(K):
            moved = (
                features(encoder, _moved(SHIFTS[shift](healthy[rows], k), by)) for by in _offsets(encoder, healthy)
            )
            patches = torch.cat([f.permute(0, 2, 3, 1).flatten(0, 2) for f in moved])
            order = torch.randperm(len(patches), generator=generator(seed, "patches", k))
            patches = patches[order[:size]]
            means.append(patches.mean(0))
            axes.append(F.normalize(patches - means[-1], dim=1))
        return cls(encoder, shift, means, axes)

    @torch.no_grad()
    def map(self, x: Tensor) -> Tensor:
        """Return (N, H, W): the distance of each pixel's patch of x to the nearest healthy one, over all shifts."""
        total = torch.zeros(len(x), *x.shape[-2:])
        pixels = torch.arange(x.shape[-2] * x.shape[-1]).reshape(1, 1, *x.shape[-2:])
        for k in range(K):
            shifted = SHIFTS[self.shift](x, k)
            distances = torch.stack([self._distances(shifted, k, by) for by in _offsets(self.encoder, x)]).sum(0)
            home = SHIFTS[self.shift](pixels, k).flatten()  # where each shifted pixel came from
            total.flatten(1)[:, home] += distances.flatten(1)
        return total

    def _distances(self, x: Tensor, k: int, by: tuple[int, int]) -> Tensor:
        """Return (N, H, W) for one shift, read off a map of x moved by (down, right) pixels, and moved back."""
        raise_if_stopping()
        f = features(self.encoder, _moved(x, by))
        patches = F.normalize(f.permute(0, 2, 3, 1).flatten(0, 2) - self.means[k], dim=1)
        nearest = torch.cat([(rows @ self.axes[k].T).amax(1) for rows in patches.split(_BLOCK)])
        distance = (2 - 2 * nearest).clamp_min(0).sqrt().reshape(len(x), 1, *f.shape[-2:])
        size = [x.shape[-2], x.shape[-1]]
        wide = F.interpolate(distance, size, mode="bilinear", align_corners=False)
        down, right = by
        return F.pad(wide, (0, right, 0, down), mode="replicate")[:, 0, down:, right:]


@torch.no_grad()
def features(encoder: Encoder, x: Tensor, batch: int = 512) -> Tensor:
    """Return the map of the first residual stage (N, 64, h, w) of x in [0, 1], whatever mode the encoder is in."""
    device = next(encoder.parameters()).device
    parts = []
    with evaluating(encoder):
        for rows in x.split(at_once(x, batch)):
            rows = in_channels(rows, encoder.cfg.channels).to(device)
            parts.append(encoder.early(rows).float().cpu())
    return torch.cat(parts)


def _offsets(encoder: Encoder, x: Images) -> Iterator[tuple[int, int]]:
    """Return how to move an image so that positions fall half-way between those of the map as it is."""
    half = (1 if encoder.cfg.stem == "cifar" else 4) // 2
    steps = (0, half) if half else (0,)
    return ((down, right) for down in steps for right in steps if max(down, right) < min(x.shape[-2:]))


def _moved(x: Tensor, by: tuple[int, int]) -> Tensor:
    """Move images down and right, borders reflected."""
    down, right = by
    return F.pad(x, (right, 0, down, 0), mode="reflect")[..., : x.shape[-2], : x.shape[-1]] if down or right else x
