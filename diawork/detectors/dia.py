"""DIA, and CSI as DIA without a dissolver, by one code path."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from diawork.base.checkpoints import (
    Checkpoint,
    Checkpointer,
    load_checkpoint,
    load_weights,
    matching,
    named,
    refuse_differences,
    save_checkpoint,
)
from diawork.base.compute import Compute
from diawork.base.config import DRAWS, ExperimentConfig, K
from diawork.base.errors import CheckpointError, UsageError
from diawork.base.loop import EpochHook, History, Progress, fit_or_load, history_tensor, read_history
from diawork.data.images import Images, ImageSet
from diawork.detectors.base import Detector, MapMethods, Scores, refuse_other_shapes
from diawork.detectors.maps import MAP_WORDS, MEASURED, AnomalyMaps
from diawork.evaluation.diagnostics import Diagnostics, feature_spread
from diawork.method.bank import DissolvedBank
from diawork.method.ddpm import DDPM
from diawork.method.dissolve import Dissolver
from diawork.method.encoder import build_encoder, in_channels
from diawork.method.operators import Operator, build_operator
from diawork.method.scoring import FeatureBank, copies_noise, extract_features, score
from diawork.method.training import epoch_batches, fit
from diawork.method.views import BranchBuilder

WEIGHTS = "detector"
RULES = {  # by train.select
    "last": "fixed epoch", "val": "best validation AUROC, epoch", "pseudo": "best self-check, epoch",
}  # fmt: skip


class DIA(Detector):
    """Dissolving Is Amplifying: contrastive features of healthy images, amplified by dissolved negatives.

    ``DIA(ddpm, cfg).fit(train).anomaly_scores(test)``: higher = more anomalous.
    """

    name = "dia"
    label = "DIA"
    uses: ClassVar[tuple[str, ...]] = (
        "data", "views", "encoder", "loss", "train", "score", "diffusion", "dissolve",
    )  # fmt: skip
    color = "#0072B2"
    shareable = True

    def __init__(
        self,
        ddpm: DDPM | None = None,
        cfg: ExperimentConfig | None = None,
        *,
        dissolve: Operator | DissolvedBank | None = None,
        compute: Compute | None = None,
    ) -> None:
        """Take a pretrained DDPM or, as ``dissolve``, any other operator, or a bank."""
        self.cfg, self.compute = cfg or ExperimentConfig(), compute or Compute.auto()
        self.dissolve = dissolve or self._operator(ddpm)
        self.encoder = build_encoder(self.cfg.encoder, seed=self.cfg.seed, shifts=self.cfg.classes)
        self.shift = self.cfg.views.shift
        self.bank: FeatureBank | None = None
        self.history = History()
        self.spec: dict[str, Any] = {}  # what the fitted weights belong to
        self.healthy = np.empty(0, np.int64)  # source indices of the bank's images
        self.image_shape: list[int] = []  # (C, H, W) of the images fitted on, where known

    @classmethod
    def build(
        cls, cfg: ExperimentConfig, *, dissolve: Operator | DissolvedBank | None = None, compute: Compute | None = None
    ) -> Self:
        """Return the detector of a config that dissolves with ``dissolve``."""
        return cls(None, cfg, dissolve=dissolve, compute=compute)

    def _operator(self, ddpm: DDPM | None) -> Operator | None:
        return build_operator(self.cfg.dissolve, ddpm, schedule=self.cfg.diffusion, compute=self.compute)

    def fit(
        self,
        train: ImageSet,
        *,
        folder: Path | str | None = None,
        on_epoch: EpochHook | None = None,
        save_every: float = 300.0,
        progress: Progress = True,
    ) -> Self:
        """Train on the healthy images of ``train`` and build their feature bank.

        With a ``folder`` the training is saved there as it goes, continued exactly after an
        interruption, and loaded where it is finished. ``on_epoch(epoch, self)`` may return a validation score.
        """
        healthy, folder, cfg = train.normal(), Path(folder) if folder else None, self.cfg
        self.healthy, x = healthy.index, in_channels(healthy.images, cfg.encoder.channels)
        self.image_shape = list(healthy.images.shape[1:])
        data = {"name": train.name, "identity": train.identity}
        self.spec = {"kind": self.name, "config": cfg.identity(), "data": data, "value_range": [0, 1]}
        return fit_or_load(
            folder / WEIGHTS if folder else None,
            load=lambda: self._reloaded(Path(str(folder)), x, progress),
            fit=lambda checkpointer: self._train(x, checkpointer, on_epoch, progress),
            save=lambda _: self.save(str(folder)),
            spec=self.spec | {"kind": f"{self.name} training"},
            every_seconds=save_every,
            group=self.compute.group,
        )

    def _reloaded(self, folder: Path, x: Images, progress: Progress) -> Self:
        """Load a finished training; a bank that was drawn by another version's scheme is made anew and saved."""
        finished = load_checkpoint(folder / WEIGHTS, spec=self.spec)
        self._restore(finished)
        if finished.state.get("draws") != DRAWS:
            self.bank = FeatureBank.fit(self._features(x, "the bank", progress=progress))
            if self.compute.group.leads:
                self.save(folder)
        return self

    def _train(self, x: Images, checkpointer: Checkpointer, on_epoch: EpochHook | None, progress: Progress) -> Self:
        cfg, group = self.cfg, self.compute.group

        def hook(epoch: int, _: Any) -> float | None:
            """Ask with a bank of one sample, so that the detector can score; afterwards there is none again."""
            assert on_epoch is not None
            try:
                self.bank = FeatureBank.fit(self._features(x, "the bank", samples=1))
                return on_epoch(epoch, self)
            finally:
                self.bank = None

        if isinstance(self.dissolve, Dissolver):
            each = epoch_batches(len(x), cfg.train, seed=cfg.seed, epoch=0)
            passes = cfg.train.epochs * len(each) * (K if cfg.views.dissolve_per == "shift" else 1)
            share = -(-len(each[0]) // group.size)
            self.dissolve.expect(passes * share, share, progress=bool(progress) and group.leads)
        self.history = fit(
            self.encoder, x, BranchBuilder(cfg.views, self.dissolve), train=cfg.train, loss=cfg.loss, seed=cfg.seed,
            compute=self.compute, checkpointer=checkpointer, on_epoch=hook if on_epoch else None, progress=progress,
        )  # fmt: skip
        self.bank = FeatureBank.fit(self._features(x, "the bank", progress=progress if group.leads else False))
        return self

    def _features(self, x: Images, what: str, *, samples: int | None = None, progress: Progress = False) -> Any:
        cfg = self.cfg.score.but(samples=samples or self.cfg.score.samples)
        return extract_features(
            self.encoder, x, views=self.cfg.views, score=cfg, seed=self.cfg.seed, what=what,
            compute=self.compute, progress=progress,
        )  # fmt: skip

    def score(self, images: ImageSet, *, samples: int | None = None, progress: bool = False) -> Scores:
        """Return the scores of ``images`` with their parts (N, K); ``samples`` augmented copies an image (T′)."""
        bank = self._fitted()
        refuse_other_shapes(images, self.image_shape)
        x = in_channels(images.images, self.cfg.encoder.channels)
        features = self._features(x, images.split, samples=samples, progress=progress)
        scores = score(features, bank, parts=self.cfg.score.parts)
        parts = {name: getattr(scores, name).numpy() for name in ("similarity", "shift", "nearest")}
        noise = copies_noise(features, bank, parts=self.cfg.score.parts)
        return Scores(scores.total.numpy(), parts, noise=None if noise is None else noise.numpy())

    def facts(self, images: ImageSet) -> Diagnostics:
        """Return how the features of ``images`` spread and how many of their shifts are named, one copy a shift."""
        features = self._features(in_channels(images.images, self.cfg.encoder.channels), images.split, samples=1)
        logits = features.shift_logits[..., :K]
        right = logits.argmax(-1) == torch.arange(K)[:, None]
        return Diagnostics(float(right.float().mean()), K, feature_spread(features.z[0].numpy()))

    def _fitted(self) -> FeatureBank:
        if self.bank is None:
            raise UsageError("this detector has no feature bank yet.", hint="Call fit(train) or load(folder) first.")
        return self.bank

    def map_methods(self, dissolve: Operator | None, healthy: ImageSet | None) -> MapMethods:
        """Return the maps worth measuring with an operator at hand, by their words."""
        maps = AnomalyMaps(self, operator=dissolve, healthy=healthy)
        return {MAP_WORDS[name]: partial(maps, method=name) for name in maps.methods if name in MEASURED}

    @property
    def selection(self) -> str:
        """Which epoch's weights were kept, and by which rule."""
        return f"{RULES[self.cfg.train.select]} {self.history.selected}"

    @property
    def parameters(self) -> int:
        """Number of weights of the encoder and its heads."""
        return sum(p.numel() for p in self.encoder.parameters())

    def save(self, folder: Path | str) -> None:
        """Save encoder, bank and config (safetensors)."""
        tensors = named(encoder=self.encoder.state_dict(), bank=self._fitted().tensors())
        tensors |= {"healthy": torch.from_numpy(self.healthy), "history": history_tensor(self.history)}
        state = {"draws": DRAWS, "shape": self.image_shape}
        save_checkpoint(Path(folder) / WEIGHTS, tensors, spec=self.spec, state=state)

    @classmethod
    def load(cls, folder: Path | str, *, compute: Compute | None = None) -> Self:
        """Load what ``save`` wrote, ready to score; the dissolver is not needed for that."""
        checkpoint = load_checkpoint(Path(folder) / WEIGHTS)
        refuse_differences(checkpoint.path, {"kind": checkpoint.spec.get("kind")}, {"kind": cls.name})
        cfg = checkpoint.config(ExperimentConfig, checkpoint.spec.get("config"))
        draws = checkpoint.state.get("draws", 1)
        if draws != DRAWS:
            raise CheckpointError(
                f"its feature bank was drawn by scheme {draws}, images are scored by scheme {DRAWS}.",
                path=checkpoint.path,
                hint="Run the command that made it again: the weights stay, bank and scores are made anew.",
            )
        detector = cls.__new__(cls)
        detector.cfg, detector.compute, detector.dissolve = cfg, compute or Compute.auto(), None
        detector.shift = cfg.views.shift
        detector.encoder = build_encoder(cfg.encoder, seed=cfg.seed, shifts=cfg.classes)
        return detector._restore(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> Self:
        tensors, path = checkpoint.tensors, checkpoint.path
        checkpoint.refuse_others("encoder.", "bank.", "healthy", "history")
        load_weights(self.encoder, tensors, path=path, prefix="encoder.")
        n = tensors["healthy"].numel() if "healthy" in tensors else 0
        self.healthy = matching(tensors, "healthy", {"": torch.empty(n, dtype=torch.int64)}, path=path)[""].numpy()
        shapes = FeatureBank.shapes(n, self.cfg.encoder.projection_dim)
        self.bank = FeatureBank.from_tensors(matching(tensors, "bank.", shapes, path=path))
        self.history = read_history(checkpoint)
        self.spec, self.image_shape = checkpoint.spec, list(checkpoint.state.get("shape", ()))
        self.encoder.eval()
        return self


class CSI(DIA):
    """Contrasting Shifted Instances: the same encoder, loss and score with the two ordinary branches alone."""

    name = "csi"
    label = "CSI"
    uses = ("data", "views", "encoder", "loss", "train", "score")
    color = "#E69F00"

    def _operator(self, ddpm: DDPM | None) -> None:
        return None
