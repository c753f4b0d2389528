"""RD4AD: a student rebuilds a frozen teacher's maps from their bottleneck, and fails at anomalies (CVPR 2022).

Reverse distillation (Deng and Li): the teacher's stages are fused and compressed to one embedding, from which
a decoder that mirrors those stages, whatever the backbone, rebuilds them, the deepest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from diawork.base.checkpoints import Checkpointer
from diawork.base.config import Count, Frozen, Positive, Strides, Whole
from diawork.base.errors import UsageError
from diawork.base.loop import Progress, Row, descend
from diawork.base.seeding import generator, isolated_rng
from diawork.data.images import Images
from diawork.detectors.learned import SeesThrough, enlarged, smoothed

BETAS = (0.5, 0.999)
DILATION = 2  # of the embedding: its channels over the deepest stage's


class Residual(nn.Module):
    """A bottleneck residual block of WideResNet's proportions that keeps, halves or doubles the size.

    A ``linear`` one has no ReLU at its end.
    """

    def __init__(self, channels: int, out: int, change: str = "", *, linear: bool = False) -> None:
        super().__init__()
        inner, self.linear = max(1, out // 2), linear
        self.body = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(True),
            _changing(inner, inner, change), nn.BatchNorm2d(inner), nn.ReLU(True),
            nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        other = channels != out or change
        shortcut = [_changing(channels, out, change, 1), nn.BatchNorm2d(out)] if other else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, h, w)."""
        y = self.body(x) + self.shortcut(x)
        return y if self.linear else F.relu(y)


def _changing(channels: int, out: int, change: str, kernel: int = 3) -> nn.Module:
    if change == "up":
        return nn.ConvTranspose2d(channels, out, 2, 2, bias=False)
    return nn.Conv2d(channels, out, kernel, 2 if change == "down" else 1, kernel // 2, bias=False)


def _stage(channels: int, out: int, blocks: int, change: str, *, linear: bool = False) -> nn.Sequential:
    rows = [(channels if i == 0 else out, out, change if i == 0 else "") for i in range(blocks)]
    return nn.Sequential(*(Residual(*row, linear=linear and i + 1 == blocks) for i, row in enumerate(rows)))


class Bottleneck(nn.Module):
    """Stages of a teacher, the finest first → one embedding (B, E, h/2, w/2) below the deepest (MFF and OCBE)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.fuse = nn.ModuleList()  # each halves a stage until it has the deepest one's size and channels
        for i in range(len(channels) - 1):
            halved: list[nn.Module] = []
            for a, b in pairwise(channels[i:]):
                halved += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]
            self.fuse.append(nn.Sequential(*halved))
        self.compress = _stage(channels[-1] * len(channels), DILATION * channels[-1], 3, "down")

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the embedding of maps (B, Cᵢ, hᵢ, wᵢ)."""
        fused = [down(f) for down, f in zip(self.fuse, maps, strict=False)]
        return self.compress(torch.cat([*fused, maps[-1]], 1))


class Student(nn.Module):
    """Bottleneck and decoder: a teacher's maps in, their reconstructions of the same shapes out.

    ``linear`` says of each of the teacher's stages, the finest first, whether it has negative values, such as those of
    EfficientNet: a reconstruction that ended in a ReLU could not be one of them.
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], linear: Sequence[bool] = ()) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(channels)
        widths = [DILATION * channels[-1], *reversed(channels)]
        ends = list(linear)[::-1] or [False] * len(channels)
        stages = zip(pairwise(widths), blocks, ends, strict=True)
        self.decoder = nn.ModuleList(_stage(a, b, n, "up", linear=end) for (a, b), n, end in stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def decode(self, embedding: Tensor) -> list[Tensor]:
        """Return reconstructed maps, the finest first."""
        rebuilt = [embedding]
        for stage in self.decoder:
            rebuilt.append(stage(F.relu(rebuilt[-1])))  # which what ended in a ReLU passes as it is
        return rebuilt[:0:-1]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the reconstruction of each of a teacher's maps."""
        return self.decode(self.bottleneck(maps))


def distances(teacher: Sequence[Tensor], student: Sequence[Tensor], cosine: str = "flat") -> Tensor:
    """Return dᵢ = 1 − cos(Eᵢ, Sᵢ) of each image and scale (B, S): of whole maps, or the mean over positions."""
    pairs = list(zip(teacher, student, strict=True))
    if cosine == "flat":
        return torch.stack([1 - F.cosine_similarity(e.flatten(1), s.flatten(1)) for e, s in pairs], 1)
    return torch.stack([(1 - F.cosine_similarity(e, s)).mean((1, 2)) for e, s in pairs], 1)


def distance_maps(teacher: Sequence[Tensor], student: Sequence[Tensor], size: int) -> Tensor:
    """Return 1 − cos at every position of each scale, enlarged (B, S, size, size)."""
    scales = [1 - F.cosine_similarity(e, s) for e, s in zip(teacher, student, strict=True)]
    return torch.stack([enlarged(scale, (size, size), corners=True) for scale in scales], 1)


class Knobs(Frozen):
    """Knobs of both reverse distillations; what the paper says is the default."""

    strides: Strides = (4, 8, 16)  # stages of the teacher, the finest first
    blocks: Strides = (3, 4, 6)  # residual blocks of each stage of the student, the deepest first
    batch_size: Annotated[Whole, Field(ge=2)] = 16
    cosine: Literal["flat", "position"] = "flat"  # of whole maps (released) or at every position (paper)
    combine: Literal["sum", "product"] = "sum"  # of the scales' maps

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.strides) != len(self.blocks):
            raise ValueError(f"blocks={self.blocks} must name one number for each of strides={self.strides}")
        return self


