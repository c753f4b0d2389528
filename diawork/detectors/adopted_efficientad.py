"""EfficientAD of anomalib: a student and an autoencoder against a small teacher that comes trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diawork.base.checkpoints import Checkpointer
from diawork.base.errors import DataError, UsageError
from diawork.base.loop import Progress
from diawork.base.seeding import generator
from diawork.data.images import Images
from diawork.data.readers.listing import walk
from diawork.data.readers.picture import read_image
from diawork.detectors.adopted import model_of, weights_folder
from diawork.detectors.adopted_students import OwnNetworks
from diawork.detectors.backbones import read_weights, resized


class EfficientAD(OwnNetworks):
    """EfficientAD-S (Batzner et al., 2024): a student and an autoencoder of a small teacher, which comes trained.

    The quantiles that scale its two maps are those of every tenth healthy training image, held out of the training.
    Its penalty keeps the student from following the teacher on natural images; with random teacher weights, the
    control, on noise.
    """

    name = "EfficientAD"
    requires_weights = True
    steps_in_all = 70_000
    batch_size = 1
    lr = 1e-4
    SMALLEST = 256  # px, below which its autoencoder has no code
    TEACHER = "efficientad_pretrained_weights/pretrained_teacher_small.pth"

    @property
    def pretrained(self) -> bool:
        """Whether its teacher has learnt elsewhere."""
        return self.cfg.backbone.weights != "random"

    def _frozen(self) -> dict[str, str]:
        return {"teacher": self._sha256}

    def _model(self) -> nn.Module:
        if self.cfg.backbone.image_size < self.SMALLEST:
            size = self.cfg.backbone.image_size
            raise UsageError(f"backbone.image_size={size} must be {self.SMALLEST} or more for EfficientAD.")
        model = model_of("efficient_ad.torch_model").EfficientAdModel()
        file = self._teacher_file()
        if file:
            model.teacher.load_state_dict(read_weights(file))
        whole = b"".join(value.numpy().tobytes() for value in model.teacher.state_dict().values())
        self._sha256 = hashlib.sha256(whole).hexdigest()
        words = f"{file.name}, SHA-256 {self._sha256[:12]}" if file else f"random, seed {self.cfg.seed}"
        self.weights = f"EfficientAD's small teacher, {words}"
        for part in (model.teacher, model.mean_std, model.quantiles):
            part.requires_grad_(False)
        return model

    def _teacher_file(self) -> Path | None:
        """Return the file of the teacher's weights, None for random ones; a missing one is named."""
        weights = self.cfg.backbone.weights
        if weights == "random":
            return None
        cache = weights_folder() / self.TEACHER
        path = cache if weights == "pretrained" else Path(weights)
        if not path.is_file():
            hint = "Name another in backbone.weights, or say backbone.weights=random."
            raise UsageError(f"EfficientAD's teacher, {path.name} of anomalib's release, is not at {path}.", hint=hint)
        return path

    def _natural(self) -> list[Path]:
        """Return the pictures of the penalty; with random weights there is none."""
        folder = self.cfg.anomalib.natural_images
        if not folder and self.pretrained:
            what = "EfficientAD's penalty draws from natural images, which are not on this machine;"
            raise UsageError(f"{what} name a folder of them (its authors': ImageNette) in anomalib.natural_images.")
        files = sorted(str(file.path) for file in walk(Path(folder))) if folder else []
        if folder and not files:
            raise DataError("anomalib.natural_images holds no pictures.", path=folder)
        return [Path(folder) / file for file in files]

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        self._pictures = self._natural()
        rows = torch.arange(len(x))
        held, rest = (rows[::10], rows[rows % 10 > 0]) if len(x) > 10 else (rows, rows)
        self._set_statistics(x)
        super()._learn(x[rest], checkpointer, progress=progress)
        self._set_quantiles(x[held])

    @torch.no_grad()
    def _set_statistics(self, x: Images) -> None:
        """Set the mean and deviation of each of the teacher's channels."""
        n, total, squares = 0, torch.zeros(()), torch.zeros(())
        for rows in self._prepared(x):
            maps = self.net.teacher(rows).double().cpu()
            n += maps[:, 0].numel()
            total, squares = total + maps.sum((0, 2, 3)), squares + maps.square().sum((0, 2, 3))
        mean = total / n
        deviation = (squares / n - mean.square()).clamp_min(1e-12).sqrt()
        for name, value in (("mean", mean), ("std", deviation)):
            self.net.mean_std[name].copy_(value.float()[None, :, None, None])

    @torch.no_grad()
    def _set_quantiles(self, x: Images) -> None:
        """Set the quantiles of 0.9 and 0.995 of both maps of held-out healthy images."""
        maps = [self.net.get_maps(rows, normalize=False) for rows in self._prepared(x)]
        for part, values in zip(("st", "ae"), zip(*maps, strict=True), strict=True):
            flat = torch.cat([v.flatten().cpu() for v in values])
            for name, share in (("qa", 0.9), ("qb", 0.995)):
                rank = min(len(flat), max(1, round(share * len(flat))))
                self.net.quantiles[f"{name}_{part}"].copy_(flat.kthvalue(rank).values)

    def _optimizers(self, lr: float) -> Mapping[str, torch.optim.Optimizer]:
        trained = [*self.net.student.parameters(), *self.net.ae.parameters()]
        return {"optimizer": torch.optim.Adam(trained, lr=lr, weight_decay=1e-5)}

    def _rate(self, step: int, steps: int) -> float:
        return 0.1 if step >= int(0.95 * steps) else 1.0

    def _loss(self, x: Tensor, step: int) -> Tensor:
        natural = self._picture(step) if self._pictures else torch.rand_like(x)
        return sum(self.net(x, natural), torch.zeros(()))  # student and teacher, autoencoder and teacher, both

    def _picture(self, step: int) -> Tensor:
        """Return one natural image (1, 3, H, W), its middle at twice the size; three in ten are grey."""
        drawn = generator(self.cfg.seed, self.name, "picture", step)
        file = self._pictures[int(torch.randint(len(self._pictures), (1,), generator=drawn))]
        height, width = self.size
        whole = resized(torch.from_numpy(read_image(file).image)[None].expand(1, 3, -1, -1), 2 * height)
        middle = whole[..., height // 2 : height // 2 + height, width // 2 : width // 2 + width]
        grey = torch.rand((), generator=drawn) < 0.3
        return self.compute.to(middle.mean(1, keepdim=True).expand(-1, 3, -1, -1) if grey else middle)
