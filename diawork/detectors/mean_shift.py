"""Mean-shifted contrastive adaptation of a pretrained backbone, and kNN on what it becomes (AAAI 2023).

Reiss and Hoshen: features are normalised, the healthy centre c is subtracted, and NT-Xent asks for the angles
around c; an angular term may hold the features near c.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diawork.base.checkpoints import Checkpointer
from diawork.base.config import Count, Frozen, LossConfig, Positive, Stages, ViewsConfig, Weight, Whole
from diawork.base.loop import Progress, Row, descend
from diawork.base.seeding import generator
from diawork.data.images import Images, ImageSet
from diawork.detectors.backbones import resized
from diawork.detectors.deep_knn import pooled
from diawork.detectors.learned import SeesThrough, nearest_distances
from diawork.evaluation.diagnostics import Diagnostics, feature_spread
from diawork.method.loss import nt_xent
from diawork.method.views import augment, draw_augmentation

VIEWS = ViewsConfig(crop_scale=(0.2, 1.0))  # MoCo's; beside them flips and, of half the views, blur
BLUR = (0.1, 2.0)  # px at 224, the standard deviation of a blurred view


class MeanShift(SeesThrough):
    """Sum of the squared distances to the nearest healthy images in the adapted, normalised features."""

    name = "mean_shift"
    label = "mean-shifted contrastive"
    uses = ("data", "backbone", "mean_shift")
    color = "#661100"
    revision = 2
    paper: ClassVar = {"backbone.name": "resnet152", "backbone.image_size": 224}
    length = "epochs"
    sizes: ClassVar = {"smoke": {"epochs": 1}, "cpu": {"epochs": 3}}
    keeps = ("healthy",)
    has_map = False

    class Section(Frozen):
        """Its knobs; what the paper says is the default."""

        strides: Stages = ()  # stages pooled and put side by side; (): what the classifier sees
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
        centre = self._embedded(x, progress=progress).mean(0)
        if self.hp.angular_weight:
            centre = F.normalize(centre, dim=0)
        trained = [p for p in self.net.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=self.hp.lr, weight_decay=self.hp.weight_decay)

        def take_step(step: int, rows: Tensor) -> Row:
            self.net.eval()  # the statistics stay the pretrained ones
            return descend(self._loss(rows, centre, step), optimizer)

        self._train(take_step, x, checkpointer, progress=progress, optimizer=optimizer)
        self.kept = {"healthy": self._embedded(x, progress=progress)}

    def _loss(self, x: Tensor, centre: Tensor, step: int) -> Tensor:
        draws = generator(self.cfg.seed, "mean_shift", step)
        two = resized(x, self.side).repeat(2, 1, 1, 1)
        flip = torch.rand(len(two), generator=draws)[:, None, None, None] < 0.5
        views = torch.where(flip, two.flip(-1), two)
        views = augment(views, draw_augmentation(len(views), VIEWS, draws))
        low, high = (sigma * self.side / 224 for sigma in BLUR)
        sigma = low + (high - low) * torch.rand(len(views), generator=draws)
        views = blurred(views, sigma * (torch.rand(len(views), generator=draws) < 0.5))
        with self.compute.autocast():
            f = F.normalize(pooled(self.net(self.compute.to(views))).float(), dim=1)
        image, branch = torch.arange(len(x)).repeat(2), torch.arange(2).repeat_interleave(len(x))
        cfg, around = LossConfig(temperature=self.hp.temperature, constant="mean"), f - centre.to(f.device)
        loss = nt_xent(around, image, torch.zeros_like(image), branch, cfg=cfg)
        return loss + self.hp.angular_weight * 2 * around.square().sum(1).mean()  # of either view, as released

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


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Return images (B, C, H, W) blurred by a Gaussian of their own sigma (B,) in px; 0 leaves an image as it is."""
    places = torch.arange(-math.ceil(3 * float(sigma.max())), math.ceil(3 * float(sigma.max())) + 1)
    kernel = (-(places / sigma.clamp_min(1e-3)[:, None]).square() / 2).softmax(1)[:, None]  # (B, 1, n)
    rows, half = x.transpose(0, 1), len(places) // 2
    rows = F.conv2d(F.pad(rows, (half, half, 0, 0), "replicate"), kernel[:, :, None], groups=len(x))
    rows = F.conv2d(F.pad(rows, (0, 0, half, half), "replicate"), kernel[..., None], groups=len(x))
    return rows.transpose(0, 1)
