"""SCRD4AD: reverse distillation that stays near the healthy and far from the synthetic, scales weighted (ICLR 2025).

The student rebuilds the clean teacher's maps and is pushed away from those of an image with a noisy patch,
    L = Σᵢ wᵢ dᵢ(E, S) / Σᵢ wᵢ dᵢ(Ẽ, S).
In the released code the weights stand inside a cosine, which no positive factor changes; ``official_noop`` shows it.

Simplex noise (Perlin, 2001): gradients at the corners of a simplex grid, each fading with (0.6 − r²)⁴; a fractal
adds octaves of half the wavelength each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from diawork.base.config import Count, Positive, Shares
from diawork.base.seeding import generator
from diawork.detectors.backbones import resized
from diawork.detectors.rd4ad import DILATION, RD4AD, Knobs, Student, distances

_TINY = 1e-6  # keeps the quotient finite where a patch changes nothing


class ScaledStudent(Student):
    """A student with a head that says how much each scale of an image counts."""

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], linear: Sequence[bool] = ()) -> None:
        super().__init__(channels, blocks, linear)
        self.head = nn.Linear(DILATION * channels[-1], len(channels))

    def scale_weights(self, embedding: Tensor) -> Tensor:
        """Return w (B, S), softmax over scales, from the largest value of each channel of the embedding."""
        return self.head(embedding.amax((2, 3))).softmax(1)


class SCRD4AD(RD4AD):
    """Scale-aware contrastive reverse distillation."""

    name = "scrd4ad"
    label = "SCRD4AD"
    uses = ("data", "backbone", "scrd4ad")
    color = "#AA4499"
    paper_rule = "f1"
    student = ScaledStudent
    length = "steps"
    sizes: ClassVar = {"smoke": {"strides": (4, 8), "blocks": (1, 1), "steps": 4}, "cpu": {"steps": 450}}

    class Section(Knobs):
        """Its knobs; what the paper says is the default."""

        steps: Count = 40_000
        lr: Positive = 1e-3
        score: Literal["max", "mean"] = "mean"
        scales: Literal["weighted", "official_noop"] = "weighted"  # Σ wᵢdᵢ, or inside a cosine, which ignores them
        noise: Literal["simplex", "gaussian", "cutpaste"] = "simplex"  # of the synthetic anomaly
        strength: Positive = 0.2  # λ
        patch: Shares = (10 / 256, 31 / 256)  # shortest and longest side, shares of the image's
        octaves: Count = 6  # of the simplex noise
        persistence: Positive = 0.6  # amplitude from octave to octave
        frequency: Positive = 32 / 256  # wavelength of the first octave, share of the side

    def _loss(self, x: Tensor, step: int) -> Tensor:
        x = resized(x, self.side).cpu().expand(-1, 3, -1, -1)  # a colour has a noise of its own
        draws = [generator(self.cfg.seed, "scrd4ad", step, i) for i in range(len(x))]  # a new field for every image
        clean, noisy = self._features(x), self._features(corrupted(x, self.hp, draws))
        embedding = self.net.bottleneck(clean)
        student, weights = self._floats(self.net.decode(embedding)), self.net.scale_weights(embedding).float()
        return near_over_far(clean, noisy, student, weights, scales=self.hp.scales, cosine=self.hp.cosine)

    def _weighted(self, maps: Tensor, teacher: Sequence[Tensor]) -> Tensor:
        if self.hp.scales == "official_noop":
            return maps
        with self.compute.autocast():
            weights = self.net.scale_weights(self.net.bottleneck(teacher)).float()
        return maps * weights[..., None, None]


def near_over_far(
    clean: Sequence[Tensor], noisy: Sequence[Tensor], student: Sequence[Tensor], weights: Tensor, *,
    scales: str = "weighted", cosine: str = "flat",
) -> Tensor:  # fmt: skip
    """Return ℓ_near / ℓ_far of a student's maps, the scales weighted by w (B, S)."""
    if scales == "official_noop":
        clean, noisy, student = (
            [f * w[:, None, None, None] for f, w in zip(maps, weights.T, strict=True)]
            for maps in (clean, noisy, student)
        )
        weights = torch.ones_like(weights)
    near, far = ((weights * distances(teacher, student, cosine)).sum(1).mean() for teacher in (clean, noisy))
    return near / far.clamp_min(_TINY)


# --- synthetic anomalies: a patch of noise, its own field for every image --------------------------------

