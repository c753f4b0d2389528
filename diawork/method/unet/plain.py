"""The library's UNet and its schedules, as a config of ours asks for them."""

from __future__ import annotations

import torch
from denoising_diffusion_pytorch import Unet
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import (
    cosine_beta_schedule,
    linear_beta_schedule,
    sigmoid_beta_schedule,
)
from torch import Tensor

from diawork.base.config import DiffusionConfig
from diawork.base.seeding import isolated_rng

_SCHEDULES = {"cosine": cosine_beta_schedule, "linear": linear_beta_schedule, "sigmoid": sigmoid_beta_schedule}


def build_unet(cfg: DiffusionConfig) -> Unet:
    """Return an untrained UNet; every setting that matters is written out, none left to the library."""
    with isolated_rng(cfg.seed, "ddpm", "init"):
        return Unet(
            dim=cfg.dim,
            dim_mults=cfg.dim_mults,
            channels=cfg.channels,
            attn_heads=4,
            attn_dim_head=32,
            dropout=0.0,
        )


def betas(cfg: DiffusionConfig) -> Tensor:
    """Return the variances β (T,) that a step adds, in float64."""
    return _SCHEDULES[cfg.beta_schedule](cfg.timesteps)


def noise_levels(cfg: DiffusionConfig) -> Tensor:
    """Return ᾱ (T,), the share of the image in every noisy one, in float64."""
    return torch.cumprod(1 - betas(cfg), 0)
