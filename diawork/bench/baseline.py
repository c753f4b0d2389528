"""The released scheme, restated plainly in code of our own: the baseline of every ratio in ``bench``.

K passes of the UNet a batch, one augmentation call a branch and shift, fp32, eager, whole-matrix loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diawork.base.compute import Compute
from diawork.base.config import EncoderConfig, K, ViewsConfig
from diawork.base.seeding import generator
from diawork.method.dissolve import dissolve
from diawork.method.encoder import Encoder, build_encoder
from diawork.method.views import augment, draw_augmentation, rotate


def plain_encoder(cfg: EncoderConfig, compute: Compute) -> Encoder:
    """Return the encoder with ordinary convolutions."""
    encoder = build_encoder(cfg)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
    return encoder.to(compute.device)


def released_dissolve(ddpm: Any, x: Tensor) -> Tensor:
    """Dissolve a batch once for every shift, one step a shift (K·B, C, H, W)."""
    compute = Compute(x.device)
    return torch.cat(
        [rotate(dissolve(ddpm, x, 40 + 15 * k, range_mode="released", compute=compute), k) for k in range(K)]
    )


def released_step(encoder: Encoder, ddpm: Any, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one training step as the released code does."""
    parts = [torch.cat([rotate(x, k) for k in range(K)]) for _ in range(2)] + [released_dissolve(ddpm, x)]
    views = [
        augment(rows, draw_augmentation(len(rows), ViewsConfig(), generator(0, branch, k)))
        for branch, part in enumerate(parts)
        for k, rows in enumerate(part.split(len(x)))
    ]
    embedding = encoder(torch.cat(views))
    z, n = F.normalize(embedding.z), 2 * K * len(x)
    similarity = (z @ z.T / 0.5).exp() * (1 - torch.eye(len(z), device=z.device))
    log_probability = -torch.log(similarity / similarity.sum(1, keepdim=True) + 1e-8)
    positive = (torch.arange(n, device=z.device) + n // 2) % n
    contrastive = log_probability[torch.arange(n, device=z.device), positive].sum() / len(z)
    shift = torch.arange(K, device=z.device).repeat_interleave(len(x)).repeat(3)
    loss = contrastive + F.cross_entropy(embedding.shift_logits, shift)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
