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
from diawork.base.knobs import Count, Frozen, Positive, Strides, Weight, Whole
from diawork.base.loop import Progress, Row, descend
from diawork.base.seeding import isolated_rng
from diawork.data.images import Images
from diawork.detectors.backbones import resized
from diawork.detectors.learned import SeesThrough, smoothed
from diawork.detectors.rd4ad import distances


class Cloner(nn.Module):
    """Images (B, 3, H, W) → maps of a teacher's strides and channels, through narrow convolutions between poolings.

    The wide convolution before a pooling has no BatchNorm, as published, so that its values can be the teacher's.
    """

    def __init__(self, strides: Sequence[int], channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.stages, before, stride = nn.ModuleList(), 3, 1
        for wanted, out in zip(strides, channels, strict=True):
            layers: list[nn.Module] = []
            while stride < wanted:
                layers += [*_convolution(before, width), nn.Conv2d(width, out, 3, 1, 1, bias=False), nn.MaxPool2d(2)]
                before, stride = out, 2 * stride
            self.stages.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a map a stride, the finest first."""
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x if not maps else F.relu(x))
            maps.append(x)
        return maps


def _convolution(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(True)]


class KDAD(SeesThrough):
    """The score is the loss that the cloner leaves: λ Σ mean (E − S)² + Σ (1 − cos(E, S)) over critical layers."""

    name = "kdad"
    label = "KDAD"
    uses = ("data", "backbone", "kdad")
    color = "#44AA99"
    paper: ClassVar = {"backbone.name": "vgg16", "backbone.image_size": 128}
    length = "epochs"
    sizes: ClassVar = {"smoke": {"epochs": 1, "strides": (4, 8)}, "cpu": {"epochs": 6, "batch_size": 32}}

    class Section(Frozen):
        """Its knobs; what the paper says is the default."""

        strides: Strides = (8, 16, 32)  # critical layers
        width: Count = 16  # channels of the cloner between them
        epochs: Count = 200
        batch_size: Annotated[Whole, Field(ge=2)] = 128
        lr: Positive = 1e-3
        value_weight: Weight = 0.01  # λ, of the squared difference

    def _prepare(self) -> None:
        super()._prepare()
        with isolated_rng(self.cfg.seed, "kdad", "init"):
            self.net = Cloner(self.backbone.strides, self.backbone.channels, self.hp.width)
        self.net = self.compute.prepare(self.net)

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.hp.lr)

        def take_step(step: int, index: Tensor) -> Row:
            rows = self.compute.to(x[index])
            return descend(self._losses(rows, self._features(rows)).mean(), optimizer)

        size = self.hp.batch_size
        self._train(
            take_step, {"optimizer": optimizer}, checkpointer, n=len(x), batch_size=size,
            steps=self.hp.epochs * -(-len(x) // size), progress=progress,
        )  # fmt: skip

    def _losses(self, x: Tensor, teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss of each image (B,), differentiable in x through the cloner alone."""
        seen = (resized(x, self.cfg.backbone.image_size).expand(-1, 3, -1, -1) - self.backbone.mean) / self.backbone.std
        with self.compute.autocast():
            student = [s.float() for s in self.net(seen)]
        values = torch.stack([(e - s).square().flatten(1).mean(1) for e, s in zip(teacher, student, strict=True)], 1)
        return (self.hp.value_weight * values + distances(teacher, student)).sum(1)

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and |∂loss/∂x|, smoothed: which pixels the disagreement hangs on, through both networks."""
        side = self.cfg.backbone.image_size
        with torch.enable_grad():
            seen = resized(x, side).detach().requires_grad_(True)
            losses = self._losses(seen, self._differentiable(seen))
            (gradient,) = torch.autograd.grad(losses.sum(), seen)
        return losses.detach(), smoothed(gradient.abs().mean(1))

    def _differentiable(self, x: Tensor) -> list[Tensor]:
        with self.compute.autocast():
            return [f.float() for f in self.backbone(x)]
