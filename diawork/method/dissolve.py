"""The dissolver: Eq. 4, the steps it is taken at, and the bridge between the images' size and the model's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from diawork.base import seeding
from diawork.base.compute import Compute
from diawork.base.config import DissolveConfig, bridgeable
from diawork.base.errors import UsageError
from diawork.data.images import ImageSet
from diawork.method.operators import Diffusion
from diawork.method.unet import frozen_unet

# --- Eq. 4 -----------------------------------------------------------------------------------------


@torch.no_grad()
def dissolve(
    ddpm: Any,
    x: Tensor | ImageSet,
    t: int | Tensor,
    *,
    range_mode: str = "normalized",
    bridge: str = "",
    antialias: bool = False,
    compute: Compute | None = None,
) -> Tensor:
    """Dissolve images (Eq. 4): one reverse step to x̂ from a clean image, no noise added.

    x̂ = √(1/ᾱ_t)·x − √(1/ᾱ_t − 1)·ε_θ(x, t), clamped to the model's range.

    ``ddpm`` is what ``pretrain_ddpm`` returns, whose averaged weights then dissolve, or a diffusion model itself;
    ``x`` (B, C, H, W) in [0, 1] or an ``ImageSet``; ``t`` one step or one an image. ``normalized`` feeds 2x−1 and
    returns [0, 1]; ``released`` feeds x as it is and returns the clamped [-1, 1], as the released code does.
    ``bridge`` "": the one that the model was trained through. Without ``compute`` the model's device works.
    """
    model, bridge = model_of(ddpm), bridge or bridge_of(ddpm)
    x = x.images[:] if isinstance(x, ImageSet) else x
    work = compute or Compute(next(model.parameters()).device)
    steps = work.to(check_t(t, model.num_timesteps, len(x)))
    x_t = to_model(work.to(x), model.image_size[0], bridge, antialias=antialias, channels=model.channels)
    if range_mode == "normalized":
        x_t = x_t * 2 - 1
    if hasattr(model, "predict_start"):  # a model of others, whose objective may be another
        x_hat = model.predict_start(x_t, steps, work)
    else:
        with work.autocast(model.model):
            noise = model.model(x_t.to(next(model.model.parameters()).dtype), steps).float()
        # the library's √(1/ᾱ_t) and √(1/ᾱ_t − 1): it took both from its alphas_cumprod in double precision
        scale, share = model.sqrt_recip_alphas_cumprod[steps], model.sqrt_recipm1_alphas_cumprod[steps]
        x_hat = scale.view(-1, 1, 1, 1) * x_t - share.view(-1, 1, 1, 1) * noise
    x_hat = x_hat.clamp(-1, 1)
    if range_mode == "normalized":
        x_hat = (x_hat + 1) / 2
    x_hat = from_model(x_hat, x, bridge, antialias=antialias)
    return x_hat if compute else x_hat.to(x.device)


def model_of(ddpm: Any, weights: str = "ema") -> Any:
    """Return the diffusion model of a pretrained ``DDPM`` with some weights; any other model as it is."""
    return ddpm.weights(weights) if hasattr(ddpm, "weights") else ddpm


def bridge_of(ddpm: Any) -> Any:
    """Return the bridge that a pretrained ``DDPM`` was trained through, "pad" where it is not known."""
    return getattr(ddpm, "data", {}).get("bridge", "pad")


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


class Dissolver(Diffusion):
    """The paper's operator: Eq. 4 at steps drawn from a range, by a pretrained ``DDPM`` or a diffusion model itself."""

    def __init__(self, ddpm: Any, cfg: DissolveConfig | None = None, *, compute: Compute | None = None) -> None:
        self.cfg, self.compute = (cfg or DissolveConfig()).filled(bridge=bridge_of(ddpm)), compute or Compute()
        if getattr(getattr(ddpm, "config", None), "precision", "") == "fp32":
            self.compute = replace(self.compute, precision="fp32")
        assert self.cfg.t_range and self.cfg.bridge  # filled() leaves neither open
        self.t_range, self.bridge = self.cfg.t_range, self.cfg.bridge
        model = model_of(ddpm, self.cfg.weights)
        check_t(self.t_range[1], model.num_timesteps, 1)
        self.ddpm = copy.deepcopy(model).to(self.compute.device)  # the schedule stays fp32
        self.ddpm.model = self.compute.freeze(frozen_unet(self.ddpm.model))
        self._batch = 0  # of the compiled model; 0: not compiled, any size

    @property
    def timesteps(self) -> int:
        """The number of steps that the model was trained with."""
        return self.ddpm.num_timesteps

    @property
    def size(self) -> int:
        """The size of the images that the model sees, px."""
        return int(self.ddpm.image_size[0])

    def resized(self, x: Tensor) -> Tensor | None:
        """Return images (B, C, H, W) at the model's size and back, not dissolved; None where none is resized."""
        if self.bridge != "resize" or x.shape[-1] == self.size:
            return None
        return from_model(to_model(x, self.size, "resize", antialias=self.cfg.antialias), x, "resize")

    @property
    def compiled(self) -> bool:
        """Whether the model was compiled."""
        return self._batch > 0

    def expect(self, images: int, batch: int, *, progress: bool = False) -> None:
        """Compile our own UNet where dissolving ``images`` images, ``batch`` at a time, pays for it."""
        if hasattr(self.ddpm, "predict_start"):  # a model of others, of which it was not measured
            return
        size, channels = self.ddpm.image_size, self.ddpm.channels
        x = self.compute.to(torch.zeros(batch, channels, *size, dtype=next(self.ddpm.model.parameters()).dtype))
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
        cfg, size = self.cfg, self._batch
        dissolved = partial(
            dissolve, self.ddpm, range_mode=cfg.range_mode, bridge=self.bridge, antialias=cfg.antialias,
            compute=self.compute,
        )  # fmt: skip
        if not (size and len(x)):
            return dissolved(x, t)
        steps = check_t(t, self.ddpm.num_timesteps, len(x))
        batches = [torch.arange(start, start + size).clamp_max(len(x) - 1) for start in range(0, len(x), size)]
        return torch.cat([dissolved(x[rows], steps[rows]) for rows in batches])[: len(x)]

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
