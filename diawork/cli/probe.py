"""What a step of each training costs on this machine, as busy as it is: a second or two of the trainings themselves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from diawork.base.compute import Compute
from diawork.base.config import ExperimentConfig, K
from diawork.base.seeding import generator
from diawork.data.images import ImageSet
from diawork.detectors.dia import CSI
from diawork.method.ddpm import pretrain_ddpm
from diawork.runs.methods import method_config

IMAGES, STEPS = 32, 3  # a step, as in the presets: smaller batches cost more an image; the first step warms up


class Costs(NamedTuple):
    """What one piece of work costs on this machine, as busy as it is."""

    image: float  # s of training the DDPM on an image
    view: float  # s of training the encoder on a view


class Stopwatch:
    """In a bar's place: notes when each step of a stage was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}  # a step, by the stage's name

    @contextlib.contextmanager
    def __call__(self, *, total: int, initial: int, desc: str) -> Iterator[Stopwatch]:
        """Time the steps of one stage."""
        self._times: list[float] = []
        yield self
        if len(self._times) > 1:
            self.seconds[desc] = (self._times[-1] - self._times[0]) / (len(self._times) - 1)

    def update(self, n: int = 1) -> None:
        """Note the end of a step."""
        self._times.append(time.perf_counter())

    def set_postfix(self, *_: object, **__: object) -> None:
        """Show nothing."""


def probe(cfg: ExperimentConfig, compute: Compute) -> Costs:
    """Return what training costs an image (DDPM) and a view (encoder), from a few steps on noise."""
    watch, size = Stopwatch(), cfg.diffusion.image_size
    noise = torch.rand(IMAGES, 1, size, size, generator=generator(0, "probe"))
    train = ImageSet(noise, np.full(IMAGES, "noise"), np.zeros(IMAGES, bool), np.arange(IMAGES), "train", "noise")
    few = {"train.batch_size": IMAGES, "train.epochs": STEPS, "score.samples": 1}
    few |= {"diffusion.batch_size": IMAGES, "diffusion.steps": STEPS}
    csi = method_config(cfg.override(few), "csi")
    pretrain_ddpm(train, csi.diffusion, bridge="none", compute=compute, progress=watch)
    CSI.build(csi, compute=compute).fit(train, progress=watch)
    return Costs(watch.seconds["DDPM"] / IMAGES, watch.seconds["training"] / (2 * K * IMAGES))
