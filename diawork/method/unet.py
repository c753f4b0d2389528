"""The UNet of denoising-diffusion-pytorch: built, frozen for dissolving, and restated for pretraining.

Half of the time of the library's UNet, and more the narrower it is, goes into moving tensors and not into convolutions.
Both forms compute the same function, up to rounding, with fewer passes over memory. There is no dropout.
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
    cosine_beta_schedule,
    linear_beta_schedule,
    sigmoid_beta_schedule,
)
from torch import Tensor, nn
from torch.nn.utils import skip_init

from diawork.base.config import DiffusionConfig
from diawork.base.seeding import isolated_rng

_SCHEDULES = {"cosine": cosine_beta_schedule, "linear": linear_beta_schedule, "sigmoid": sigmoid_beta_schedule}
_TINY = 1e-12  # the library's guard against a zero norm


def build_unet(cfg: DiffusionConfig) -> Unet:
    """Return an untrained UNet; every setting that matters is written out, none left to the library."""
    with isolated_rng(cfg.seed, "ddpm", "init"):
        return Unet(
            dim=cfg.dim, dim_mults=cfg.dim_mults, channels=cfg.channels, attn_heads=4, attn_dim_head=32, dropout=0.0
        )


def noise_levels(cfg: DiffusionConfig) -> Tensor:
    """Return ᾱ (T,), the share of the image in every noisy one, in float64."""
    return torch.cumprod(1 - _SCHEDULES[cfg.beta_schedule](cfg.timesteps), 0)


def _inverse_norm(x: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min_(_TINY).reciprocal_()


# --- frozen ----------------------------------------------------------------------------------------


def frozen_unet(unet: Any) -> Any:
    """Turn a ``Unet`` (in place; pass a copy) into its inference form; any other module is returned as it is.

    Attention works on rows of pixels (B, H·W, C), which is how a channels-last tensor lies in memory; gains are folded
    into neighbouring factors; what may be overwritten is.
    """
    if isinstance(unet, Unet):
        _freeze(unet.requires_grad_(False))
    return unet


def _freeze(module: nn.Module) -> None:
    for name, child in module.named_children():
        match list(child.children()):
            case _ if type(child) in _FROZEN:
                setattr(module, name, _FROZEN[type(child)](child))
            case [rearrange, nn.Conv2d() as pointwise] if type(rearrange).__name__ == "Rearrange":
                # space-to-depth and a 1×1 convolution are one 2×2 convolution of stride 2
                conv = skip_init(nn.Conv2d, pointwise.in_channels // 4, pointwise.out_channels, 2, 2)
                conv.weight = nn.Parameter(pointwise.weight.detach().reshape(conv.weight.shape), requires_grad=False)
                conv.bias = pointwise.bias
                setattr(module, name, conv)
            case _:
                _freeze(child)


def _gain(norm: RMSNorm) -> Tensor:
    return norm.g.detach() * norm.scale


class _FrozenEmbedding(nn.Module):
    """Sinusoids of the step in fp32, returned in the precision of the weights."""

    precision: Tensor

    def __init__(self, embedding: SinusoidalPosEmb) -> None:
        super().__init__()
        self.sinusoids = embedding
        self.register_buffer("precision", torch.empty(0), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        return self.sinusoids(t).to(self.precision.dtype)


class _FrozenNorm(nn.Module):
    """RMS norm over channels."""

    gain: Tensor

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.register_buffer("gain", _gain(norm))

    def forward(self, x: Tensor) -> Tensor:
        return (x * _inverse_norm(x, 1)).mul_(self.gain)


class _FrozenBlock(nn.Module):
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


class FrozenAttention(nn.Module):
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
        self.norm = _FrozenNorm(norm)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        q, k, v = F.linear(rows * _inverse_norm(rows, 2), self.qkv).chunk(3, dim=2)
        q = q.reshape(b, h * w, self.heads, self.width).softmax(-1).flatten(2)
        # softmax(keys)ᵀ·values over memory and image, scaled (B, heads, d, d)
        top = torch.maximum(k.amax(1, keepdim=True), self.memory_k.amax(1, keepdim=True))
        image, memory = (k - top).exp_(), (self.memory_k - top).exp_()
        total = image.sum(1, dtype=torch.float32) + memory.sum(1, dtype=torch.float32)
        values = self.memory_v.expand(b, -1, -1)
        context = self._by_head(image).mT @ self._by_head(v) + self._by_head(memory).mT @ self._by_head(values)
        context = (context * (self.scale / total).view(b, self.heads, self.width, 1)).to(v.dtype)
        projected = (context @ self.out).view(b, q.shape[2], c)
        y = torch.baddbmm(self.out_bias.expand(b, 1, c), q, projected)
        return self.norm(y.view(b, h, w, c).permute(0, 3, 1, 2))

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:2], self.heads, self.width).transpose(1, 2)


_FROZEN: dict[type, Any] = {
    SinusoidalPosEmb: _FrozenEmbedding, Block: _FrozenBlock, LinearAttention: FrozenAttention, RMSNorm: _FrozenNorm
}  # fmt: skip


# --- in training -----------------------------------------------------------------------------------


def restate(unet: Any) -> Any:
    """Give the blocks of a ``Unet`` (in place) their restated passes; names, shapes and values of weights stay.

    A normalisation with its gain, shift and SiLU is one function whose gradient needs two sums and one product; linear
    attention keeps heads first, so that no product copies its factors; 1×1 convolutions are products of rows of pixels.
    Blocks change their class and nothing else, so checkpoints are interchangeable.
    """
    return _swap(unet, TRAINED)


def release(unet: Any) -> Any:
    """Give the blocks their library's passes back."""
    return _swap(unet, {trained: kind for kind, trained in TRAINED.items()})


