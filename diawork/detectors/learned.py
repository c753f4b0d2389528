"""What detectors that keep tensors share: healthy images alone, one size, batches, saving, and maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from diawork.base.checkpoints import (
    Checkpoint,
    Checkpointer,
    load_checkpoint,
    load_weights,
    named,
    refuse_differences,
    save_checkpoint,
)
from diawork.base.compute import Compute
from diawork.base.config import ExperimentConfig
from diawork.base.errors import CheckpointError, DataError, NumericError, UsageError
from diawork.base.loop import (
    EpochHook,
    History,
    Progress,
    Row,
    fit_or_load,
    fit_steps,
    history_tensor,
    progress_bar,
    read_history,
)
from diawork.base.seeding import generator
from diawork.base.stopping import raise_if_stopping
from diawork.data.images import Images, ImageSet, at_once, batches
from diawork.detectors.backbones import Backbone
from diawork.detectors.base import Detector, MapMethods, Scores, refuse_other_shapes
from diawork.method.operators import GaussianBlur

WEIGHTS = "detector"
BATCH = 64  # images scored at once
# Standard deviation of every map's blur, share of the side: the papers' 4 px at 224 to 256. DIA's maps take the same:
# no map of a table is then smoothed by what was chosen on lesion masks; some image scores are read off smoothed maps.
SMOOTH = 4 / 256
MAP = "anomaly map"


class Learned(Detector):
    """A detector whose whole knowledge is tensors: those of ``net``, if any, and the named ones of ``kept``.

    A subclass sets up ``net`` and frozen parts in ``_prepare``, fills ``kept`` or trains ``net`` in ``_learn``,
    and scores a batch in ``_scored``. What it keeps is the last step's; no label and no test image is asked.
    """

    section: ClassVar[str] = ""  # of the config, where it is not the detector's own
    keeps: ClassVar[tuple[str, ...]] = ()  # names of ``kept`` after fitting
    exact: ClassVar[bool] = False  # computes in fp32 where no precision was asked for: bf16 moves its scores
    has_map: ClassVar[bool] = True

    def __init__(self, cfg: ExperimentConfig | None = None, *, compute: Compute | None = None) -> None:
        compute = compute or Compute.auto()
        self.cfg, self.compute = cfg or ExperimentConfig(detector=self.name), compute.exact() if self.exact else compute
        self.hp = getattr(self.cfg, self.section or self.name)
        self.net: Any = None  # an nn.Module, where there is something to train
        self.kept: dict[str, Tensor] = {}
        self.shape: list[int] = []  # (C, H, W) of the images fitted on
        self.spec: dict[str, Any] = {}  # what the fitted tensors belong to
        self.history = History()

    @classmethod
    def build(cls, cfg: ExperimentConfig, *, dissolve: Any = None, compute: Compute | None = None) -> Self:
        """Return the detector of a config; it has no slot for a dissolver."""
        return cls(cfg, compute=compute)

    @abstractmethod
    def _prepare(self) -> None:
        """Make the networks, now that the images' ``shape`` is known."""

    @abstractmethod
    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        """Learn from healthy images x (N, C, H, W)."""

    @abstractmethod
    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scores (B,) and maps (B, h, w) of images x (B, C, H, W) on the device."""

    def fit(
        self,
        train: ImageSet,
        *,
        folder: Path | str | None = None,
        on_epoch: EpochHook | None = None,
        save_every: float = 300.0,
        progress: Progress = True,
    ) -> Self:
        """Learn from the healthy images of ``train``; the last step is kept, an ``on_epoch`` refused."""
        if on_epoch is not None:
            hint = "Use train.select='last' and train.track_test=false."
            raise UsageError(f"{self.label} keeps its last step and asks nothing after an epoch.", hint=hint)
        healthy, folder = train.normal(), Path(folder) if folder else None
        if not len(healthy):
            raise DataError(f"no normal images in the split {train.split!r} of {train.name!r} to learn from.")
        self.shape = list(healthy.images.shape[1:])
        self._prepare()
        data = {"name": train.name, "identity": train.identity}
        self.spec = {"kind": self.name, "config": self.cfg.identity(), "data": data, "shape": self.shape}
        self.spec |= self._frozen()
        fit_or_load(
            folder / WEIGHTS if folder else None,
            load=lambda: self._restore(load_checkpoint(Path(str(folder)) / WEIGHTS, spec=self.spec)),
            fit=lambda checkpointer: self._learn(healthy.images, checkpointer, progress=progress),
            save=lambda _: self.save(str(folder)),
            spec=self.spec | {"kind": f"{self.name} training"},
            every_seconds=save_every,
        )
        return self

    def _train(
        self, take_step: Callable[[int, Tensor], Row], x: Images, checkpointer: Checkpointer, *, progress: Progress,
        steps: int | None = None, rate: Callable[[int], float] | None = None, **optimizers: torch.optim.Optimizer,
    ) -> None:  # fmt: skip
        """Train ``net`` for the knobs' ``steps`` or ``epochs``; a step gets its number and images (B, C, H, W).

        Images come in an order drawn anew each epoch.
        """
        n, size = len(x), self.hp.batch_size
        if n < 2:
            raise UsageError(f"this training needs at least 2 images, there is {n}.")
        self.history = fit_steps(
            lambda step, index: take_step(step, x[index]),
            modules={"net": self.net},
            optimizers=optimizers,
            batches=lambda epoch: batches(n, size, generator(self.cfg.seed, "train", epoch, "order")),
            steps=steps or getattr(self.hp, "steps", 0) or self.hp.epochs * -(-n // size),
            checkpointer=checkpointer,
            rate=rate,
            progress=progress,
        )
        self.net.eval()

    def _frozen(self) -> dict[str, Any]:
        """Return what identifies networks that are not saved with the detector, and how it takes its settings."""
        return {"revision": self.revision} if self.revision > 1 else {}

    def score(self, images: ImageSet, *, samples: int | None = None, progress: bool = False) -> Scores:
        """Return the scores of ``images`` and, where the detector has them, their maps (N, H, W)."""
        if not self.shape or not set(self.keeps) <= set(self.kept):
            raise UsageError(
                f"this {self.label} has not been fitted yet.", hint="Call fit(train) or load(folder) first."
            )
        refuse_other_shapes(images, self.shape)
        if self.net is not None:
            self.net.eval()
        parts = []
        for rows in tqdm(images.batches(BATCH), "scoring", disable=not progress):
            raise_if_stopping()
            one, heat = self._scored(self.compute.to(rows))
            heat = enlarged(heat, self.shape[1:]).float().cpu() if heat is not None else None
            parts.append((one.double().cpu(), heat))
        total = torch.cat([score for score, _ in parts]).numpy()
        if not np.isfinite(total).all():
            raise NumericError(f"{self.label} scores some images as not finite.", hint="Its training has diverged.")
        maps = [values for _, values in parts if values is not None]
        return Scores(total, maps=torch.cat(maps).numpy() if maps else None)

    def map_methods(self, dissolve: Any, healthy: ImageSet | None) -> MapMethods:
        """Return the detector's own map, where it has one."""
        return {MAP: self.maps} if self.has_map else {}

    def maps(self, images: ImageSet) -> np.ndarray:
        """Return the anomaly maps (N, H, W) of ``images``; higher = more anomalous."""
        maps = self.score(images).maps
        if maps is None:
            raise UsageError(f"{self.label} makes no maps.")
        return maps

    @property
    def pretrained(self) -> bool:
        """Whether its backbone has learnt elsewhere; the control with random weights has not."""
        return self.requires_weights and self.cfg.backbone.weights != "random"

    @property
    def selection(self) -> str:
        """Which step's weights were kept."""
        return f"fixed step {len(self.steps)}" if self.steps else "no training"

    @property
    def parameters(self) -> int | None:
        """Number of trained weights."""
        return count(self.net) if self.net is not None else None

    def save(self, folder: Path | str) -> None:
        """Save the tensors (safetensors)."""
        tensors = named(net={} if self.net is None else self.net.state_dict(), kept=self.kept)
        tensors |= {"history": history_tensor(self.history)}
        save_checkpoint(Path(folder) / WEIGHTS, tensors, spec=self.spec, state={})

    @classmethod
    def load(cls, folder: Path | str, *, compute: Compute | None = None) -> Self:
        """Load what ``save`` wrote, ready to score."""
        checkpoint = load_checkpoint(Path(folder) / WEIGHTS)
        refuse_differences(checkpoint.path, {"kind": checkpoint.spec.get("kind")}, {"kind": cls.name})
        cfg = checkpoint.config(ExperimentConfig, checkpoint.spec.get("config"))
        detector = cls(cfg, compute=compute)
        detector.shape, detector.spec = list(checkpoint.spec.get("shape", ())), checkpoint.spec
        detector._prepare()
        frozen = detector._frozen()
        refuse_differences(checkpoint.path, {name: checkpoint.spec.get(name) for name in frozen}, frozen)
        return detector._restore(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> Self:
        parts = ("net.",) if self.net is not None else ()
        checkpoint.refuse_others("history", *parts, *(f"kept.{name}" for name in self.keeps))
        self.kept = {k.removeprefix("kept."): v for k, v in checkpoint.tensors.items() if k.startswith("kept.")}
        if set(self.kept) != set(self.keeps):
            raise CheckpointError(f"it holds {sorted(self.kept)}, wanted {sorted(self.keeps)}.", path=checkpoint.path)
        if self.net is not None:
            load_weights(self.net, checkpoint.tensors, prefix="net.", path=checkpoint.path)
        self.history = read_history(checkpoint)
        return self


class SeesThrough(Learned):
    """A detector that looks through a backbone which itself stays as it is."""

    requires_weights = True
    exact = True
    seen_px: ClassVar[int] = 224  # size at which the backbone sees images, where the config names none

    @property
    def side(self) -> int:
        """Size in px at which the backbone sees images."""
        return self.cfg.backbone.image_size or self.seen_px

    def _prepare(self) -> None:
        backbone = Backbone(self.cfg.backbone.but(image_size=self.side), self.hp.strides, seed=self.cfg.seed)
        self.weights, self._sha256 = backbone.weights, backbone.sha256
        self.backbone: Any = self.compute.prepare(backbone.requires_grad_(False).eval())

    def _frozen(self) -> dict[str, Any]:
        return super()._frozen() | {"backbone": self._sha256}

    @property
    def parameters(self) -> int | None:
        """Number of trained weights; of a detector that trains none, those of its backbone."""
        return count(self.net if self.net is not None else self.backbone) if self.shape else None

    def _features(self, x: Tensor) -> list[Tensor]:
        """Return the backbone's maps of x, on its device, in fp32."""
        with torch.no_grad(), self.compute.autocast():
            return [f.float() for f in self.backbone(self.compute.to(x))]

    def _all(self, x: Images, *, progress: Progress) -> Iterator[list[Tensor]]:
        """Yield the maps of all images, batch by batch."""
        parts = list(x.split(at_once(x, BATCH)))
        with progress_bar(progress, total=len(parts), desc="features") as bar:
            for rows in parts:
                raise_if_stopping()
                yield self._features(rows)
                bar.update()


def side_by_side(maps: Sequence[Tensor], *, mode: str = "nearest") -> Tensor:
    """Return maps (B, Cᵢ, hᵢ, wᵢ) at the size of the first, put together as (B, ΣCᵢ, h, w)."""
    return torch.cat([maps[0], *(F.interpolate(f, maps[0].shape[-2:], mode=mode) for f in maps[1:])], 1)


def enlarged(maps: Tensor, size: Sequence[int], *, corners: bool = False) -> Tensor:
    """Return maps (B, h, w) at ``size``, bilinear; with ``corners`` the outermost positions lie on the border."""
    return F.interpolate(maps[:, None], list(size), mode="bilinear", align_corners=corners)[:, 0]


def smoothed(maps: Tensor, share: float = SMOOTH) -> Tensor:
    """Return maps (B, h, w) blurred by a Gaussian whose standard deviation is a share of the side; 0 leaves them."""
    if share <= 0:
        return maps
    sigma = share * maps.shape[-1]
    half = max(1, min(round(4 * sigma), *(n - 1 for n in maps.shape[-2:])))  # a border is reflected at most once
    return GaussianBlur(2 * half + 1, sigma).apply(maps[:, None], torch.Generator())[:, 0]


def count(net: nn.Module) -> int:
    """Return the number of weights."""
    return sum(p.numel() for p in net.parameters())


def nearest_distances(rows: Tensor, known: Tensor, k: int, *, block: int = 1024) -> tuple[Tensor, Tensor]:
    """Return the distances (R, k) of rows (R, F) to their k nearest ``known`` (M, F), and which those are."""
    parts = [torch.cdist(some, known).topk(min(k, len(known)), largest=False) for some in rows.split(block)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
