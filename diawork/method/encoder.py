"""ResNet18 and its two heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from diawork.base.config import EncoderConfig, K
from diawork.base.errors import DataError
from diawork.base.seeding import isolated_rng
from diawork.data.store import StoredImages


class Embedding(NamedTuple):
    """What the encoder says about a batch."""

    h: Tensor  # (B, 512) backbone feature
    z: Tensor  # (B, D) projection, not normalised
    shift_logits: Tensor  # (B, K), or 2K where dissolved views are classes of their own


class _Taps(torch.autograd.Function):
    """The squares of ``side`` taps of weights (O, I, 3, 3) that start at ``corners``, stacked (T, O, I, side, side).

    One gradient is filled and added to, where slices would make one each.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, corners: list[tuple[int, int]], side: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.squares = [(..., slice(y, y + side), slice(x, x + side)) for y, x in corners]
        return torch.stack([weight[square] for square in ctx.squares])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        of_weight = torch.zeros_like(weight)
        for square, gradient in zip(ctx.squares, gradients[0], strict=True):
            of_weight[square] += gradient
        return of_weight, None, None


class SmallMapConv2d(nn.Conv2d):
    """A 3×3 convolution with padding 1 that, on maps of at most 2×2, multiplies only the taps that meet pixels.

    There most of the nine taps fall on padding; as one matrix product the same numbers cost a ninth to
    four ninths. ResNet18 spends half of its arithmetic on such maps when the images have 28-32 px.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        height, width = x.shape[-2:]
        if height != width or height > 2:
            return super().forward(x)
        outputs = (height - 1) // self.stride[0] + 1
        starts = [1 - self.stride[0] * i for i in range(outputs)]
        taps = _Taps.apply(self.weight, [(y, x) for y in starts for x in starts], height)
        matrix = taps.permute(0, 1, 3, 4, 2).reshape(len(taps) * self.out_channels, -1)
        y = F.linear(x.permute(0, 2, 3, 1).reshape(len(x), -1), matrix)
        return y.view(len(x), outputs, outputs, -1).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """ResNet18, randomly initialised, with a projection head and a shift classifier.

    The "imagenet" stem is torchvision's (7×7 stride 2, max-pool); "cifar" is 3×3 stride 1 without
    pooling, for images of about 32 px, at about twelve times the arithmetic.
    """

    def __init__(self, cfg: EncoderConfig | None = None, shifts: int = K) -> None:
        super().__init__()
        self.cfg = cfg or EncoderConfig()
        backbone = resnet18(weights=None)
        if self.cfg.stem == "cifar":
            backbone.conv1 = nn.Conv2d(self.cfg.channels, 64, 3, 1, 1, bias=False)
            backbone.maxpool = nn.Identity()
        elif self.cfg.channels != 3:
            backbone.conv1 = nn.Conv2d(self.cfg.channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.__class__ = SmallMapConv2d  # same parameters, same values
        width = backbone.fc.in_features
        backbone.fc = nn.Identity()
        self.backbone = backbone
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, self.cfg.projection_dim)
        )
        self.shift = nn.Linear(width, shifts)

    def forward(self, x: Tensor) -> Embedding:
        """Embed (B, C, H, W) in [0, 1]."""
        h = self.backbone((x - 0.5) / 0.5)
        return Embedding(h, self.projection(h), self.shift(h))

    def early(self, x: Tensor) -> Tensor:
        """Return the map (B, 64, h, w) of the first residual stage for x (B, C, H, W) in [0, 1]."""
        stem = self.backbone.relu(self.backbone.bn1(self.backbone.conv1((x - 0.5) / 0.5)))
        return self.backbone.layer1(self.backbone.maxpool(stem))


def build_encoder(cfg: EncoderConfig | None = None, *, seed: int = 0, shifts: int = K) -> Encoder:
    """Return an encoder whose initial weights depend on ``seed`` alone."""
    with isolated_rng(seed, "encoder", "init"):
        return Encoder(cfg, shifts)


@contextmanager
def evaluating(encoder: Encoder) -> Iterator[None]:
    """Put the encoder into evaluation for a while, so that a look changes no BatchNorm statistic."""
    was_training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(was_training)


def in_channels(x: Any, channels: int) -> Any:
    """Return (N, channels, H, W) of images (N, C, H, W): grey is repeated, colour never dropped in silence."""
    if x.shape[1] not in (1, channels):
        what = f"the images have {x.shape[1]} channels, the encoder {channels}."
        raise DataError(what, hint="Set encoder.channels=3.")
    return x.repeated(channels) if isinstance(x, StoredImages) else x.expand(-1, channels, -1, -1)
