"""CFA, PatchCore and AnomalyDINO of anomalib: how far an image's patches lie from remembered healthy ones."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import timm
import torch
from torch import Tensor, nn

from diawork.base.checkpoints import Checkpointer
from diawork.base.loop import Progress
from diawork.base.seeding import generator, isolated_rng, key
from diawork.base.stopping import raise_if_stopping
from diawork.data.images import Images
from diawork.detectors.adopted import Adopted, Aside, model_of, standing_in
from diawork.detectors.backbones import Transformer

HYPERSPHERES = {"num_nearest_neighbors": 3, "num_hard_negative_features": 3, "radius": 1e-5}  # CFA's


class _Bank(Adopted):
    """A model whose bank of rows is kept beside its weights."""

    keeps = ("bank",)

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self.net.memory_bank = self.compute.to(self.kept["bank"])
        return super()._scored(x)


def _without_bank(model: Any) -> Any:
    """Return a model whose bank is not among its weights: its size is known after fitting alone."""
    model.register_buffer("memory_bank", model.memory_bank, persistent=False)
    return model


class CFA(_Bank):
    """Coupled-hypersphere feature adaptation (Lee et al., 2022): features learn to lie near the mean healthy ones."""

    name = "CFA"
    epochs = 30
    batch_size = 4

    def _model(self) -> nn.Module:
        library, channels = model_of("cfa.torch_model"), sum(self.backbone.channels)
        with standing_in(
            library, get_feature_extractor=lambda *_: Aside(self.backbone.net, by_number=True)
        ):  # the library's would be downloaded
            model = library.CfaModel("resnet18", gamma_c=1, gamma_d=1, **HYPERSPHERES)
        model.descriptor.layer = library.CoordConv2d(in_channels=channels, out_channels=channels, kernel_size=1)
        for unused in (model.descriptor.layer.weight, model.descriptor.layer.bias):  # it inherits and hides them
            unused.requires_grad_(False)
        squares = model.compute_distance
        model.compute_distance = lambda f: squares(f).clamp_min(0)  # their root follows
        return _without_bank(model)

    def _optimizers(self, lr: float) -> Mapping[str, torch.optim.Optimizer]:
        return {"optimizer": torch.optim.AdamW(self._trained(), lr=lr, weight_decay=5e-4, amsgrad=True)}

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        self.kept = {"bank": self._mean_features(x)}
        self.net.memory_bank = self.compute.to(self.kept["bank"])
        super()._learn(x, checkpointer, progress=progress)

    @torch.no_grad()
    def _mean_features(self, x: Images) -> Tensor:
        """Return the mean adapted feature of each position (C, h·w) before any step."""
        total: Any = sum(self.net.descriptor(self.backbone.net(rows)).sum(0) for rows in self._prepared(x))
        return (total / len(x)).flatten(1).cpu()

    def _loss(self, x: Tensor, step: int) -> Tensor:
        return model_of("cfa.loss").CfaLoss(**HYPERSPHERES)(self.net(x))


class _Remembers(_Bank):
    """A model that trains nothing and remembers healthy patches, as many as ``patchcore.most_patches`` allows."""

    @torch.no_grad()
    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        each = -(-self.cfg.patchcore.most_patches // len(x))  # patches drawn of an image
        kept: list[Tensor] = []
        self.net.train()
        for i, rows in enumerate(self._prepared(x)):
            raise_if_stopping()
            self.net(rows)
            patches = self.net.embedding_store.pop().unflatten(0, (len(rows), -1))
            drawn = torch.rand(patches.shape[:2], generator=generator(self.cfg.seed, self.name, "drawn", i))
            index = drawn.argsort(1)[:, :each, None].to(patches.device).expand(-1, -1, patches.shape[2])
            kept.append(patches.gather(1, index).flatten(0, 1))
        self.kept = {"bank": self._coreset(torch.cat(kept)[: self.cfg.patchcore.most_patches]).cpu()}

    def _coreset(self, patches: Tensor) -> Tensor:
        return patches

    @property
    def parameters(self) -> int | None:
        """Number of weights of the frozen backbone."""
        return sum(p.numel() for p in self.backbone.parameters()) if self.shape else None


class PatchCore(_Remembers):
    """The library's PatchCore and its coreset, a cross-check of ours."""

    name = "PatchCore of anomalib"
    strides = (8, 16)

    def _model(self) -> nn.Module:
        library, scales = model_of("patchcore.torch_model"), range(len(self.backbone.strides))
        with standing_in(timm, create_model=lambda *_, **__: Aside(self.backbone.net)):
            model = library.PatchcoreModel(
                tuple(scales), "resnet18", pre_trained=False, num_neighbors=self.cfg.patchcore.neighbours
            )
        return _without_bank(model)

    def _coreset(self, patches: Tensor) -> Tensor:
        sampler = model_of("patchcore.torch_model").KCenterGreedy(patches, self.cfg.patchcore.coreset)
        sampler.model.random_state = key(self.cfg.seed, self.name, "projection") % 2**32
        bar = import_module(sampler.__module__)
        with isolated_rng(self.cfg.seed, self.name, "first"), standing_in(bar, tqdm=lambda rows, **_: rows):
            return sampler.sample_coreset()


class AnomalyDINO(_Remembers):
    """AnomalyDINO (Damm et al., 2025): cosine distances of DINOv2's tokens, the mean of the highest per cent."""

    name = "AnomalyDINO"

    def _looked_through(self) -> Transformer:
        return Transformer(self.cfg.backbone, seed=self.cfg.seed)

    def _model(self) -> nn.Module:
        library = model_of("anomaly_dino.torch_model")
        with standing_in(timm, create_model=lambda *_, **__: Aside(self.backbone.net)):
            return _without_bank(library.AnomalyDINOModel(encoder_name=self.cfg.backbone.name))
