"""The UNet of denoising-diffusion-pytorch as a model of diffusers: how a DDPM of ours stands in that library's layout.

It is no ``UNet2DModel``, and no settings make one of it: RMS norm over channels, linear attention with a memory,
a 7×7 convolution first and space-to-depth have no counterpart there. So the class is ours, the weights the library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from diawork.base.config import DiffusionConfig
from diawork.method.unet.plain import build_unet


class LibraryUNet(ModelMixin, ConfigMixin):
    """``unet`` with the face of a ``UNet2DModel``: ``model(x, t).sample`` is the predicted noise."""

    @register_to_config
    def __init__(
        self, sample_size: int = 32, in_channels: int = 1, out_channels: int = 1, dim: int = 64,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
    ) -> None:  # fmt: skip
        super().__init__()
        cfg = DiffusionConfig(dim=dim, dim_mults=tuple(dim_mults), channels=in_channels, image_size=sample_size)  # type: ignore[arg-type]
        self.unet = build_unet(cfg)

    def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True) -> UNet2DOutput | tuple[Tensor]:
        """Return the predicted noise (B, C, S, S) at one step, or at one an image."""
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        noise = self.unet(sample, t)
        return UNet2DOutput(sample=noise) if return_dict else (noise,)
