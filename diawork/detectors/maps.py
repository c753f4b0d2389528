"""Anomaly maps: which pixels make an image look anomalous, from healthy training alone.

``neighbours`` compares each patch with healthy ones in the encoder's first stage; ``residual`` is what the
dissolver changes, averaged over steps; ``gradient`` and ``occlusion`` ask the score; ``weighted`` is the
residual where the score listens. ``blur_map`` and ``mean_map`` are the controls that any of them has to
beat. Higher = more anomalous at every pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diawork.base.config import K
from diawork.base.errors import DataError, NumericError, UsageError, pick
from diawork.base.stopping import raise_if_stopping
from diawork.data.images import ImageSet, at_once
from diawork.detectors.learned import SMOOTH, smoothed
from diawork.detectors.patches import PatchBank
from diawork.method.encoder import evaluating, in_channels
from diawork.method.operators import Operator
from diawork.method.scoring import Features, Scores, score
from diawork.method.views import all_shifts

# Chosen on the phantom's validation masks: the residual peaks between a fifth and a third of T, beyond the
# steps that train best.
STEPS = (0.2, 0.25, 0.3)  # shares of T
WINDOW = 3 / 32  # of the occluding window: standard deviation, share of the side
STRIDE = 4 / 32  # between windows, share of the side
BATCH = 256
NEEDS = {  # the best first
    "neighbours": ("detector", "healthy"),
    "weighted": ("detector", "operator"),
    "residual": ("operator",),
    "occlusion": ("detector", "operator"),
    "gradient": ("detector",),
}
MAP_WORDS = {
    "neighbours": "distance to healthy patches",
    "weighted": "dissolving residual × score gradient",
    "residual": "dissolving residual",
    "occlusion": "score change under occlusion",
    "gradient": "score gradient",
}
MEASURED = ("neighbours", "residual", "gradient")  # the others are made of them, or cost more than all of them
_WORDS = {"detector": "a fitted detector", "operator": "a dissolver", "healthy": "healthy training images"}


class AnomalyMaps:
    """Maps by every method that a contrastive detector, an operator and healthy images allow."""

    def __init__(
        self, detector: Any = None, *, operator: Operator | None = None, healthy: ImageSet | Tensor | None = None
    ) -> None:
        self.detector: Any = detector if detector is not None and detector.bank is not None else None
        known = detector.dissolve if detector is not None else None
        # a bank knows the dissolved training images alone, and stacks nothing
        self.operator: Any = operator or (known if hasattr(known, "stack") else None)
        self.healthy = _images(healthy.normal() if isinstance(healthy, ImageSet) else healthy)
        self._patches: PatchBank | None = None

    @property
    def methods(self) -> list[str]:
        """The methods that can be used, the best first."""
        return [name for name, needs in NEEDS.items() if all(getattr(self, part) is not None for part in needs)]

    def __call__(self, images: ImageSet | Tensor, method: str = "", *, smooth: float = SMOOTH) -> np.ndarray:
        """Return float32 (N, H, W) maps of images (N, C, H, W); higher = more anomalous, "" = the best there is."""
        method = method or next(iter(self.methods), "residual")
        needed = pick(NEEDS, method, "method of anomaly maps")
        missing = [_WORDS[part] for part in needed if getattr(self, part) is None]
        if missing:
            raise UsageError(f"the map {method!r} needs {' and '.join(missing)}.", hint=f"Possible: {self.methods}.")
        x, make = _images(images), getattr(self, f"_{method}")
        parts = []
        for rows in x.split(at_once(x, BATCH)):
            raise_if_stopping()
            parts.append(make(rows))
        return _finished(torch.cat(parts), smooth)

    def _neighbours(self, x: Tensor) -> Tensor:
        if self._patches is None:
            cfg = self.detector.cfg
            self._patches = PatchBank.fit(self.detector.encoder, self.healthy, cfg.views.shift, seed=cfg.seed)
        return self._patches.map(x)

    def _residual(self, x: Tensor) -> Tensor:
        return residuals(self.operator, x).abs().mean(1)

    def _weighted(self, x: Tensor) -> Tensor:
        return self._residual(x) * self._gradient(x)

    def _gradient(self, x: Tensor) -> Tensor:
        """|∂score/∂x| through the encoder and all K shifts; augmented copies were tried and add nothing."""
        x = x.clone().requires_grad_(True)
        with evaluating(self.detector.encoder):
            (gradient,) = torch.autograd.grad(_score(self.detector, x).total.sum(), x)
        return gradient.abs().mean(1)

    @torch.no_grad()
    def _occlusion(self, x: Tensor) -> Tensor:
        """By how much the score moves where a soft window shows the dissolved image, averaged over windows."""
        side, (height, width) = max(x.shape[-2:]), x.shape[-2:]
        change, total, weight = (
            residuals(self.operator, x),
            torch.zeros(len(x), height, width),
            torch.zeros(height, width),
        )
        rows, columns = torch.arange(height).float()[:, None], torch.arange(width).float()
        with evaluating(self.detector.encoder):
            base = _score(self.detector, x).total
            for top in np.arange(0, height + 1, STRIDE * side):
                for left in np.arange(0, width + 1, STRIDE * side):
                    distance = (rows - (top - 0.5)).square() + (columns - (left - 0.5)).square()
                    window = torch.exp(-distance / (2 * (WINDOW * side) ** 2))
                    moved = (_score(self.detector, x + window * change).total - base).abs()
                    total, weight = total + moved[:, None, None] * window, weight + window
        return total / weight


def blur_map(images: ImageSet | Tensor, *, sigma: float = 1.0, smooth: float = 0.0) -> np.ndarray:
    """Return the control |x − blur(x)| of images (N, C, H, W), with a Gaussian of ``sigma`` px."""
    x = _images(images)
    blurred = smoothed(x.flatten(0, 1), sigma / x.shape[-1]).view_as(x)
    return _finished((x - blurred).abs().mean(1), smooth)


def mean_map(images: ImageSet | Tensor, healthy: ImageSet | Tensor, *, smooth: float = 0.0) -> np.ndarray:
    """Return the control |x − mean healthy image| of images (N, C, H, W)."""
    x = _images(images)
    known = _images(healthy)
    total = torch.stack([rows.sum(0, dtype=torch.float64) for rows in known.split(at_once(known, BATCH))]).sum(0)
    return _finished((x - (total / len(known)).float()).abs().mean(1), smooth)


def residuals(operator: Operator, x: Tensor) -> Tensor:
    """Return D_t(x) − x, signed, averaged over ``STEPS`` (N, C, H, W); an operator without steps has but one."""
    ts = sorted({min(int(share * operator.timesteps), operator.timesteps - 1) for share in STEPS})
    return operator.stack(x, ts).mean(0) - x


def _images(images: Any) -> Any:
    """Return the images of a set; a tensor as it is, if it is a batch."""
    x = images.images if isinstance(images, ImageSet) else images
    if x is not None and (x.ndim != 4 or not len(x)):
        raise DataError(f"images {tuple(x.shape)} cannot be mapped; wanted (N, C, H, W) with N ≥ 1.")
    return x


def _finished(maps: Tensor, smooth: float) -> np.ndarray:
    if not torch.isfinite(maps).all():
        raise NumericError("the anomaly map holds values that are not finite.", hint="The model has diverged.")
    return smoothed(maps, smooth).float().cpu().numpy()


# --- the score as a function of the image ---------------------------------------------------------------


def _score(detector: Any, x: Tensor) -> Scores:
    """Return the score of x (N, C, H, W) at its K shifts without augmentation, differentiable in x."""
    device = next(detector.encoder.parameters()).device
    wide = in_channels(x, detector.cfg.encoder.channels)
    embedding = detector.encoder(all_shifts(wide, detector.cfg.views.shift).to(device))
    z = embedding.z.float().cpu().unflatten(0, (K, len(x)))
    logits = embedding.shift_logits.float().cpu().unflatten(0, (K, len(x)))
    return score(Features(z, logits), detector.bank, parts=detector.cfg.score.parts)
