"""PatchCore: how far a patch lies from a small bank of healthy ones (Roth et al., CVPR 2022)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diawork.base.checkpoints import Checkpointer
from diawork.base.config import Count, Frozen, Strides
from diawork.base.loop import Progress
from diawork.base.seeding import generator
from diawork.base.stopping import raise_if_stopping
from diawork.data.images import Images
from diawork.detectors.learned import SeesThrough, enlarged, nearest_distances, side_by_side, smoothed


class PatchCore(SeesThrough):
    """Largest distance of an image's patches to a coreset of healthy ones, weighted by how lonely its neighbour is."""

    name = "patchcore"
    label = "PatchCore"
    uses = ("data", "backbone", "patchcore")
    color = "#DDCC77"
    paper: ClassVar = {"backbone.name": "wide_resnet50_2", "backbone.image_size": 224}
    sizes: ClassVar = {"smoke": {"most_patches": 500}}
    keeps = ("bank",)

    class Section(Frozen):
        """Its knobs; what the paper says is the default."""

        strides: Strides = (8, 16)
        coreset: Annotated[float, Field(gt=0, le=1)] = 0.1  # share of the patches that the bank keeps
        most_patches: Count = 100_000  # drawn before the coreset is chosen; ours, for memory and time
        projection: Count = 128  # dimensions in which the coreset is chosen
        neighbours: Count = 9  # of the weight that an image's score gets

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        patches, cfg, seed = self._drawn(x, progress=progress), self.hp, self.cfg.seed
        axes = torch.randn(patches.shape[1], cfg.projection, generator=generator(seed, "patchcore", "projection"))
        flat = patches @ axes / cfg.projection**0.5 if cfg.projection < patches.shape[1] else patches
        first = int(torch.randint(len(patches), (1,), generator=generator(seed, "patchcore", "first")))
        self.kept = {"bank": patches[coreset(flat, max(1, round(cfg.coreset * len(patches))), first=first)]}

    def _drawn(self, x: Images, *, progress: Progress) -> Tensor:
        """Return patches (M, C) of healthy images: all of them, or as many of each image as the limit allows."""
        kept: list[Tensor] = []
        for maps in self._all(x, progress=progress):
            patches = self._patches(maps)
            per_image = min(patches.shape[1], -(-self.hp.most_patches // len(x)))
            drawn = torch.rand(patches.shape[:2], generator=generator(self.cfg.seed, "patchcore", "drawn", len(kept)))
            rows = drawn.argsort(1)[:, :per_image]
            kept.append(patches.cpu().gather(1, rows[..., None].expand(-1, -1, patches.shape[2])).flatten(0, 1))
        return torch.cat(kept)[: self.hp.most_patches]

    @staticmethod
    def _patches(maps: list[Tensor]) -> Tensor:
        """Return the means of every 3×3 neighbourhood, scales side by side (B, P, C)."""
        local = [F.avg_pool2d(f, 3, 1, 1) for f in maps]
        return side_by_side(local, mode="bilinear").flatten(2).transpose(1, 2)

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        score, distance = self._compared(self._features(x))
        return score, smoothed(enlarged(distance, (self.side, self.side)))

    def _compared(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and the distance of each patch to the bank (B, h, w)."""
        patches = self._patches(maps).cpu()
        distance, at = (v.unflatten(0, patches.shape[:2])[..., 0] for v in self._nearest(patches.flatten(0, 1), 1))
        worst = distance.argmax(1)
        rows = torch.arange(len(patches))
        weight = self._loneliness(patches[rows, worst], at[rows, worst], distance[rows, worst])
        return weight * distance[rows, worst], distance.unflatten(1, maps[0].shape[-2:])

    def _nearest(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return nearest_distances(rows, self.kept["bank"], k)

    def _loneliness(self, patch: Tensor, neighbour: Tensor, distance: Tensor) -> Tensor:
        """Return 1 − exp(d(m, m*)) / Σ exp(d(m, b)) (B,) over the b that are nearest to the neighbour m* in the bank.

        A bank of one knows no other neighbours: then there is no weight.
        """
        bank = self.kept["bank"]
        if len(bank) < 2 or self.hp.neighbours < 2:
            return torch.ones(len(patch))
        around = bank[self._nearest(bank[neighbour], self.hp.neighbours)[1]]  # (B, k, C), the neighbour among them
        distances = (around - patch[:, None]).norm(dim=2)
        return 1 - (distance - distances.logsumexp(1)).exp()


def coreset(x: Tensor, size: int, *, first: int = 0) -> Tensor:
    """Return the rows (size,) of x (N, F) that a greedy k-centre search picks: each the farthest from all before."""
    chosen, squares = torch.full((min(size, len(x)),), first), x.square().sum(1)
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype)
    for i, row in enumerate(chosen[1:]):
        raise_if_stopping()
        latest = x[chosen[i]]
        nearest = torch.minimum(nearest, squares - 2 * (x @ latest) + latest.square().sum())
        nearest[chosen[i]] = -torch.inf  # never again, whatever rounding says
        row.fill_(nearest.argmax())
    return chosen
