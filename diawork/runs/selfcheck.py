"""The check without labels of a run: does its detector notice pseudo-anomalies of healthy validation images?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diawork.data.images import ImageSet
from diawork.data.pseudo import KINDS, pseudo_anomalies
from diawork.detectors.controls import STATISTICS, image_statistics
from diawork.detectors.face import Detector
from diawork.evaluation.collapse import Facts
from diawork.evaluation.metrics import followed
from diawork.evaluation.selfcheck import SelfCheck, self_check

STRENGTH = 1.0
LEAST = 20  # healthy validation images, below which nothing is checked
MOST = 200  # of them, evenly spaced: the check costs five scorings of each


class PseudoCheck:
    """Healthy validation images and their pseudo-anomalies, made once and scored by any detector."""

    def __init__(self, val: ImageSet) -> None:
        healthy = val.normal()
        rows = np.linspace(0, len(healthy) - 1, min(MOST, len(healthy))).round().astype(int)
        self.healthy = healthy.take(rows)
        pixels = self.healthy.images[:].numpy()
        self.changed = {kind: self._with(pseudo_anomalies(pixels, kind, strength=STRENGTH).images) for kind in KINDS}

    def _with(self, pixels: np.ndarray) -> ImageSet:
        return dataclasses.replace(self.healthy, images=torch.from_numpy(pixels), masks=None, identity="")

    def of(self, detector: Detector) -> SelfCheck:
        """Return what the detector notices, from one augmented copy an image."""
        healthy = detector.score(self.healthy, samples=1).total
        scores = {(kind, STRENGTH): detector.score(images, samples=1).total for kind, images in self.changed.items()}
        return self_check(healthy, scores, Facts(follows=self._followed(healthy)))

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
    kept = {name: getattr(check, name) for name in ("auroc", "low", "high", "n", "verdict")}
    return kept | {"follows": check.facts.follows, "findings": check.findings(), "strength": STRENGTH}
