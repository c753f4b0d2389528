"""Deep kNN: how far an image's pooled features lie from those of the nearest healthy images (Bergman et al., 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diawork.base.checkpoints import Checkpointer
from diawork.base.config import Count, Frozen, Stages
from diawork.base.loop import Progress
from diawork.data.images import Images
from diawork.detectors.learned import SeesThrough, nearest_distances


class DeepKnn(SeesThrough):
    """Mean distance to the nearest healthy images in the pooled features of a frozen backbone.

    The paper takes the layer before the classifier; of unit length its features are another row.
    """

    name = "deep_knn"
    label = "deep kNN"
    uses = ("data", "backbone", "deep_knn")
    color = "#88CCEE"
    revision = 2
    paper: ClassVar = {"backbone.name": "resnet101", "backbone.image_size": 224}
    keeps = ("healthy",)
    has_map = False

    class Section(Frozen):
        """Its knobs; what the paper says is the default."""

        strides: Stages = ()  # stages pooled and put side by side; (): what the classifier sees
        neighbours: Count = 2
        normalised: bool = False  # features of unit length

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        self.kept = {"healthy": torch.cat([self._pooled(maps) for maps in self._all(x, progress=progress)])}

    def _scored(self, x: Tensor) -> tuple[Tensor, None]:
        features = self._pooled(self._features(x))
        return nearest_distances(features, self.kept["healthy"], self.hp.neighbours)[0].mean(1), None

    def _pooled(self, maps: list[Tensor]) -> Tensor:
        features = pooled(maps).cpu()
        return F.normalize(features, dim=1) if self.hp.normalised else features


def pooled(maps: list[Tensor]) -> Tensor:
    """Return the means over positions of maps (B, Cᵢ, hᵢ, wᵢ), side by side (B, ΣCᵢ)."""
    return torch.cat([f.mean((2, 3)) for f in maps], 1)
