"""PaDiM: a Gaussian of healthy features at every position, and how far an image lies from it (Defard et al., 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from diawork.base.checkpoints import Checkpointer
from diawork.base.config import Count, Frozen, Positive, Strides
from diawork.base.loop import Progress
from diawork.base.seeding import generator
from diawork.data.images import Images
from diawork.detectors.learned import BATCH, SeesThrough, enlarged, side_by_side, smoothed


class PaDiM(SeesThrough):
    """Mahalanobis distance at every position, the largest of an image its score."""

    name = "padim"
    label = "PaDiM"
    uses = ("data", "backbone", "padim")
    color = "#CC6677"
    paper: ClassVar = {"backbone.name": "wide_resnet50_2", "backbone.image_size": 224, "padim.dims": 550}
    sizes: ClassVar = {"smoke": {"dims": 20}}
    keeps = ("mean", "whitening")

    class Section(Frozen):
        """Its knobs; what the paper says is the default."""

        strides: Strides = (4, 8, 16)
        dims: Count = 100  # channels drawn
        regularisation: Positive = 0.01  # added to the diagonal of every covariance

    def _prepare(self) -> None:
        super()._prepare()
        total = sum(self.backbone.channels)
        order = torch.randperm(total, generator=generator(self.cfg.seed, "padim", "channels"))
        self.drawn = order[: self.hp.dims].sort().values

    def _embedded(self, maps: list[Tensor]) -> Tensor:
        """Return the drawn channels at every position of the finest stage (P, B, d)."""
        drawn = side_by_side(maps)[:, self.drawn.to(maps[0].device)]
        return drawn.flatten(2).permute(2, 0, 1).contiguous()  # as it lies, every position would be a product by itself

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        n, origin = len(x), self._embedded(self._features(x[:BATCH])).mean(1, keepdim=True)
        total = outer = torch.zeros((), device=origin.device)
        for maps in self._all(x, progress=progress):
            e = self._embedded(maps) - origin  # near the mean, so that nothing cancels
            total, outer = total + e.sum(1), outer + e.transpose(1, 2) @ e
        shift = total / n
        covariance = (outer - n * shift[:, :, None] * shift[:, None]) / max(1, n - 1)
        identity = torch.eye(covariance.shape[-1], device=covariance.device)
        lower = torch.linalg.cholesky(covariance + self.hp.regularisation * identity)
        # L⁻¹ (P, d, d) of Σ + εI = LLᵀ: ‖L⁻¹(x − μ)‖ is the Mahalanobis distance
        whitening = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
        self.kept = {"mean": (origin[:, 0] + shift).cpu(), "whitening": whitening.cpu()}

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self._features(x)
        centred = self._embedded(maps).cpu() - self.kept["mean"][:, None]
        distance = (centred @ self.kept["whitening"].transpose(1, 2)).norm(dim=2).T
        heat = smoothed(enlarged(distance.unflatten(1, maps[0].shape[-2:]), (self.side, self.side)))
        return heat.amax((1, 2)), heat
