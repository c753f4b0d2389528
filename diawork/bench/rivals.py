"""What detectors of other papers cost at those papers' sizes: passes and training steps, with untrained weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from diawork.base.compute import Compute
from diawork.base.config import ExperimentConfig
from diawork.base.registry import BUILT_IN, DETECTORS, entry_of
from diawork.base.seeding import generator
from diawork.bench.ceilings import peak_memory, seconds
from diawork.data.images import ImageSet
from diawork.runs.presets import preset

IMAGES = 4  # a batch


class _Counted(TorchDispatchMode):
    """Counts the arithmetic of whatever runs in it; torch's own counter refuses a gradient with respect to an image."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def compared() -> list[str]:
    """Return the detectors of other papers, by name."""
    return [name for name, entry in DETECTORS.items() if entry.Section and name in BUILT_IN and not entry.extra]


def rivals(*, quick: bool = False, compute: Compute | None = None) -> list[dict[str, Any]]:
    """Return, for each detector, seconds an image of training and scoring, arithmetic, memory, weights."""
    return [one_rival(name, quick=quick, compute=compute or Compute.auto()) for name in compared()]


def one_rival(name: str, *, quick: bool, compute: Compute) -> dict[str, Any]:
    """Return what one detector costs: it learns from one batch of ``IMAGES`` images, twice, then scores them."""
    entry = entry_of(name)
    seen = {key: value for key, value in entry.paper.items() if key.startswith("backbone.")}
    cfg = preset("smoke") if quick else ExperimentConfig().override(seen)
    cfg = cfg.override({"detector": name, "backbone.weights": "random"})
    if length := entry.length:
        cfg = cfg.override({f"{name}.{length}": 2, f"{name}.batch_size": IMAGES})
    detector: Any = entry.load().build(cfg, compute=compute)
    backbone = cfg.backbone if "backbone" in entry.uses else None
    size = detector.side if backbone else cfg.simsid.image_size
    x = torch.rand(IMAGES, 1, size, size, generator=generator(0, "bench", "rivals"))
    healthy = np.zeros(IMAGES, bool)
    images = ImageSet(x, np.full(IMAGES, "a"), healthy, np.arange(IMAGES), "train", "random")
    peak_mib = peak_memory(lambda: detector.fit(images, progress=False).score(images))
    with _Counted() as counted:
        detector.score(images)
    spent = seconds(lambda: detector.score(images), compute.device)
    nets = [net for net in (detector.net, getattr(detector, "backbone", None)) if net is not None]
    weights = {id(p): p for net in nets for p in net.parameters()}.values()  # a backbone can be what is trained
    trained = sum(p.numel() for p in weights if p.requires_grad)
    return {
        "detector": detector.label, "setting": f"{size} px" + (f", {backbone.name}" if backbone else ""),
        "images": IMAGES, "trained": trained, "frozen": sum(p.numel() for p in weights) - trained,
        "score_s": spent / IMAGES, "score_gmacs": counted.flops / 2e9 / IMAGES, "peak_mib": peak_mib,
        "step_s": detector.seconds / len(detector.steps) / IMAGES if length else None,
    }  # fmt: skip
