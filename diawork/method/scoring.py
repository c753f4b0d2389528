"""The feature bank of healthy images and the anomaly score (Eq. 10, over all shifts).

The released score is "higher = more normal"; ``Scores.total`` carries the opposite sign, because in
this project a higher score is always more anomalous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diawork.base.compute import Compute
from diawork.base.config import K, ScoreConfig, ViewsConfig
from diawork.base.errors import NumericError, UsageError
from diawork.base.loop import Progress, progress_bar
from diawork.base.seeding import KeyedDraws, image_keys
from diawork.base.stopping import raise_if_stopping
from diawork.data.images import Images, at_once
from diawork.method.encoder import Encoder, evaluating
from diawork.method.views import SHIFTS, augment, draw_augmentation

UNDEFINED = 1e-3  # a mean shift logit nearer to zero than this, or negative, has no usable inverse


@dataclass(frozen=True)
class Features:
    """Mean features over the augmented samples: z (K, N, D) and shift logits (K, N, K or 2K; the first K count)."""

    z: Tensor
    shift_logits: Tensor
    halves: tuple[tuple[int, Features], ...] = ()  # number and mean of the even and of the odd samples, from T′ = 2


@dataclass(frozen=True)
class Scores:
    """The anomaly score and its parts, a row an image; higher = more anomalous."""

    total: Tensor  # (N,)
    similarity: Tensor  # (N, K) −λ_k · max_m ⟨f̄_k, axis_{k,m}⟩
    shift: Tensor  # (N, K) −μ_k · logit_k (or −probability where μ is undefined)
    nearest: Tensor  # (N, K) healthy image with the largest product


@torch.no_grad()
def extract_features(
    encoder: Encoder,
    x: Images,
    *,
    views: ViewsConfig | None = None,
    score: ScoreConfig | None = None,
    seed: int = 0,
    what: str = "images",
    compute: Compute | None = None,
    batch: int = 1024,
    progress: Progress = False,
) -> Features:
    """Embed x (N, C, H, W) in [0, 1] under T′ augmentations and K shifts; average over T′.

    The draws depend on seed, sample, shift and the image's pixels alone, so neither its split, its place, its
    batch nor a training around the call changes a score, and the call changes nothing in a training.
    ``what`` names the images on the progress bar.
    """
    views, score, compute = views or ViewsConfig(), score or ScoreConfig(), compute or Compute()
    compute.prepare(encoder)
    size = at_once(x, batch)
    cropped = views.but(crop_scale=score.crop_scale)
    sums: list[Any] = [0.0, 0.0]  # over the even and the odd samples
    keys = np.concatenate([image_keys(rows) for rows in x.split(size)])

    def embedded(rows: Tensor, k: int, draws: Callable[..., KeyedDraws]) -> Tensor:
        """Return (n, D + classes) of T∘S_k(rows): projection and shift logits."""
        raise_if_stopping()
        coin = ("flip", k) if score.flip_per == "shift" else ("flip",)
        mirrored = (draws(*coin).rand(len(rows)) < 0.5) & views.hflip
        rows = torch.where(mirrored[:, None, None, None], rows.flip(-1), rows)
        seen = augment(SHIFTS[views.shift](rows, k), draw_augmentation(len(rows), cropped, draws(k)))
        with evaluating(encoder), compute.autocast():
            embedding = encoder(compute.to(seen))
        return torch.cat([embedding.z.float(), embedding.shift_logits.float()], 1).cpu()

    with progress_bar(progress, total=score.samples, desc=f"features of {what}") as bar:
        for sample in range(score.samples):
            per_shift: list[list[Tensor]] = [[] for _ in range(K)]
            for start in range(0, len(x), size):
                rows = x[start : start + size]
                draws = partial(KeyedDraws, keys[start : start + size], seed, "score", sample)
                for k in range(K):
                    per_shift[k].append(embedded(rows, k, draws))
            sums[sample % 2] = sums[sample % 2] + torch.stack([torch.cat(parts) for parts in per_shift])
            bar.update()

    def mean(total: Tensor, n: int) -> Features:
        z, logits = (total / n).tensor_split([encoder.cfg.projection_dim], -1)
        return Features(z, logits)

    even, odd = -(-score.samples // 2), score.samples // 2
    halves = ((even, mean(sums[0], even)), (odd, mean(sums[1], odd))) if odd else ()
    return replace(mean(sums[0] + sums[1], score.samples), halves=halves)


@dataclass(frozen=True)
class FeatureBank:
    """Directions of the healthy images' features and the weights that balance the parts."""

    axes: Tensor  # (K, M, D), unit length
    weight_similarity: Tensor  # (K,) λ_k = 1 / mean norm
    weight_shift: Tensor  # (K,) μ_k = 1 / mean logit of the right shift; NaN where undefined

    @classmethod
    def fit(cls, features: Features) -> FeatureBank:
        """Take axes, λ and μ (Eq. 10) from the healthy training images' features; they must be finite."""
        _require_finite(features)
        right = torch.stack([features.shift_logits[k, :, k].mean() for k in range(len(features.z))])
        weight_shift = torch.where(right > UNDEFINED, 1 / right, torch.nan)
        norms = features.z.norm(dim=-1)
        if not norms.sum(1).all():
            raise NumericError("all features are zero: the encoder has collapsed.", hint="Lower train.peak_lr.")
        return cls(F.normalize(features.z, dim=-1), 1 / norms.mean(1), weight_shift)

    def tensors(self) -> dict[str, Tensor]:
        """Return the bank as named tensors; an undefined μ is stored as 0."""
        return {
            "axes": self.axes,
            "weight_similarity": self.weight_similarity,
            "weight_shift": self.weight_shift.nan_to_num(0.0),
        }

    @staticmethod
    def shapes(n: int, dim: int) -> dict[str, Tensor]:
        """Return what ``tensors`` returns for n healthy images and features of ``dim``, without content."""
        sizes = {"axes": (K, n, dim), "weight_similarity": (K,), "weight_shift": (K,)}
        return {name: torch.empty(size, device="meta") for name, size in sizes.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> FeatureBank:
        """Undo ``tensors``."""
        weight = tensors["weight_shift"]
        return cls(tensors["axes"], tensors["weight_similarity"], torch.where(weight > 0, weight, torch.nan))

    @property
    def undefined_shifts(self) -> list[int]:
        """Shifts scored by the softmax probability, because their mean logit has no usable inverse."""
        return torch.nonzero(self.weight_shift.isnan())[:, 0].tolist()


def score(features: Features, bank: FeatureBank, *, parts: str = "both", block: int = 4096) -> Scores:
    """Anomaly score of features against the bank (Eq. 10): −(1/K) Σ_k [λ_k max_m ⟨f̄_k, axis_{k,m}⟩ + μ_k logit_k].

    Products are made ``block`` rows at a time. ``parts`` leaves one of the two terms out ("similarity", "shift").
    Raises ``NumericError`` for features or scores that are not finite.
    """
    _require_finite(features)
    if parts not in ("both", "similarity", "shift"):
        raise UsageError(f"parts={parts!r}; allowed: both, similarity, shift.")
    similarities, nearest, shifts = [], [], []
    for k, (z, logits, axes) in enumerate(zip(features.z, features.shift_logits, bank.axes, strict=True)):
        products = [(rows @ axes.T).max(1) for rows in z.split(block)]
        similarities.append(torch.cat([product.values for product in products]))
        nearest.append(torch.cat([product.indices for product in products]))
        undefined = bank.weight_shift[k].isnan()
        shifts.append(logits.softmax(1)[:, k] if undefined else bank.weight_shift[k] * logits[:, k])
    similarity = -torch.stack(similarities, 1) * bank.weight_similarity
    shift = -torch.stack(shifts, 1)
    used = {"both": similarity + shift, "similarity": similarity, "shift": shift}[parts]
    total = used.mean(1)
    if not torch.isfinite(total).all():
        raise NumericError(f"the score of image {_first_bad(total)} is not finite.", hint="The encoder has collapsed.")
    return Scores(total, similarity, shift, torch.stack(nearest, 1))


def copies_noise(features: Features, bank: FeatureBank, *, parts: str = "both") -> Tensor | None:
    """Estimate by how much each score (N,) would move under other T′ copies: |s_even − s_odd| · √(ab) / (a + b).

    The scores of the a even and the b odd copies differ by σ²(1/a + 1/b); over all of them σ²/(a + b) is left.
    One difference an image says little, their root mean square over images a lot. None where T′ = 1.
    """
    if not features.halves:
        return None
    (a, even), (b, odd) = features.halves
    difference = score(even, bank, parts=parts).total - score(odd, bank, parts=parts).total
    return difference.abs() * (a * b) ** 0.5 / (a + b)


def _require_finite(features: Features) -> None:
    rows = torch.cat([features.z, features.shift_logits], -1).sum((0, 2))  # NaN and infinity survive a sum
    if not torch.isfinite(rows).all():
        count = int((~torch.isfinite(rows)).sum())
        raise NumericError(
            f"features are not finite for {count} of {len(rows)} images, first {_first_bad(rows)}: "
            "the encoder has diverged.",
            hint="Lower train.peak_lr.",
        )


def _first_bad(values: Tensor) -> int:
    return int((~torch.isfinite(values)).nonzero()[0, 0])