def _swap(unet: Any, kinds: dict[type, type]) -> Any:
    for module in unet.modules():
        form = kinds.get(type(module))
        if form and (form is not _TrainedPointwise or module.kernel_size == (1, 1)):
            module.__class__ = form
    return unet


class _Normalise(torch.autograd.Function):
    """y = x/|x| · gain + shift, and SiLU of it where asked, over the channels of rows of pixels.

    x (B, N, C), gain (B or 1, 1, C), shift likewise or None.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor | None, silu: bool) -> Tensor:
        inverse = _inverse_norm(x, 2)
        unit = x * inverse
        y = unit * gain if shift is None else torch.addcmul(shift, unit, gain)
        ctx.silu, ctx.has_shift = silu, shift is not None
        ctx.save_for_backward(unit, inverse, gain, y if silu else None)
        return F.silu(y) if silu else y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:  # type: ignore[override]
        unit, inverse, gain, y = ctx.saved_tensors
        g = torch.ops.aten.silu_backward(gradients[0], y) if ctx.silu else gradients[0]
        product = g * unit
        rows = (0, 1) if len(gain) == 1 else 1
        of_shift = g.sum(rows, keepdim=True) if ctx.has_shift else None
        of_gain = product.sum(rows, keepdim=True)
        along = product @ gain.mT  # Σ over channels, (B, N, 1)
        of_x = (g * gain).addcmul_(unit, along, value=-1).mul_(inverse)
        return of_x, of_gain, of_shift, None


class _Attend(torch.autograd.Function):
    """Linear attention of rows (B, N, C): bias + Σ over heads softmax(q) · softmax([memory, k])ᵀ · [memory, v] · out.

    Heads come first, (heads, B, N, d), so that no product copies its factors: qkv (3·heads, C, d), memory
    (2·heads, slots, d), out (heads, d, C) with the scale in it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, qkv: Tensor, memory: Tensor, out: Tensor, bias: Tensor) -> Tensor:
        b, n, c = rows.shape
        heads, d = len(out), out.shape[1]
        flat = rows.reshape(1, b * n, c).expand(3 * heads, -1, -1)
        q, k, v = torch.bmm(flat, qkv).view(3, heads, b, n, d)
        q = q.softmax(-1)
        memory_k, memory_v = memory.view(2, heads, 1, -1, d)
        top = torch.maximum(k.amax(2, keepdim=True), memory_k.amax(2, keepdim=True))
        k, memory_k = k.sub_(top).exp_(), (memory_k - top).exp_()
        total = (k.sum(2) + memory_k.sum(2)).unsqueeze(3)
        context = (k.mT @ v + memory_k.mT @ memory_v) / total
        projected = context @ out.unsqueeze(1)
        y = bias.expand(b, n, c).contiguous()
        for head in range(heads):
            y.baddbmm_(q[head], projected[head])
        ctx.save_for_backward(rows, qkv, memory_v, out, q, k, v, memory_k, total, context, projected)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        rows, qkv, memory_v, out, q, k, v, memory_k, total, context, projected = ctx.saved_tensors
        g, (b, n, c), heads, d = gradients[0].contiguous(), rows.shape, len(out), out.shape[1]
        each = torch.empty(3, heads, b, n, d, dtype=rows.dtype, device=rows.device)
        for head in range(heads):
            torch.bmm(g, projected[head].mT, out=each[0, head])
        each[0] = torch.ops.aten._softmax_backward_data(each[0], q, -1, q.dtype)
        of_projected = torch.stack([part.mT @ g for part in q])
        of_out = (context.mT @ of_projected).sum(1)
        of_context = of_projected @ out.unsqueeze(1).mT
        of_total = -(of_context * context).sum(-1, keepdim=True).div(total).mT
        of_sum = of_context / total
        torch.add(v @ of_sum.mT, of_total, out=each[1]).mul_(k)
        torch.matmul(k, of_sum, out=each[2])
        of_memory_k = ((memory_v @ of_sum.mT + of_total) * memory_k).sum(1)
        of_memory_v = (memory_k @ of_sum).sum(1)
        flat, each = rows.reshape(b * n, c), each.view(3 * heads, b * n, d)
        of_qkv, of_rows = torch.empty_like(qkv), torch.zeros_like(flat)
        for i, part in enumerate(each):
            torch.mm(flat.T, part, out=of_qkv[i])
            of_rows.addmm_(part, qkv[i].T)
        return of_rows.view(b, n, c), of_qkv, torch.cat([of_memory_k, of_memory_v]), of_out, g.sum((0, 1))


