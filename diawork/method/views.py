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


# --- shifts S_k ------------------------------------------------------------------------------------


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


# --- branches --------------------------------------------------------------------------------------


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
        cfg, index = self.cfg, torch.arange(len(x)) if index is None else index
        batch, places = len(index), torch.arange(len(index))[rows or slice(None)]

        def draws(*path: str | int, copies: int = 1) -> Draws:
            """Return the draws of one purpose for our rows, of which there are ``copies``, one below the other."""
            whole = generator(seed, "views", step, *path)
            ours = (torch.arange(copies)[:, None] * batch + places).flatten()
            return whole if len(places) == batch else RowDraws(whole, ours, copies * batch)

        # one coin an ordinary branch, one a shift of the dissolved branch
        flips = (torch.rand(2 + K, batch, generator=generator(seed, "views", step, "flip")) < 0.5)[:, places]
        flips &= cfg.hflip
        branches, steps = [], []
        for branch in (0, 1):  # O and O'
            if cfg.dissolve_branches == "all" and self.dissolve:
                source, t = self._dissolved(x, index[places], flips[branch], draws(f"branch {branch}", "dissolve"))
            else:
                source, t = _mirrored(x, flips[branch]), torch.full((len(x),), NO_STEP)
            branches.append(all_shifts(source, cfg.shift))
            steps.append(t.repeat(K))
        if self.dissolve:  # A
            own = flips[1:2].expand(K, -1) if cfg.third_source == "second_view" else flips[2:]
            if cfg.dissolve_per == "image":
                x_hat, t = self._dissolved(x, index[places], own[0], draws("dissolve"))
                parts = [(x_hat, t)] * K
            else:
                parts = [self._dissolved(x, index[places], own[k], draws(k, "dissolve")) for k in range(K)]
            branches.append(torch.cat([SHIFTS[cfg.shift](x_hat, k) for k, (x_hat, _) in enumerate(parts)]))
            steps.append(torch.cat([t for _, t in parts]))
        images = torch.cat(branches)
        drawn = draw_augmentation(len(images), cfg, draws("augment", copies=len(branches) * K))
        indices = torch.meshgrid(torch.arange(len(branches)), torch.arange(K), places, indexing="ij")
        branch_of, shift, image = (value.reshape(-1) for value in indices)
        return Views(augment(images, drawn), image, shift, branch_of, torch.cat(steps))

    def _dissolved(self, x: Tensor, index: Tensor, flip: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return D of x (B, C, H, W), mirrored where ``flip``, and its steps (B,)."""
        if not len(x):  # of a batch smaller than the number of processes
            return x, torch.full((0,), NO_STEP)
        assert self.dissolve is not None
        return self.dissolve(_mirrored(x, flip), image=index, flip=flip, generator=draws)


def _mirrored(x: Tensor, flip: Tensor) -> Tensor:
    return torch.where(_column(flip.to(x.device)), x.flip(-1), x)


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

    # The first box of ten that fits, area and log-aspect uniform; the whole image where none does
    area = uniform(*cfg.crop_scale, n, 10)
    low, high = torch.tensor(cfg.crop_ratio, dtype=torch.float64).log().tolist()
    aspect = uniform(low, high, n, 10).exp()
    width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
    fits = (width <= 1) & (height <= 1)
    first, any_fits = fits.int().argmax(1, keepdim=True), fits.any(1)
    width, height = (torch.where(any_fits, side.gather(1, first)[:, 0], torch.ones(n)) for side in (width, height))
    centre_x = width / 2 + (1 - width) * uniform(0, 1)
    centre_y = height / 2 + (1 - height) * uniform(0, 1)

    def factor(spread: float) -> Tensor:
        return torch.where(jittered, uniform(1 - spread, 1 + spread), torch.ones(n))

    return Augmentation(
        box=torch.stack([centre_x, centre_y, width, height], 1),
        brightness=factor(cfg.brightness),
        contrast=factor(cfg.contrast),
        saturation=factor(cfg.saturation),
        hue=torch.where(jittered, uniform(-cfg.hue, cfg.hue), torch.zeros(n)),
        grey=uniform(0, 1) < cfg.grey_probability,
        contrast_first=uniform(0, 1) < 0.5,
    )


def augment(x: Tensor, drawn: Augmentation) -> Tensor:
    """Apply drawn T to (N, C, H, W); on one channel hue, saturation and grey are identities."""
    if not len(x):
        return x
    drawn = Augmentation(*(value.to(x.device) for value in vars(drawn).values()))

    # Contrast and tint, in each row's own order. Untouched rows (factors 1) keep their range, so that a view of the
    # range "released" keeps its negatives
    order, touched = _column(drawn.contrast_first), _column((drawn.brightness != 1) | (drawn.contrast != 1))
    first = torch.where(order, _contrast(x, drawn), _tint(x, drawn))
    x = torch.where(touched, torch.where(order, _tint(first, drawn), _contrast(first, drawn)), x)

    if x.shape[1] == 3:
        x = torch.where(_column(drawn.grey), kc.rgb_to_grayscale(x).expand_as(x), x)

    # The crop, resampled to the whole image: bilinear, borders reflected
    box, theta = drawn.box, x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = box[:, 2], box[:, 3]
    theta[:, 0, 2], theta[:, 1, 2] = 2 * box[:, 0] - 1, 2 * box[:, 1] - 1
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _contrast(x: Tensor, drawn: Augmentation) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean) * _column(drawn.contrast) + mean).clamp(0, 1)


def _tint(x: Tensor, drawn: Augmentation) -> Tensor:
    """Change brightness; of colours, as value, with hue and saturation."""
    if x.shape[1] == 1:
        return (x * _column(drawn.brightness)).clamp(0, 1)
    hue, saturation, value = kc.rgb_to_hsv(x.clamp(0, 1)).unbind(1)
    hue = (hue + 2 * torch.pi * drawn.hue[:, None, None]) % (2 * torch.pi)
    saturation = (saturation * drawn.saturation[:, None, None]).clamp(0, 1)
    value = (value * drawn.brightness[:, None, None]).clamp(0, 1)
    return kc.hsv_to_rgb(torch.stack([hue, saturation, value], 1)).clamp(0, 1)


def _column(value: Tensor) -> Tensor:
    return value[:, None, None, None]
