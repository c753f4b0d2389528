"""The one face of every detector: ``fit``, ``score``, ``save``, ``load``; higher = more anomalous."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from diawork.base.errors import DataError
from diawork.base.loop import EpochHook, History, Progress
from diawork.base.shown import Shown
from diawork.data.images import ImageSet
from diawork.evaluation.diagnostics import Diagnostics

MapMethods = dict[str, Callable[[ImageSet], np.ndarray]]  # name → maps (N, H, W)


def refuse_other_shapes(images: ImageSet, shape: Sequence[int]) -> None:
    """Refuse images (N, C, H, W) that have not the ``shape`` (C, H, W) of those that were fitted on; () is unknown."""
    seen = tuple(images.images.shape[1:])
    if shape and seen != tuple(shape):
        what = f"images of {seen} do not fit the {tuple(shape)} of the training images."
        raise DataError(what, hint="A shape is (channels, height, width).")


@dataclass(frozen=True, repr=False)
class Scores(Shown):
    """One score an image and, where a detector knows them, its parts and maps."""

    total: np.ndarray  # (N,)
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)  # name → (N, K)
    maps: np.ndarray | None = None  # (N, H, W)
    noise: np.ndarray | None = None  # (N,) by how much each would move under other draws, where it draws any

    def shown(self) -> tuple[str, Mapping[str, object]]:
        """Return how many scores there are, their spread, and what else is kept."""
        low, middle, high = np.quantile(self.total, (0, 0.5, 1))
        rows = {"range": f"{low:.3g} to {high:.3g}, median {middle:.3g}", "parts": ", ".join(self.parts) or "none"}
        return f"scores of {len(self.total):,} images; higher = more anomalous", rows


class Detector(Shown, ABC):
    """What a run, a sweep and a report need of a detector.

    A new one: a file with a subclass, which declares what ``base.registry.Entry`` lists, and its line there.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    uses: ClassVar[tuple[str, ...]] = ("data",)
    control: ClassVar[bool] = False
    oracle: ClassVar[bool] = False
    seeded: ClassVar[bool] = True
    requires_weights: ClassVar[bool] = False  # pretrained elsewhere
    weights: str = ""  # which ones, in words
    healthy: np.ndarray | None = None  # places in the training split of the images that ``nearest`` counts
    revision: ClassVar[int] = 1  # of what it computes at equal settings: a run of another one is other work
    shareable: ClassVar[bool] = False  # several processes may share its training
    has_map: ClassVar[bool] = False  # makes maps of its own, without a dissolver
    history: History = History()  # of its training
    shift: str = ""  # of images whose instances it learns to tell apart, where it does

    def shown(self) -> tuple[str, Mapping[str, object]]:
        """Return its weights and what it was fitted on."""
        rows = {"weights": f"{self.parameters / 1e6:.2f} M"} if self.parameters else {}
        if self.healthy is not None:
            rows["fitted on"] = f"{len(self.healthy):,} healthy images" if len(self.healthy) else "nothing yet"
        return f"detector {self.label}; higher score = more anomalous", rows

    @property
    def pretrained(self) -> bool:
        """Whether its networks have learnt elsewhere."""
        return self.requires_weights

    @property
    def steps(self) -> list[dict[str, float]]:
        """Rows of the training's metrics, one a step."""
        return self.history.steps

    @property
    def seconds(self) -> float:
        """Seconds of the training, over all its interruptions."""
        return self.history.seconds

    @property
    def selection(self) -> str:
        """Which epoch's weights were kept, and by which rule."""
        return "no training"

    @property
    def parameters(self) -> int | None:
        """Number of weights of the networks, where there are any."""
        return None

    @classmethod
    def build(cls, cfg: Any, *, dissolve: Any = None, compute: Any = None) -> Self:
        """Return the detector of an ``ExperimentConfig``, not yet fitted; ``dissolve`` fills the dissolver's slot."""
        return cls()

    @abstractmethod
    def fit(
        self,
        train: ImageSet,
        *,
        folder: Path | str | None = None,
        on_epoch: EpochHook | None = None,
        save_every: float = 300.0,
        progress: Progress = True,
    ) -> Self:
        """Learn from the healthy images of ``train`` alone.

        With a ``folder`` the training is saved there as it goes, continued exactly after an interruption,
        and loaded where it is finished. ``on_epoch(epoch, self)`` may return a validation score.
        """

    @abstractmethod
    def score(self, images: ImageSet, *, samples: int | None = None, progress: bool = False) -> Scores:
        """Return the scores of ``images``; ``samples`` augmented copies an image, where the detector takes any."""

    def facts(self, images: ImageSet) -> Diagnostics:
        """Return what is known of the detector on healthy images that it never saw."""
        return Diagnostics()

    def anomaly_scores(self, images: ImageSet) -> np.ndarray:
        """Return one score an image (N,); higher = more anomalous."""
        return self.score(images).total

    @abstractmethod
    def save(self, folder: Path | str) -> None:
        """Save what was learnt."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path | str, *, compute: Any = None) -> Self:
        """Load what ``save`` wrote, ready to score."""

    def map_methods(self, dissolve: Any, healthy: ImageSet | None) -> MapMethods:
        """Return the anomaly maps that a report measures, by name."""
        return {}
