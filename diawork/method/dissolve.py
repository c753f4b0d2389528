"""The dissolver (Eq. 4), the bridge to its model's size, and the alternatives that fill the same slot."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import kornia.filters as kf
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from diawork.base import seeding
from diawork.base.compute import Compute
from diawork.base.config import NO_STEP, DissolveConfig, bridgeable
from diawork.base.errors import UsageError
from diawork.method.unet.frozen import frozen_unet

Dissolve = Callable[..., tuple[Tensor, Tensor]]  # all that training asks of an occupant


class Occupant(Protocol):
    """An occupant of the slot: drawn at random in training, step by step for the eye."""

    @property
    def timesteps(self) -> int:
        """How many steps there are; 1: the occupant knows no step."""

    def __call__(self, x: Tensor, *, image: Tensor, flip: Tensor, generator: seeding.Draws) -> tuple[Tensor, Tensor]:
        """Return x̂ (B, C, H, W) of ``x`` in [0, 1], and the steps ``t`` (B,), -1 where there is none.

        ``image`` (B,) are the images' indices, ``flip`` (B,) says whether a row is mirrored.
        """

    def stack(self, x: Tensor, ts: Sequence[int], *, progress: Callable[[float], None] | None = None) -> Tensor:
        """Return (T, B, C, H, W) on the CPU: all images at all steps; ``progress`` is told the share done."""


# --- the bridge between the images' size and the model's -------------------------------------------


def to_model(x: Tensor, size: int, bridge: str, *, antialias: bool = False, channels: int | None = None) -> Tensor:
    """Bring (B, C, H, W) to (B, channels, size, size): zero padding, bilinear resize, or no change."""
    if channels and channels != x.shape[1]:
        x = x.expand(-1, channels, -1, -1) if x.shape[1] == 1 else x.mean(1, keepdim=True)
    height, width = x.shape[-2:]
    if not bridgeable(bridge, size, height, width):
        raise UsageError(
            f"bridge={bridge!r} cannot bring {height}×{width} px to the model's {size}×{size} px.",
            hint="Use bridge='resize', or a model of the images' size.",
        )
    if (height, width) == (size, size):
        return x
    if bridge == "pad":
        vertical, horizontal = (size - height) // 2, (size - width) // 2
        return F.pad(x, (horizontal, horizontal, vertical, vertical))
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=antialias)


def from_model(y: Tensor, like: Tensor, bridge: str, *, antialias: bool = False) -> Tensor:
    """Undo ``to_model``: centre crop or resize (B, ·, S, S) back to the shape of ``like``."""
    (height, width), size = like.shape[-2:], y.shape[-1]
    if (height, width) != (size, size):
        if bridge == "pad":
            top, left = (size - height) // 2, (size - width) // 2
            y = y[..., top : top + height, left : left + width]
        else:
            y = F.interpolate(y, (height, width), mode="bilinear", align_corners=False, antialias=antialias)
    if y.shape[1] != like.shape[1]:
        y = y.mean(1, keepdim=True).expand(-1, like.shape[1], -1, -1)
    return y


# --- Eq. 4 -----------------------------------------------------------------------------------------


def check_t(t: int | Tensor, timesteps: int, batch: int) -> Tensor:
    """Return ``t`` as an int64 tensor (batch,) on the CPU; refuse anything the model was not trained on."""
    if isinstance(t, Tensor):
        if t.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            raise UsageError(f"t has dtype {t.dtype}; the step is an integer.", hint="Use t.long().")
        if t.shape != (batch,):
            raise UsageError(f"t has shape {tuple(t.shape)}; wanted one step an image, ({batch},).")
    elif isinstance(t, bool) or not isinstance(t, int):
        raise UsageError(f"t={t!r} is a {type(t).__name__}; the step is an integer or one integer an image.")
    steps = torch.as_tensor(t, dtype=torch.int64).expand(batch).cpu()
    outside = steps[(steps < 0) | (steps >= timesteps)]
    if len(outside):
        what = f"t={int(outside[0])} outside [0, {timesteps}): this ddpm was trained with timesteps={timesteps}."
        raise UsageError(what)
    return steps


@torch.no_grad()
def dissolve(
    ddpm: Any,
    x: Tensor,
    t: int | Tensor,
    *,
    range_mode: str = "normalized",
    bridge: str = "pad",
    antialias: bool = False,
    compute: Compute | None = None,
) -> Tensor:
    """Dissolve images: one reverse step to x̂ from a clean image, no noise added (Eq. 4).

    x̂ = √(1/ᾱ_t)·x − √(1/ᾱ_t − 1)·ε_θ(x, t), clamped to the model's range.

    ``x`` (B, C, H, W) in [0, 1]; ``t`` one step or one an image. ``normalized`` feeds 2x−1 and returns
    [0, 1]; ``released`` feeds x as it is and returns the clamped [-1, 1], as the released code does.
    """
    compute = compute or Compute()
    steps = compute.to(check_t(t, ddpm.num_timesteps, len(x)))
    size, channels = ddpm.image_size[0], ddpm.channels
    x_t = to_model(compute.to(x), size, bridge, antialias=antialias, channels=channels)
    if range_mode == "normalized":
        x_t = x_t * 2 - 1
    x_0 = _predict_start(ddpm, x_t, steps, compute).clamp(-1, 1)
    if range_mode == "normalized":
        x_0 = (x_0 + 1) / 2
    return from_model(x_0, x, bridge, antialias=antialias)


def _predict_start(ddpm: Any, x_t: Tensor, steps: Tensor, compute: Compute) -> Tensor:
    """Return x̂ as the model's own objective gives it, where it has one, else from the predicted noise."""
    if hasattr(ddpm, "predict_start"):
        return ddpm.predict_start(x_t, steps, compute)
    with compute.autocast(ddpm.model):
        noise = ddpm.model(x_t.to(_dtype(ddpm.model)), steps)
    return ddpm.predict_start_from_noise(x_t, steps, noise.float())


