"""The UNet of denoising-diffusion-pytorch for inference alone: the same function with fewer passes over memory.

The dissolver calls one frozen UNet thousands of times, and half of that time went into moving tensors
and not into convolutions. Here attention works on rows of pixels (B, H·W, C), which is how a
channels-last tensor lies in memory; gains are folded into neighbouring factors; what may be
overwritten is. Weights are the library's; outputs agree up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import (
    Block,
    LinearAttention,
    RMSNorm,
    SinusoidalPosEmb,
    Unet,
)
from torch import Tensor, nn
from torch.nn.utils import skip_init

_TINY = 1e-12  # the library's guard against a zero norm


def frozen_unet(unet: Any) -> Any:
    """Turn a ``Unet`` (in place; pass a copy) into its inference form; any other module is returned as it is."""
    if not isinstance(unet, Unet):
        return unet
    unet.requires_grad_(False)
    _replace_blocks(unet)
    return unet


def _replace_blocks(module: nn.Module) -> None:
    for name, child in module.named_children():
        frozen = _frozen(child)
        if frozen is None:
            _replace_blocks(child)
        else:
            setattr(module, name, frozen)


def _frozen(module: nn.Module) -> nn.Module | None:
    """Return the inference form of a building block, or None where its parts are to be looked at."""
    for kind, form in _FORMS.items():
        if type(module) is kind:
            return form(module)
    match list(module.children()):
        case [rearrange, nn.Conv2d() as pointwise] if type(rearrange).__name__ == "Rearrange":
            return _downsample(pointwise)
    return None


def _downsample(pointwise: nn.Conv2d) -> nn.Conv2d:
    """Return space-to-depth and a 1×1 convolution as the one 2×2 convolution of stride 2 that they are."""
    conv = skip_init(nn.Conv2d, pointwise.in_channels // 4, pointwise.out_channels, 2, 2)
    conv.weight = nn.Parameter(pointwise.weight.detach().reshape(conv.weight.shape), requires_grad=False)
    conv.bias = pointwise.bias
    return conv


def _gain(norm: RMSNorm) -> Tensor:
    return norm.g.detach() * norm.scale


def _inverse_norm(x: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min_(_TINY).reciprocal_()


class _TimeEmbedding(nn.Module):
    """Sinusoids of the step in fp32, returned in the precision of the weights."""

    precision: Tensor

    def __init__(self, embedding: SinusoidalPosEmb) -> None:
        super().__init__()
        self.sinusoids = embedding
        self.register_buffer("precision", torch.empty(0), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        return self.sinusoids(t).to(self.precision.dtype)


class _Norm(nn.Module):
    """RMS norm over channels."""

    gain: Tensor

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.register_buffer("gain", _gain(norm))

    def forward(self, x: Tensor) -> Tensor:
        return (x * _inverse_norm(x, 1)).mul_(self.gain)


class _Block(nn.Module):
    """Convolution, RMS norm, scale and shift by the step, SiLU: gain and scale are one factor."""

    gain: Tensor

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.proj = block.proj
        self.register_buffer("gain", _gain(block.norm))

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.proj(x)
        x.mul_(_inverse_norm(x, 1))
        if scale_shift is None:
            x = x.mul_(self.gain)
        else:
            scale, shift = scale_shift
            x = torch.addcmul(shift, x, (scale + 1) * self.gain)
        return F.silu(x, inplace=True)


class _LinearAttention(nn.Module):
    """Linear attention on rows of pixels.

    The memory's keys and values stay apart instead of being copied in front of the image's, and context
    and output projection are multiplied first: (32 × 32) · (32 × C) a head, then one product with the queries.
    """

    qkv: Tensor
    memory_k: Tensor
    memory_v: Tensor
    out: Tensor
    out_bias: Tensor

    def __init__(self, attention: LinearAttention) -> None:
        super().__init__()
        self.heads, self.scale = attention.heads, attention.scale
        out, norm = attention.to_out
        qkv = attention.to_qkv.weight.detach()[:, :, 0, 0] * _gain(attention.norm).view(1, -1)
        memory = attention.mem_kv.detach().permute(0, 3, 1, 2).flatten(2)  # (2, slots, heads·d)
        self.width = width = out.in_channels // self.heads
        for name, value in {
            "qkv": qkv,
            "memory_k": memory[:1],
            "memory_v": memory[1:],
            "out": out.weight.detach()[:, :, 0, 0].T.reshape(self.heads, width, -1).contiguous(),  # (heads, d, C)
            "out_bias": out.bias.detach().view(1, 1, -1),
        }.items():
            self.register_buffer(name, value)
        self.norm = _Norm(norm)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        q, k, v = F.linear(rows * _inverse_norm(rows, 2), self.qkv).chunk(3, dim=2)
        q = q.reshape(b, h * w, self.heads, self.width).softmax(-1).flatten(2)
        projected = (self._context(k, v) @ self.out).view(b, q.shape[2], c)
        y = torch.baddbmm(self.out_bias.expand(b, 1, c), q, projected)
        return self.norm(y.view(b, h, w, c).permute(0, 3, 1, 2))

    def _context(self, k: Tensor, v: Tensor) -> Tensor:
        """Return softmax(keys)ᵀ·values over memory and image, scaled (B, heads, d, d)."""
        top = torch.maximum(k.amax(1, keepdim=True), self.memory_k.amax(1, keepdim=True))
        image, memory = (k - top).exp_(), (self.memory_k - top).exp_()
        total = image.sum(1, dtype=torch.float32) + memory.sum(1, dtype=torch.float32)
        values = self.memory_v.expand(len(k), -1, -1)
        context = self._by_head(image).mT @ self._by_head(v) + self._by_head(memory).mT @ self._by_head(values)
        share = (self.scale / total).view(len(k), self.heads, self.width, 1)
        return (context * share).to(v.dtype)

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:2], self.heads, self.width).transpose(1, 2)


_FORMS = {SinusoidalPosEmb: _TimeEmbedding, Block: _Block, LinearAttention: _LinearAttention, RMSNorm: _Norm}
