"""Mean-shifted contrastive adaptation of a pretrained backbone, and kNN on what it becomes (AAAI 2023).

Reiss and Hoshen: features are normalised, the healthy centre c is subtracted, and NT-Xent asks for the angles
around c; an angular term may hold the features near c.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diawork.base.checkpoints import Checkpointer
from diawork.base.config import LossConfig, ViewsConfig
from diawork.base.knobs import Count, Frozen, Positive, Strides, Weight, Whole
from diawork.base.loop import Progress, Row, descend
from diawork.base.seeding import generator
from diawork.data.images import Images, ImageSet
from diawork.detectors.deep_knn import pooled
from diawork.detectors.learned import SeesThrough, nearest_distances
from diawork.evaluation.diagnostics import Diagnostics, feature_spread
from diawork.method.loss import nt_xent
from diawork.method.views import augment, draw_augmentation

VIEWS = ViewsConfig(crop_scale=(0.2, 1.0))  # MoCo's


class MeanShift(SeesThrough):
    """Sum of the squared distances to the nearest healthy images in the adapted, normalised features."""

    name = "mean_shift"
    label = "mean-shifted contrastive"
    uses = ("data", "backbone", "mean_shift")
    color = "#661100"
    paper: ClassVar = {"backbone.name": "resnet152", "backbone.image_size": 224}
    length = "epochs"
    sizes: ClassVar = {"smoke": {"epochs": 1}, "cpu": {"epochs": 3}}
    keeps = ("healthy",)
    has_map = False

    class Section(Frozen):
        """Its knobs; what the paper says is the default."""

        strides: Strides = (32,)
        frozen: Count = 8  # stride up to which the backbone stays as it is
        temperature: Positive = 0.25
        epochs: Count = 20
        batch_size: Annotated[Whole, Field(ge=2)] = 64
        lr: Positive = 1e-5
        weight_decay: Weight = 5e-5
        angular_weight: Weight = 0.0  # of the angle to the centre
        neighbours: Count = 2

    def _prepare(self) -> None:
        super()._prepare()
        self.net = self.backbone
        for parameter in self.net.trainable_after(self.hp.frozen):
            parameter.requires_grad_(True)

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        centre = F.normalize(self._embedded(x, progress=progress).mean(0), dim=0)
        own, trained = self.hp, [p for p in self.net.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=own.lr, weight_decay=own.weight_decay, momentum=0.9)

        def take_step(step: int, index: Tensor) -> Row:
            self.net.eval()  # the statistics stay the pretrained ones
            return descend(self._loss(x[index], centre, step), optimizer)

        steps = own.epochs * -(-len(x) // own.batch_size)
        self._train(
            take_step, {"optimizer": optimizer}, checkpointer, n=len(x), batch_size=own.batch_size, steps=steps,
            progress=progress,
        )  # fmt: skip
        self.kept = {"healthy": self._embedded(x, progress=progress)}

    def _loss(self, x: Tensor, centre: Tensor, step: int) -> Tensor:
        two = x.repeat(2, 1, 1, 1)
        views = augment(two, draw_augmentation(len(two), VIEWS, generator(self.cfg.seed, "mean_shift", step)))
        with self.compute.autocast():
            f = F.normalize(pooled(self.net(self.compute.to(views))).float(), dim=1)
        image, branch = torch.arange(len(x)).repeat(2), torch.arange(2).repeat_interleave(len(x))
        cfg = LossConfig(temperature=self.hp.temperature, constant="mean")
        loss = nt_xent(f - centre.to(f.device), image, torch.zeros_like(image), branch, cfg=cfg)
        return loss + self.hp.angular_weight * (f - centre.to(f.device)).square().sum(1).mean()

    def _embedded(self, x: Images, *, progress: Progress) -> Tensor:
        return torch.cat([self._direction(maps) for maps in self._all(x, progress=progress)])

    def facts(self, images: ImageSet) -> Diagnostics:
        """Return how the features of ``images`` spread."""
        return Diagnostics(features=feature_spread(self._embedded(images.images, progress=False).numpy()))

    @staticmethod
    def _direction(maps: list[Tensor]) -> Tensor:
        return F.normalize(pooled(maps), dim=1).cpu()

    def _scored(self, x: Tensor) -> tuple[Tensor, None]:
        distances, _ = nearest_distances(self._direction(self._features(x)), self.kept["healthy"], self.hp.neighbours)
        return distances.square().sum(1), None