def _dtype(module: Any) -> torch.dtype:
    return next(module.parameters()).dtype


class Dissolver:
    """The paper's occupant of the slot: a pretrained DDPM, or a ``Pipeline`` with its face, and a range of steps."""

    def __init__(self, ddpm: Any, cfg: DissolveConfig | None = None, *, compute: Compute | None = None) -> None:
        self.cfg, self.compute = (cfg or DissolveConfig()).filled(), compute or Compute()
        assert self.cfg.t_range and self.cfg.bridge  # filled() leaves neither open
        self.t_range, self.bridge = self.cfg.t_range, self.cfg.bridge
        check_t(self.t_range[1], ddpm.num_timesteps, 1)
        self.ddpm = copy.deepcopy(ddpm).to(self.compute.device)  # the schedule stays fp32
        self.ddpm.model = self.compute.freeze(frozen_unet(self.ddpm.model))
        self._batch = 0  # of the compiled model; 0: not compiled, any size

    @property
    def timesteps(self) -> int:
        """The number of steps that the model was trained with."""
        return self.ddpm.num_timesteps

    @property
    def compiled(self) -> bool:
        """Whether the model was compiled."""
        return self._batch > 0

    def expect(self, images: int, batch: int, *, progress: bool = False) -> None:
        """Compile the model where dissolving ``images`` images, ``batch`` at a time, pays for it."""
        size, channels = self.ddpm.image_size, self.ddpm.channels
        x = self.compute.to(torch.zeros(batch, channels, *size, dtype=_dtype(self.ddpm.model)))
        steps = self.compute.to(torch.zeros(batch, dtype=torch.int64))
        seconds = self.compute.compile_frozen(self.ddpm.model, (x, steps), passes=-(-images // batch))
        if seconds is not None:
            self._batch = batch
            if progress:
                tqdm.write(f"compiled the dissolver in {seconds:.0f} s, for {images:,} images")

    def sample_t(self, n: int, generator: seeding.Draws) -> Tensor:
        """Draw n steps (n,) uniformly over the integers of ``t_range``, both ends included."""
        low, high = self.t_range
        return seeding.randint(generator, low, high + 1, n=n, each=self.cfg.t_per == "image")

    def at(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Dissolve (B, C, H, W) at given steps; compiled code knows one size of batch: the last one is filled up."""
        if not (self._batch and len(x)):
            return self._dissolve(x, t)
        steps, whole = check_t(t, self.ddpm.num_timesteps, len(x)), self._batch
        batches = [torch.arange(start, start + whole).clamp_max(len(x) - 1) for start in range(0, len(x), whole)]
        return torch.cat([self._dissolve(x[rows], steps[rows]) for rows in batches])[: len(x)]

    def _dissolve(self, x: Tensor, t: int | Tensor) -> Tensor:
        cfg = self.cfg
        return dissolve(
            self.ddpm, x, t, range_mode=cfg.range_mode, bridge=self.bridge, antialias=cfg.antialias,
            compute=self.compute,
        )  # fmt: skip

    def __call__(self, x: Tensor, *, image: Tensor, flip: Tensor, generator: seeding.Draws) -> tuple[Tensor, Tensor]:
        """Dissolve a batch at freshly drawn steps, one an image."""
        t = self.sample_t(len(x), generator)
        return self.at(x, t), t

    def stack(
        self, x: Tensor, ts: Sequence[int], *, batch: int = 64, progress: Callable[[float], None] | None = None
    ) -> Tensor:
        """Return (T, B, C, H, W): all images at all steps, in batched passes."""
        steps = torch.as_tensor(list(ts), dtype=torch.int64).repeat_interleave(len(x))
        rows = x.repeat(len(ts), 1, 1, 1)
        parts = []
        for start in range(0, len(rows), batch):
            parts.append(self.at(rows[start : start + batch], steps[start : start + batch]).cpu())
            if progress:
                progress(min(1.0, (start + batch) / len(rows)))
        return torch.cat(parts).reshape(len(ts), *x.shape)


def preview(operator: Dissolve, x: Tensor, *, seed: int = 0) -> Tensor:
    """Return what any occupant of the slot makes of (B, C, H, W), with draws that depend on ``seed`` alone."""
    rows, draws = torch.arange(len(x)), seeding.generator(seed, "preview")
    return operator(x, image=rows, flip=torch.zeros_like(rows, dtype=torch.bool), generator=draws)[0]


# --- alternatives in the same slot (the paper's heuristic alternatives, and the plainest controls) ---


class _Operator(ABC):
    """An occupant that has no step."""

    timesteps = 1

    def __call__(self, x: Tensor, *, image: Tensor, flip: Tensor, generator: seeding.Draws) -> tuple[Tensor, Tensor]:
        return self.apply(x, generator), torch.full((len(x),), NO_STEP)

    def stack(self, x: Tensor, ts: Sequence[int], *, progress: Callable[[float], None] | None = None) -> Tensor:
        """Return (T, B, C, H, W): the same at every step, made once, with draws keyed by an image's pixels."""
        rows = zip(x.split(1), seeding.image_keys(x).tolist(), strict=True)
        made = [self.apply(row, seeding.generator(0, "stack", key)) for row, key in rows]
        return torch.cat(made).cpu().expand(len(ts), *x.shape)

    @abstractmethod
    def apply(self, x: Tensor, generator: seeding.Draws) -> Tensor:
        """Return what the operator makes of images (B, C, H, W)."""


class GaussianBlur(_Operator):
    """Blur with a Gaussian of ``kernel_size`` px, borders reflected; ``sigma`` px, by default 0.3((k−1)/2−1)+0.8."""

    def __init__(self, kernel_size: int = 7, sigma: float | None = None) -> None:
        self.kernel_size, self.sigma = kernel_size, sigma or 0.3 * ((kernel_size - 1) / 2 - 1) + 0.8

    def apply(self, x: Tensor, generator: seeding.Draws) -> Tensor:
        return kf.gaussian_blur2d(x, self.kernel_size, (self.sigma, self.sigma))


class MedianBlur(_Operator):
    """Take the median of a window of ``kernel_size`` px, borders reflected."""

    def __init__(self, kernel_size: int = 7) -> None:
        self.kernel_size = kernel_size

    def apply(self, x: Tensor, generator: seeding.Draws) -> Tensor:
        half = self.kernel_size // 2
        return kf.median_blur(F.pad(x, (half,) * 4, mode="reflect"), self.kernel_size)[..., half:-half, half:-half]


class ResizeOnly(_Operator):
    """Shrink to ``size`` px and enlarge again, bilinear without antialias."""

    def __init__(self, size: int = 14) -> None:
        self.size = size

    def apply(self, x: Tensor, generator: seeding.Draws) -> Tensor:
        return from_model(to_model(x, self.size, "resize"), x, "resize")


class AddNoise(_Operator):
    """Add white Gaussian noise of standard deviation ``sd`` and clamp to [0, 1]."""

    def __init__(self, sd: float = 0.1) -> None:
        self.sd = sd

    def apply(self, x: Tensor, generator: seeding.Draws) -> Tensor:
        noise = seeding.randn(generator, *x.shape).to(x.device)
        return (x + self.sd * noise).clamp(0, 1)


class Identity(_Operator):
    """Leave the image as it is: what is left of the third branch without any dissolving."""

    def apply(self, x: Tensor, generator: seeding.Draws) -> Tensor:
        return x


def build_operator(cfg: DissolveConfig, ddpm: Any = None, *, compute: Compute | None = None) -> Occupant:
    """Return the occupant of the slot that ``cfg.operator`` names; "ddpm" and "diffusers" need a pretrained model."""
    if cfg.operator in ("ddpm", "diffusers"):
        if ddpm is None:
            raise UsageError(f"operator={cfg.operator!r} needs a pretrained model.", hint="See diawork.pretrain_ddpm.")
        return Dissolver(ddpm, cfg, compute=compute)
    return {
        "gaussian_blur": lambda: GaussianBlur(cfg.kernel_size, cfg.sigma), "identity": Identity,
        "median_blur": lambda: MedianBlur(cfg.kernel_size), "resize": lambda: ResizeOnly(cfg.resize_to),
        "noise": lambda: AddNoise(cfg.noise_sd),
    }[cfg.operator]()  # fmt: skip
