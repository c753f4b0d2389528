"""Deep kNN: how far an image's pooled features lie from those of the nearest healthy images (Bergman et al., 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from diawork.base.checkpoints import Checkpointer
from diawork.base.loop import Progress
from diawork.data.images import Images
from diawork.detectors.learned import SeesThrough, nearest_distances


class DeepKnn(SeesThrough):
    """Mean distance to the nearest healthy images in the pooled features of a frozen backbone."""

    name = "deep kNN"
    section = "deep_knn"
    keeps = ("healthy",)
    has_map = False

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        self.kept = {"healthy": torch.cat([pooled(maps).cpu() for maps in self._all(x, progress=progress)])}

    def _scored(self, x: Tensor) -> tuple[Tensor, None]:
        features = pooled(self._features(x)).cpu()
        return nearest_distances(features, self.kept["healthy"], self.own.neighbours)[0].mean(1), None


def pooled(maps: list[Tensor]) -> Tensor:
    """Return the means over positions of maps (B, Cᵢ, hᵢ, wᵢ), side by side (B, ΣCᵢ)."""
    return torch.cat([f.mean((2, 3)) for f in maps], 1)
