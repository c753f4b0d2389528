"""SCRD4AD: reverse distillation that stays near the healthy and far from the synthetic, scales weighted (ICLR 2025).

The student rebuilds the clean teacher's maps and is pushed away from those of an image with a noisy patch,
    L = Σᵢ wᵢ dᵢ(E, S) / Σᵢ wᵢ dᵢ(Ẽ, S).
In the released code the weights stand inside a cosine, which no positive factor changes; ``official_noop`` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diawork.base.seeding import generator
from diawork.detectors.backbones import resized
from diawork.detectors.noise import corrupted
from diawork.detectors.rd4ad import DILATION, RD4AD, Student, distances

_TINY = 1e-6  # keeps the quotient finite where a patch changes nothing


class ScaledStudent(Student):
    """A student with a head that says how much each scale of an image counts."""

    def __init__(self, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__(channels, blocks)
        self.head = nn.Linear(DILATION * channels[-1], len(channels))

    def scale_weights(self, embedding: Tensor) -> Tensor:
        """Return w (B, S), softmax over scales, from the largest value of each channel of the embedding."""
        return self.head(embedding.amax((2, 3))).softmax(1)


class SCRD4AD(RD4AD):
    """Scale-aware contrastive reverse distillation."""

    name = "SCRD4AD"
    section = "scrd4ad"

    def _network(self, channels: Sequence[int]) -> nn.Module:
        return ScaledStudent(channels, self.own.blocks)

    def _training_steps(self, per_epoch: int) -> int:
        """Return the steps of the training, whatever the number of images."""
        return self.own.steps

    def _loss(self, x: Tensor, step: int) -> Tensor:
        x = resized(x, self.cfg.backbone.image_size).cpu().expand(-1, 3, -1, -1)  # a colour has a noise of its own
        own = [generator(self.cfg.seed, "scrd4ad", step, i) for i in range(len(x))]  # a new field for every image
        clean, noisy = self._features(x), self._features(corrupted(x, self.own, own))
        embedding = self.net.bottleneck(clean)
        student, weights = self._floats(self.net.decode(embedding)), self.net.scale_weights(embedding).float()
        return near_over_far(clean, noisy, student, weights, scales=self.own.scales, cosine=self.own.cosine)

    def _weighted(self, maps: Tensor, teacher: Sequence[Tensor]) -> Tensor:
        if self.own.scales == "official_noop":
            return maps
        with self.compute.autocast():
            weights = self.net.scale_weights(self.net.bottleneck(teacher)).float()
        return maps * weights[..., None, None]


def near_over_far(
    clean: Sequence[Tensor], noisy: Sequence[Tensor], student: Sequence[Tensor], weights: Tensor, *,
    scales: str = "weighted", cosine: str = "flat",
) -> Tensor:  # fmt: skip
    """Return ℓ_near / ℓ_far of a student's maps, the scales weighted by w (B, S)."""
    if scales == "official_noop":
        clean, noisy, student = (
            [_times(f, w) for f, w in zip(maps, weights.T, strict=True)] for maps in (clean, noisy, student)
        )
        weights = torch.ones_like(weights)
    near, far = ((weights * distances(teacher, student, cosine)).sum(1).mean() for teacher in (clean, noisy))
    return near / far.clamp_min(_TINY)


def _times(f: Tensor, w: Tensor) -> Tensor:
    return f * w[:, None, None, None]
