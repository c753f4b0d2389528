"""Shifts, SimCLR augmentations and the branch builder: the 3K views of an image (Eq. 5).

Ordinary branches are T∘S_k, the dissolved one is T∘S_k∘D. Rows carry their indices; nobody infers a
branch from a row's position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import kornia.color as kc
import torch
import torch.nn.functional as F
from torch import Tensor

from diawork.base.config import NO_STEP, K, ViewsConfig
from diawork.base.seeding import Draws, RowDraws, Source, generator, rand


@dataclass(frozen=True)
class Views:
    """A batch of views and what each of them is."""

    images: Tensor  # (R, C, H, W)
    image: Tensor  # (R,) position of the source image in the batch
    shift: Tensor  # (R,) 0 … K−1
    branch: Tensor  # (R,) 0 and 1 ordinary, 2 dissolved
    t: Tensor  # (R,) dissolving step, −1 where none


# --- shifts ----------------------------------------------------------------------------------------


def rotate(x: Tensor, k: int) -> Tensor:
    """Rotate (B, C, H, W) by k·90° counter-clockwise."""
    return torch.rot90(x, k, (2, 3))


def cutperm(x: Tensor, k: int) -> Tensor:
    """Swap the halves of (B, C, H, W): k//2 swaps top and bottom, k%2 left and right."""
    if k // 2:
        x = torch.roll(x, x.shape[2] - x.shape[2] // 2, 2)
    if k % 2:
        x = torch.roll(x, x.shape[3] - x.shape[3] // 2, 3)
    return x


SHIFTS: dict[str, Callable[[Tensor, int], Tensor]] = {"rotation": rotate, "cutperm": cutperm}
SHIFT_NAMES = {
    "rotation": ("0°", "90°", "180°", "270°"),
    "cutperm": ("as it is", "left ↔ right", "top ↔ bottom", "both"),
}


def all_shifts(x: Tensor, shift: str) -> Tensor:
    """Return (K·B, C, H, W): S_0(x), …, S_{K−1}(x), shift by shift."""
    return torch.cat([SHIFTS[shift](x, k) for k in range(K)])


# --- SimCLR augmentation T -------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """Drawn parameters of T, one row an image; ``take`` selects rows."""

    box: Tensor  # (N, 4) crop: centre x, centre y, width, height as shares of the image
    brightness: Tensor  # (N,) factor, 1 = none
    contrast: Tensor  # (N,) factor, 1 = none
    saturation: Tensor  # (N,)
    hue: Tensor  # (N,) turns
    grey: Tensor  # (N,) bool
    contrast_first: Tensor  # (N,) bool, order of contrast and the HSV part

    def take(self, rows: Tensor | slice) -> Augmentation:
        """Return the parameters of some rows."""
        return Augmentation(*(value[rows] for value in vars(self).values()))


def draw_augmentation(n: int, cfg: ViewsConfig, source: Source) -> Augmentation:
    """Draw T for n images, each on its own (§4 of the method: jitter, grey, resized crop)."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * rand(source, *(shape or (n,)))

    jittered = uniform(0, 1) < cfg.jitter_probability

    def factor(spread: float) -> Tensor:
        return torch.where(jittered, uniform(1 - spread, 1 + spread), torch.ones(n))

    return Augmentation(
        box=_crop_boxes(n, cfg, uniform),
        brightness=factor(cfg.brightness),
        contrast=factor(cfg.contrast),
        saturation=factor(cfg.saturation),
        hue=torch.where(jittered, uniform(-cfg.hue, cfg.hue), torch.zeros(n)),
        grey=uniform(0, 1) < cfg.grey_probability,
        contrast_first=uniform(0, 1) < 0.5,
    )


def _crop_boxes(n: int, cfg: ViewsConfig, uniform: Callable[..., Tensor], tries: int = 10) -> Tensor:
    """Draw boxes by rejection: area and log-aspect uniform, the whole image where no try fits."""
    area = uniform(*cfg.crop_scale, n, tries)
    low, high = torch.tensor(cfg.crop_ratio, dtype=torch.float64).log().tolist()
    aspect = uniform(low, high, n, tries).exp()
    width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
    fits = (width <= 1) & (height <= 1)
    first, any_fits = fits.int().argmax(1, keepdim=True), fits.any(1)
    width = torch.where(any_fits, width.gather(1, first)[:, 0], torch.ones(n))
    height = torch.where(any_fits, height.gather(1, first)[:, 0], torch.ones(n))
    centre_x = width / 2 + (1 - width) * uniform(0, 1)
    centre_y = height / 2 + (1 - height) * uniform(0, 1)
    return torch.stack([centre_x, centre_y, width, height], 1)


def augment(x: Tensor, drawn: Augmentation) -> Tensor:
    """Apply drawn T to (N, C, H, W); on one channel hue, saturation and grey are identities."""
    drawn = Augmentation(*(value.to(x.device) for value in vars(drawn).values()))
    x = _jitter(x, drawn)
    if x.shape[1] == 3:
        x = torch.where(_column(drawn.grey), kc.rgb_to_grayscale(x).expand_as(x), x)
    return _crop(x, drawn.box)


def _column(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean) * _column(factor) + mean).clamp(0, 1)


def _brightness(x: Tensor, drawn: Augmentation) -> Tensor:
    return (x * _column(drawn.brightness)).clamp(0, 1)


def _hsv(x: Tensor, drawn: Augmentation) -> Tensor:
    hue, saturation, value = kc.rgb_to_hsv(x.clamp(0, 1)).unbind(1)
    hue = (hue + 2 * torch.pi * drawn.hue[:, None, None]) % (2 * torch.pi)
    saturation = (saturation * drawn.saturation[:, None, None]).clamp(0, 1)
    value = (value * drawn.brightness[:, None, None]).clamp(0, 1)
    return kc.hsv_to_rgb(torch.stack([hue, saturation, value], 1)).clamp(0, 1)


def _jitter(x: Tensor, drawn: Augmentation) -> Tensor:
    """Change contrast and brightness (of colours: hue, saturation and value) in each row's own order."""
    order, tint = _column(drawn.contrast_first), _brightness if x.shape[1] == 1 else _hsv
    first = torch.where(order, _contrast(x, drawn.contrast), tint(x, drawn))
    second = torch.where(order, tint(first, drawn), _contrast(first, drawn.contrast))
    # untouched rows (factors 1) keep their range, so that a released-range view keeps its negatives
    touched = _column((drawn.brightness != 1) | (drawn.contrast != 1))
    return torch.where(touched, second, x)


def _crop(x: Tensor, box: Tensor) -> Tensor:
    """Resample each box (cx, cy, w, h) to the whole image: bilinear, borders reflected."""
    if not len(x):  # a share of a batch smaller than the number of processes
        return x
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = box[:, 2], box[:, 3]
    theta[:, 0, 2], theta[:, 1, 2] = 2 * box[:, 0] - 1, 2 * box[:, 1] - 1
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


# --- branches --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A step of a training, whose draws are the whole batch's, and the rows of its batch that are at hand."""

    seed: int
    step: int
    rows: Tensor  # (b,) places in the batch
    batch: int  # images

    def named(self, *path: str | int) -> torch.Generator:
        """Return the generator of one purpose."""
        return generator(self.seed, "views", self.step, *path)

    def draws(self, *path: str | int, copies: int = 1) -> Draws:
        """Return the draws of one purpose for our rows, of which there are ``copies``, one below the other."""
        if len(self.rows) == self.batch:
            return self.named(*path)
        rows = torch.arange(copies)[:, None] * self.batch + self.rows
        return RowDraws(self.named(*path), rows.flatten(), copies * self.batch)


class BranchBuilder:
    """Builds the views of a batch: 3BK with something that dissolves, e.g. a ``Dissolver``, CSI's 2BK without.

    ``BranchBuilder(dissolve=dissolver)(x)``
    """

    def __init__(self, cfg: ViewsConfig | None = None, dissolve: Callable[..., tuple[Tensor, Tensor]] | None = None):
        self.cfg, self.dissolve = cfg or ViewsConfig(), dissolve

    def __call__(
        self, x: Tensor, *, index: Tensor | None = None, seed: int = 0, step: int = 0, rows: slice | None = None
    ) -> Views:
        """Return the views of ``x`` (B, C, H, W) in [0, 1] (Eq. 5): O_k and O'_k = T∘S_k(x), A_k = T∘S_k∘D(x).

        Everything is drawn anew for each ``seed`` and ``step``. ``index`` (B,) says which images of the data set they
        are: a bank of dissolved views looks them up. Where ``x`` are only the ``rows`` of a batch, ``index`` is the
        whole batch's, and so are the draws.
        """
        index = torch.arange(len(x)) if index is None else index
        cfg, place = self.cfg, _Place(seed, step, torch.arange(len(index))[rows or slice(None)], len(index))
        index = index[place.rows]
        flips = self._flips(place)
        branches, steps = [], []
        for branch in (0, 1):
            source, t = self._mirror(x, flips[branch]), torch.full((len(x) * K,), NO_STEP)
            if cfg.dissolve_branches == "all" and self.dissolve:
                source, t = self._dissolved(source, index, flips[branch], place.draws(f"branch {branch}", "dissolve"))
                t = t.repeat(K)
            branches.append(all_shifts(source, cfg.shift))
            steps.append(t)
        if self.dissolve:
            third, t = self._third(x, index, flips, place)
            branches.append(third)
            steps.append(t)
        images = torch.cat(branches)
        drawn = draw_augmentation(len(images), cfg, place.draws("augment", copies=len(branches) * K))
        return Views(augment(images, drawn), *_row_indices(place.rows, len(branches)), torch.cat(steps))

    def _flips(self, place: _Place) -> Tensor:
        """Return whether each branch's and each dissolved shift's image is mirrored (2 + K, B)."""
        drawn = torch.rand(2 + K, place.batch, generator=place.named("flip")) < 0.5
        return drawn[:, place.rows] & self.cfg.hflip

    @staticmethod
    def _mirror(x: Tensor, flip: Tensor) -> Tensor:
        return torch.where(_column(flip.to(x.device)), x.flip(-1), x)

    def _dissolved(self, x: Tensor, index: Tensor, flip: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        assert self.dissolve is not None
        if not len(x):
            return x, torch.full((0,), NO_STEP)
        return self.dissolve(x, image=index, flip=flip, generator=draws)

    def _third(self, x: Tensor, index: Tensor, flips: Tensor, place: _Place) -> tuple[Tensor, Tensor]:
        """Return T's input S_k(D(x)) for all k, and t (K·B,)."""
        cfg = self.cfg
        own = flips[1:2].expand(K, -1) if cfg.third_source == "second_view" else flips[2:]
        if cfg.dissolve_per == "image":
            x_hat, t = self._dissolved(self._mirror(x, own[0]), index, own[0], place.draws("dissolve"))
            return all_shifts(x_hat, cfg.shift), t.repeat(K)
        mirrored = [self._mirror(x, own[k]) for k in range(K)]
        parts = [self._dissolved(mirrored[k], index, own[k], place.draws(k, "dissolve")) for k in range(K)]
        shifted = [SHIFTS[cfg.shift](x_hat, k) for k, (x_hat, _) in enumerate(parts)]
        return torch.cat(shifted), torch.cat([t for _, t in parts])


def _row_indices(rows: Tensor, branches: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return image (its place in the batch), shift and branch of rows ordered branch by branch, shift by shift."""
    branch, shift, image = torch.meshgrid(torch.arange(branches), torch.arange(K), rows, indexing="ij")
    return image.reshape(-1), shift.reshape(-1), branch.reshape(-1)