class RD4AD(SeesThrough):
    """Reverse distillation: the score is the largest (or the mean) of the map of what the student did not rebuild."""

    name = "rd4ad"
    label = "RD4AD"
    uses = ("data", "backbone", "rd4ad")
    color = "#332288"
    revision = 2
    seen_px = 256
    student: ClassVar[type[Student]] = Student
    paper: ClassVar = {"backbone.name": "wide_resnet50_2", "backbone.image_size": 256}
    length = "epochs"
    sizes: ClassVar = {"smoke": {"strides": (4, 8), "blocks": (1, 1), "epochs": 1}, "cpu": {"epochs": 6}}

    class Section(Knobs):
        """Its knobs; what the paper says is the default."""

        epochs: Count = 200
        lr: Positive = 0.005
        score: Literal["max", "mean"] = "max"  # of the map

    def _prepare(self) -> None:
        super()._prepare()
        strides, size = self.backbone.strides, self.side
        if any(b != 2 * a for a, b in pairwise(strides)):
            raise UsageError(f"{self.name}.strides={list(strides)} must each be twice the one before.")
        if size % (2 * strides[-1]):
            factor = 2 * strides[-1]
            raise UsageError(f"backbone.image_size={size} must be a multiple of {factor} for strides {list(strides)}.")
        probe = self._features(torch.rand(1, 3, size, size, generator=generator(0, "probe")))
        linear = [bool((f < 0).any()) for f in probe]
        with isolated_rng(self.cfg.seed, self.name, "init"):
            self.net = self.compute.prepare(self.student(self.backbone.channels, self.hp.blocks, linear))

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.hp.lr, betas=BETAS)

        def take_step(step: int, rows: Tensor) -> Row:
            with self.compute.autocast():
                loss = self._loss(self.compute.to(rows), step)
            return descend(loss, optimizer)

        self._train(take_step, x, checkpointer, progress=progress, optimizer=optimizer)

    def _loss(self, x: Tensor, step: int) -> Tensor:
        teacher = self._features(x)
        return distances(teacher, self._floats(self.net(teacher)), self.hp.cosine).sum(1).mean()

    @staticmethod
    def _floats(maps: Sequence[Tensor]) -> list[Tensor]:
        return [f.float() for f in maps]

    @torch.no_grad()
    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        teacher = self._features(x)
        with self.compute.autocast():
            student = self._floats(self.net(teacher))
        maps = self._weighted(distance_maps(teacher, student, self.side), teacher)
        heat = smoothed(maps.sum(1) if self.hp.combine == "sum" else maps.prod(1))
        return heat.amax((1, 2)) if self.hp.score == "max" else heat.mean((1, 2)), heat

    def _weighted(self, maps: Tensor, teacher: Sequence[Tensor]) -> Tensor:
        """Return the scales' maps (B, S, h, w) as they enter the sum."""
        return maps
