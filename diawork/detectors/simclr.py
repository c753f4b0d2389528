"""SimCLR as the limit of CSI with a single shift: no shifted instances, no classifier, the rest the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diawork.base.checkpoints import Checkpointer
from diawork.base.loop import Progress, Row, descend
from diawork.base.seeding import generator
from diawork.data.images import Images, ImageSet, at_once
from diawork.detectors.learned import Learned
from diawork.evaluation.diagnostics import Diagnostics, feature_spread
from diawork.method.encoder import build_encoder, in_channels
from diawork.method.loss import nt_xent
from diawork.method.scoring import FeatureBank, Features, score
from diawork.method.training import build_optimizer, epoch_batches, learning_rate
from diawork.method.views import augment, draw_augmentation


class SimCLR(Learned):
    """NT-Xent between two views; the score is −λ max_m ⟨z̄, axis_m⟩ over healthy images (Eq. 10 at K = 1).

    The augmented copies of the score are the same for every image, so that no image's score depends on others.
    """

    name = "simclr"
    label = "SimCLR"
    uses = ("data", "views", "encoder", "loss", "train", "score")
    color = "#6699CC"
    section = "train"
    keeps = ("axes", "weight_similarity")
    has_map = False

    def _prepare(self) -> None:
        self.net = build_encoder(self.cfg.encoder, seed=self.cfg.seed)
        self.net.shift = nn.Identity()  # there is nothing to classify
        self.net = self.compute.prepare(self.net)

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        x, cfg = in_channels(x, self.cfg.encoder.channels), self.cfg.train
        optimizer = build_optimizer(self.net, cfg)
        per_epoch = len(epoch_batches(len(x), cfg, seed=self.cfg.seed, epoch=0))

        def take_step(step: int, rows: Tensor) -> Row:
            return descend(self._loss(rows, step), optimizer)

        self._train(
            take_step, x, checkpointer, steps=cfg.epochs * per_epoch, progress=progress, optimizer=optimizer,
            rate=lambda step: learning_rate(step / per_epoch, cfg),
        )  # fmt: skip
        bank = FeatureBank.fit(self._embedded(x))
        self.kept = {"axes": bank.axes, "weight_similarity": bank.weight_similarity}

    def _loss(self, x: Tensor, step: int) -> Tensor:
        """Return the NT-Xent of two views of x (B, C, H, W)."""
        two = x.repeat(2, 1, 1, 1)
        flip = torch.rand(len(two), generator=generator(self.cfg.seed, "simclr", step, "flip")) < 0.5
        two = torch.where((flip & self.cfg.views.hflip)[:, None, None, None], two.flip(-1), two)
        views = augment(two, draw_augmentation(len(two), self.cfg.views, generator(self.cfg.seed, "simclr", step)))
        with self.compute.autocast():
            z = self.net(self.compute.to(views)).z
        image, branch = torch.arange(len(x)).repeat(2), torch.arange(2).repeat_interleave(len(x))
        return nt_xent(z, image, torch.zeros_like(image), branch, cfg=self.cfg.loss)

    @torch.no_grad()
    def _embedded(self, x: Images) -> Features:
        """Return mean features (1, N, D) over T′ augmented copies, each the same change to every image."""
        self.net.eval()
        views = self.cfg.views.but(crop_scale=self.cfg.score.crop_scale)
        total = torch.zeros(len(x), self.cfg.encoder.projection_dim)
        for sample in range(self.cfg.score.samples):
            drawn = draw_augmentation(1, views, generator(self.cfg.seed, "simclr", "score", sample))
            parts = []
            for rows in x.split(at_once(x, 1024)):
                copies = augment(rows, drawn.take(torch.zeros(len(rows), dtype=torch.long)))
                with self.compute.autocast():
                    parts.append(self.net(self.compute.to(copies)).z.float().cpu())
            total = total + torch.cat(parts)
        z = (total / self.cfg.score.samples)[None]
        return Features(z, torch.ones(1, len(x), 1))

    def facts(self, images: ImageSet) -> Diagnostics:
        """Return how the features of ``images`` spread."""
        x = in_channels(images.images, self.cfg.encoder.channels)
        return Diagnostics(features=feature_spread(self._embedded(x).z[0].numpy()))

    def _scored(self, x: Tensor) -> tuple[Tensor, None]:
        bank = FeatureBank(self.kept["axes"], self.kept["weight_similarity"], torch.ones(1))
        features = self._embedded(in_channels(x.cpu(), self.cfg.encoder.channels))
        return score(features, bank, parts="similarity").total, None
