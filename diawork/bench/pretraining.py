"""A training step of the DDPM against the library's own blocks in the library's own memory format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from diawork.base.compute import Compute, count_macs
from diawork.base.config import DiffusionConfig
from diawork.base.seeding import generator
from diawork.bench.timing import Pair, time_pairs
from diawork.method.ddpm import build_adam, build_ddpm, denoising_loss
from diawork.method.unet.trained import restate

WIDTHS = (16, 32, 64)  # of presets demo and cpu, and the published one


def pretraining_steps(
    compute: Compute, ceiling: float, *, widths: tuple[int, ...] = WIDTHS, batch: int = 32, size: int = 32,
    pairs: int = 5,
) -> Iterator[Pair]:  # fmt: skip
    """Time a step (forward, backward, clipping, Adam) on ``batch`` images of ``size`` px for each width of the UNet."""
    draws = generator(0, "bench", "pretraining")
    x = torch.rand(batch, 1, size, size, generator=draws) * 2 - 1
    noise, t = torch.randn(x.shape, generator=draws), torch.randint(1000, (batch,), generator=draws)
    for width in widths:
        cfg = DiffusionConfig(dim=width, image_size=size, dim_mults=(1, 2, 4) if width < 32 else (1, 2, 4, 8))
        library, ours = build_ddpm(cfg).to(compute.device), compute.prepare(build_ddpm(cfg))
        restate(ours.model.to(memory_format=torch.channels_last))
        flops = 3 * 2 * count_macs(library.model, x[:1], t[:1]) * batch
        pair = Pair(f"DDPM training step, width {width}", flops=flops, ceiling=ceiling)
        batches = [value.to(compute.device) for value in (x, t, noise)]
        sides = (library, torch.optim.Adam(library.parameters(), lr=cfg.lr)), (ours, build_adam(ours, cfg))
        works = (_step(ddpm, optimizer, *batches, compute=compute) for ddpm, optimizer in sides)
        yield time_pairs(pair, *works, pairs=pairs, device=compute.device)


def _step(
    ddpm: Any, optimizer: torch.optim.Optimizer, x: Tensor, t: Tensor, noise: Tensor, *, compute: Compute
) -> Callable[[], None]:
    """Return a training step of ``ddpm`` on the same batch, again and again."""

    def step() -> None:
        with compute.autocast():
            loss = denoising_loss(ddpm, x, t, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ddpm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
