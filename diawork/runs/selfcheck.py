"""The check without labels of a run: does its detector notice pseudo-anomalies of healthy validation images?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from diawork.base.config import K
from diawork.data.images import ImageSet, Splits
from diawork.data.pseudo import KINDS, pseudo_anomalies
from diawork.detectors.base import Detector
from diawork.detectors.controls import STATISTICS, image_statistics
from diawork.evaluation.diagnostics import SelfCheck, ShiftProbe, self_check, shift_probe
from diawork.evaluation.metrics import followed
from diawork.method.views import SHIFTS

STRENGTH = 1.0
LEAST = 20  # healthy validation images, below which nothing is checked
MOST = 200  # of them, evenly spaced: the check costs six passes over each
THUMBNAIL = 16  # px, of the probe of shifts


class PseudoCheck:
    """Healthy validation images and their pseudo-anomalies, made once and scored by any detector."""

    def __init__(self, val: ImageSet) -> None:
        self.healthy = _some(val.normal())
        pixels = self.healthy.images[:].numpy()
        self.changed = {kind: self._with(pseudo_anomalies(pixels, kind, strength=STRENGTH).images) for kind in KINDS}

    def _with(self, pixels: np.ndarray) -> ImageSet:
        return dataclasses.replace(self.healthy, images=torch.from_numpy(pixels), masks=None)

    def of(self, detector: Detector) -> SelfCheck:
        """Return what the detector notices, from one augmented copy an image."""
        healthy = detector.score(self.healthy, samples=1).total
        scores = {(kind, STRENGTH): detector.score(images, samples=1).total for kind, images in self.changed.items()}
        facts = dataclasses.replace(detector.facts(self.healthy), follows=self._followed(healthy))
        return self_check(healthy, scores, facts)

    def _followed(self, scores: np.ndarray) -> tuple[str, float]:
        """Return the image statistic that the scores follow most, and their rank correlation."""
        rho, _ = followed(scores, image_statistics(self.healthy.images[:]))
        most = int(np.abs(rho).argmax())
        return STATISTICS[most], float(rho[most])


def checkable(val: ImageSet) -> bool:
    """Say whether there are enough healthy validation images to check on."""
    return int((~val.anomalous).sum()) >= LEAST


def recorded(check: SelfCheck) -> Mapping[str, Any]:
    """Return what ``result.json`` keeps of a check."""
    return dataclasses.asdict(check) | {"verdict": check.verdict, "findings": check.findings(), "strength": STRENGTH}


def probe_shift(shift: str, splits: Splits) -> ShiftProbe:
    """Return how well a linear probe of healthy training thumbnails names the shifts of validation images."""
    known, held_out = (_thumbnails(_some(images.normal()), shift) for images in (splits.train, splits.val))
    return shift_probe(known, held_out)


def _some(images: ImageSet) -> ImageSet:
    """Return at most ``MOST`` of the images, evenly spaced."""
    return images.take(np.linspace(0, len(images) - 1, min(MOST, len(images))).round().astype(int))


def _thumbnails(images: ImageSet, shift: str) -> np.ndarray:
    """Return (K, N, P) pixels of the images under each shift, means of areas."""
    x = images.images[:]
    size = min(THUMBNAIL, *x.shape[-2:])
    return np.stack(
        [F.interpolate(SHIFTS[shift](x, k), (size, size), mode="area").flatten(1).numpy() for k in range(K)]
    )