# the middles of a cube's edges: twelve gradients, none of which favours an axis
GRADIENTS = torch.tensor(
    [e for e in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, e)) == 2], dtype=torch.float32
)
TABLE = 256


def simplex(points: Tensor, table: Tensor) -> Tensor:
    """Return simplex noise (P,), about −1 … 1, at points (P, 3); ``table`` (256,) is a permutation."""
    cell = (points + points.sum(1, keepdim=True) / 3).floor()  # skewed to a grid of cubes, each six simplices
    inside = points - cell + cell.sum(1, keepdim=True) / 6
    rank = inside.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # of each axis in the cube's walk
    total = torch.zeros(len(points))
    for corner in range(4):
        offset = (rank < corner).float()
        d = inside - offset + corner / 6
        fade = (0.6 - d.square().sum(1)).clamp_min(0).pow(4)
        x, y, z = (cell + offset).long().remainder(TABLE).unbind(1)
        gradient = table[(x + table[(y + table[z]) % TABLE]) % TABLE] % len(GRADIENTS)
        total += fade * (GRADIENTS[gradient] * d).sum(1)
    return 32 * total


def fractal(height: int, width: int, channels: int, *, wavelength: float, octaves: int, persistence: float,
            generator: torch.Generator) -> Tensor:  # fmt: skip
    """Return fractal simplex noise (channels, height, width), a slice of one 3-D field a channel."""
    table = torch.randperm(TABLE, generator=generator)
    axes = (torch.arange(channels), torch.arange(height), torch.arange(width))
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).float()
    points = points + TABLE * torch.rand(3, generator=generator)  # not always the same corner of the field
    layers = (persistence**i * simplex(points * 2**i / wavelength, table) for i in range(octaves))
    return torch.stack(list(layers)).sum(0).reshape(channels, height, width)


def corrupted(x: Tensor, cfg: SCRD4AD.Section, generators: list[torch.Generator]) -> Tensor:
    """Return images (B, C, H, W) with one noisy rectangle each, drawn from the image's own generator."""
    out = x.clone()
    for image, own in zip(out, generators, strict=True):
        box = _box(tuple(image.shape[1:]), cfg.patch, own)
        image[(slice(None), *box)] = NOISES[cfg.noise](image, box, cfg, own)
    return out


Box = tuple[slice, slice]


def _box(size: tuple[int, ...], share: tuple[float, float], generator: torch.Generator) -> Box:
    """Draw the rows and columns of a rectangle whose sides are uniform between two shares of the image's."""
    sides = []
    for n in size:
        shortest, longest = (min(n, max(1, round(part * n))) for part in share)
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        start = int(torch.randint(0, n - length + 1, (), generator=generator))
        sides.append(slice(start, start + length))
    return sides[0], sides[1]


def _shape(box: Box) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def _simplex(image: Tensor, box: Box, cfg: SCRD4AD.Section, generator: torch.Generator) -> Tensor:
    """x + λ·n, not clipped, as released."""
    noise = fractal(
        *_shape(box), len(image), wavelength=max(1.0, cfg.frequency * image.shape[-1]), octaves=cfg.octaves,
        persistence=cfg.persistence, generator=generator,
    )  # fmt: skip
    return image[(slice(None), *box)] + cfg.strength * noise


def _gaussian(image: Tensor, box: Box, cfg: SCRD4AD.Section, generator: torch.Generator) -> Tensor:
    return image[(slice(None), *box)] + cfg.strength * torch.randn(len(image), *_shape(box), generator=generator)


def _cutpaste(image: Tensor, box: Box, cfg: SCRD4AD.Section, generator: torch.Generator) -> Tensor:
    """Blend the rectangle with another of the same size: λ = 1 replaces it."""
    starts = [
        int(torch.randint(0, n - m + 1, (), generator=generator))
        for n, m in zip(image.shape[1:], _shape(box), strict=True)
    ]
    other = image[:, starts[0] : starts[0] + _shape(box)[0], starts[1] : starts[1] + _shape(box)[1]].clone()
    return torch.lerp(image[(slice(None), *box)], other, cfg.strength)


NOISES: dict[str, Callable[[Tensor, Box, SCRD4AD.Section, torch.Generator], Tensor]] = {
    "simplex": _simplex, "gaussian": _gaussian, "cutpaste": _cutpaste,
}  # fmt: skip
