"""What detectors of other papers cost at those papers' sizes: passes and training steps, with untrained weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diawork.base.compute import Compute
from diawork.base.config import ExperimentConfig
from diawork.base.seeding import generator
from diawork.bench.timing import seconds
from diawork.data.images import ImageSet
from diawork.detectors.learned import count
from diawork.detectors.registry import entry_of
from diawork.runs.presets import preset

IMAGES = 4  # a batch
PAPER: dict[str, dict[str, Any]] = {  # SimSID's defaults are its paper's: 128 px, 4×4 patches, 100 items, top 5
    "scrd4ad": {"backbone.name": "wide_resnet50_2", "backbone.image_size": 256},
    "simsid": {},
}
TWO_STEPS = {"scrd4ad.steps": 2, "simsid.epochs": 2}


def rivals(*, quick: bool = False, compute: Compute | None = None) -> list[dict[str, Any]]:
    """Return, for each detector, seconds an image of scoring and of a training step, and its weights."""
    return [one_rival(name, quick=quick, compute=compute or Compute.auto()) for name in PAPER]


def one_rival(name: str, *, quick: bool, compute: Compute) -> dict[str, Any]:
    """Return what one detector costs: it is trained for two steps of ``IMAGES`` images, then scores as many."""
    cfg = preset("smoke") if quick else ExperimentConfig().override(PAPER[name])
    cfg = cfg.override(TWO_STEPS | {"detector": name, "backbone.weights": "random", f"{name}.batch_size": IMAGES})
    detector: Any = entry_of(name).load().build(cfg, compute=compute)
    backbone = cfg.backbone if "backbone" in entry_of(name).uses else None
    size = backbone.image_size if backbone else cfg.simsid.image_size
    images = _images(size)
    detector.fit(images, progress=False)
    spent = seconds(lambda: detector.score(images), compute.device)
    return {
        "detector": detector.name, "setting": f"{size} px" + (f", {backbone.name}" if backbone else ""),
        "images": IMAGES, "score_s": spent / IMAGES, "step_s": detector.seconds / len(detector.steps) / IMAGES,
        "trained": detector.parameters, "frozen": count(detector.backbone) if backbone else 0,
    }  # fmt: skip


def _images(size: int) -> ImageSet:
    x = torch.rand(IMAGES, 1, size, size, generator=generator(0, "bench", "rivals"))
    return ImageSet(x, np.full(IMAGES, "a"), np.zeros(IMAGES, bool), np.arange(IMAGES), "train", "random")
