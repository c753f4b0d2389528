"""KDAD: a narrow cloner learns a frozen network's values and directions on healthy images (CVPR 2021).

Multiresolution knowledge distillation (Salehi et al.): where the two disagree, neither saw anything like it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diawork.base.checkpoints import Checkpointer
from diawork.base.config import Count, Frozen, Positive, Strides, Weight, Whole
from diawork.base.loop import Progress, Row, descend
from diawork.base.seeding import isolated_rng
from diawork.data.images import Images
from diawork.detectors.backbones import resized
from diawork.detectors.learned import SeesThrough, smoothed
from diawork.detectors.rd4ad import distances


class Cloner(nn.Module):
    """Images (B, 3, H, W) → maps of a teacher's strides and channels: VGG-16, narrow but for what the teacher tells.

    Two convolutions before the first two poolings, three before the others (16, 16 | 16, 128 | 16, 16, 256 | …); the
    last before a pooling has no BatchNorm, as published, and no ReLU where it is the teacher's: EfficientNet's stages
    have negative values. Xavier's initialisation.
    """

    def __init__(self, strides: Sequence[int], channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.stages, before, stride = nn.ModuleList(), 3, 1
        for wanted, out in zip(strides, channels, strict=True):
            layers: list[nn.Module] = []
            while stride < wanted:
                for _ in range(1 if stride < 4 else 2):
                    layers += [_convolution(before, width), nn.BatchNorm2d(width), nn.ReLU(True)]
                    before = width
                told = 2 * stride >= wanted
                layers += [_convolution(width, out if told else width), *([] if told else [nn.ReLU(True)])]
                layers.append(nn.MaxPool2d(2))
                before, stride = out if told else width, 2 * stride
            self.stages.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a map a stride, the finest first."""
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x if not maps else F.relu(x))
            maps.append(x)
        return maps


def _convolution(channels: int, out: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, out, 3, 1, 1, bias=False)
    nn.init.xavier_uniform_(convolution.weight)
    return convolution


class KDAD(SeesThrough):
    """The score is the loss that the cloner leaves: λ Σ mean (E − S)² + Σ (1 − cos(E, S)) over critical layers.

    Four layers are trained and the deepest three scored, as released. The published teacher is VGG-16 after its
    poolings; timm offers its stages before them.
    """

    name = "kdad"
    label = "KDAD"
    uses = ("data", "backbone", "kdad")
    color = "#44AA99"
    revision = 2
    paper: ClassVar = {"backbone.name": "vgg16", "backbone.image_size": 128}
    length = "epochs"
    sizes: ClassVar = {"smoke": {"epochs": 1, "strides": (4, 8)}, "cpu": {"epochs": 10}}

    class Section(Frozen):
        """Its knobs; what the paper says is the default."""

        strides: Strides = (4, 8, 16, 32)  # critical layers
        scored: Count = 3  # the deepest of them that a score compares
        width: Count = 16  # channels of the cloner between them
        epochs: Count = 200
        batch_size: Annotated[Whole, Field(ge=2)] = 64
        lr: Positive = 1e-3
        value_weight: Weight = 0.01  # λ, of the squared difference

    def _prepare(self) -> None:
        super()._prepare()
        with isolated_rng(self.cfg.seed, "kdad", "init"):
            net = Cloner(self.backbone.strides, self.backbone.channels, self.hp.width)
        self.net = self.compute.prepare(net)

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.hp.lr)

        def take_step(step: int, rows: Tensor) -> Row:
            rows = self.compute.to(rows)
            return descend(self._losses(rows, self._features(rows)).sum(1).mean(), optimizer)

        self._train(take_step, x, checkpointer, progress=progress, optimizer=optimizer)

    def _losses(self, x: Tensor, teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss of each image and layer (B, L), differentiable in x through the cloner alone."""
        with self.compute.autocast():
            student = [s.float() for s in self.net(self.backbone.normalised(x))]
        values = torch.stack([(e - s).square().flatten(1).mean(1) for e, s in zip(teacher, student, strict=True)], 1)
        return self.hp.value_weight * values + distances(teacher, student)

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and |∂loss/∂x|, smoothed: which pixels the disagreement hangs on, through both networks."""
        with torch.enable_grad():
            seen = resized(x, self.side).detach().requires_grad_(True)
            with self.compute.autocast():
                teacher = [f.float() for f in self.backbone(seen)]
            losses = self._losses(seen, teacher)[:, -self.hp.scored :].sum(1)
            (gradient,) = torch.autograd.grad(losses.sum(), seen)
        return losses.detach(), smoothed(gradient.abs().mean(1))