def _rows(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as rows of pixels (B, H·W, C), a view where channels lie last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(len(rows), *like.shape[2:], -1).permute(0, 3, 1, 2)


def _normalise(x: Tensor, gain: Tensor, shift: Tensor | None = None, *, silu: bool = False) -> Tensor:
    """Normalise (B, C, H, W) by gain and shift (B or 1, C, 1, 1)."""
    factors = [None if value is None else value.to(x.dtype).flatten(1).unsqueeze(1) for value in (gain, shift)]
    return _image(_Normalise.apply(_rows(x), *factors, silu), x)


class _TrainedPointwise(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return _image(F.linear(_rows(x), self.weight[:, :, 0, 0], self.bias), x)


class _TrainedNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return _normalise(x, self.g * self.scale)


class _TrainedBlock(Block):
    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        gain, shift = self.norm.g * self.norm.scale, None
        if scale_shift is not None:
            gain, shift = (scale_shift[0] + 1) * gain, scale_shift[1]
        return _normalise(self.proj(x), gain, shift, silu=True)


class _TrainedAttention(LinearAttention):
    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.to_out
        d = conv.in_channels // self.heads
        qkv = (self.to_qkv.weight[:, :, 0, 0] * (self.norm.g * self.norm.scale).flatten()).mT
        qkv = qkv.reshape(-1, 3 * self.heads, d).transpose(0, 1)
        out = (self.scale * conv.weight[:, :, 0, 0].mT).reshape(self.heads, d, -1)
        memory = self.mem_kv.transpose(2, 3).flatten(0, 1)  # (2·heads, slots, d)
        low = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if low else x.dtype
        rows = _rows(x.to(dtype))
        with torch.autocast(x.device.type, enabled=False):
            unit = _Normalise.apply(rows, torch.ones_like(rows[:1, :1]), None, False)
            values = (value.to(dtype).contiguous() for value in (qkv, memory, out, conv.bias))
            return norm(_image(_Attend.apply(unit, *values), x))


TRAINED: dict[type, type] = {
    RMSNorm: _TrainedNorm, Block: _TrainedBlock, LinearAttention: _TrainedAttention, nn.Conv2d: _TrainedPointwise
}  # fmt: skip
