"""What parts of a training step, batch, resolution, bank and loss cost on this machine; no figure here is a test."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from diawork.base.compute import Compute
from diawork.base.config import EncoderConfig, K, LossConfig, Stem, ViewsConfig
from diawork.base.seeding import generator
from diawork.bench.bench import QUICK, BenchConfig, FromMemory, bench, sgd
from diawork.bench.machine import Load
from diawork.bench.rivals import rivals
from diawork.bench.timing import peak_memory, seconds
from diawork.method.bank import DissolvedBank
from diawork.method.encoder import Embedding, build_encoder
from diawork.method.loss import dia_loss
from diawork.method.training import train_step
from diawork.method.views import BranchBuilder, Views


def measure_all(*, quick: bool = False, compute: Compute | None = None, say: Callable[[str], Any] = print) -> dict:
    """Return everything the cost page shows: stages, parts of a step, scaling, bank, memory of the loss."""
    cfg, compute = QUICK if quick else BenchConfig(), compute or Compute.auto()
    load = Load()
    costs = bench(cfg, compute=compute, say=say)
    costs["parts"] = step_shares(cfg, compute=compute)
    costs["scaling"] = scaling((2, 4), (28, 32), cfg=cfg, compute=compute) if quick else scaling(compute=compute)
    costs["bank"] = bank_cost(steps=(2, 4) if quick else (4, 16), cfg=cfg, compute=compute)
    costs["loss_memory"] = loss_memory(8 if quick else 1024)
    costs["rivals"] = rivals(quick=quick, compute=compute)
    costs["others"] = load.others()  # over all of it
    say(f"loss of {costs['loss_memory']['views']:,} views: peak {costs['loss_memory']['peak_mib']:.0f} MiB")
    return costs


def loss_memory(batch: int = 1024, d: int = 128) -> dict[str, float]:
    """Return what the loss allocates at most, forward and backward, for 3·K·batch views (MiB; CUDA or profiler)."""
    rows = 3 * K * batch
    z = torch.randn(rows, d, generator=generator(0, "bench", "loss")).requires_grad_()
    branch, shift, image = torch.cartesian_prod(torch.arange(3), torch.arange(K), torch.arange(batch)).T
    views, embedding = Views(z, image, shift, branch, t=branch), Embedding(z, z, torch.zeros(rows, K))
    return {"views": rows, "peak_mib": peak_memory(lambda: dia_loss(embedding, views).total.backward())}


def step_shares(
    cfg: BenchConfig | None = None, *, compute: Compute | None = None, stem: Stem = "imagenet"
) -> list[dict]:
    """Return what each part of one training step costs: dissolving, views, forward and backward, optimiser."""
    cfg, compute = cfg or BenchConfig(), compute or Compute.auto()
    dissolver = cfg.dissolver(compute)
    x, index = torch.rand(cfg.batch, 1, cfg.size, cfg.size), torch.arange(cfg.batch)
    encoder = compute.prepare(build_encoder(EncoderConfig(stem=stem))).train()
    optimizer = sgd(encoder)
    builder = BranchBuilder(ViewsConfig(), FromMemory((x * 255).byte()))
    views = builder(x, index=index, seed=0, step=0)
    parts: dict[str, Callable[[], Any]] = {
        "dissolving": lambda: dissolver.at(x, 80),
        "views": lambda: builder(x, index=index, seed=0, step=0),
        "encoder and loss": lambda: train_step(encoder, views, LossConfig(), compute=compute),
        "optimiser": optimizer.step,
    }
    rows = []
    for name, work in parts.items():
        work()
        spent = median(seconds(work, compute.device) for _ in range(cfg.pairs))
        rows.append({"part": name, "seconds": spent, "images_per_s": cfg.batch / spent})
    return rows


def scaling(
    batches: tuple[int, ...] = (8, 16, 32), sizes: tuple[int, ...] = (28, 32, 64), *,
    cfg: BenchConfig | None = None, compute: Compute | None = None,
) -> list[dict]:  # fmt: skip
    """Return seconds an image of a training step against batch size (at 28 px) and resolution (at the last batch)."""
    cfg, compute = cfg or BenchConfig(dim=32, pairs=3), compute or Compute.auto()
    cells = [(batch, sizes[0]) for batch in batches] + [(batches[-1], size) for size in sizes[1:]]
    rows = []
    for batch, size in cells:
        cell = replace(cfg, batch=batch, size=size)
        parts = step_shares(cell, compute=compute)
        total = sum(row["seconds"] for row in parts)
        rows.append({"batch": batch, "size": size, "ms_per_image": 1000 * total / batch, "images_per_s": batch / total})
    return rows


def bank_cost(
    images: int = 1148, steps: tuple[int, ...] = (4, 16), *, cfg: BenchConfig | None = None,
    compute: Compute | None = None,
) -> list[dict]:  # fmt: skip
    """Return what banks of several numbers of steps cost for so many images, from real banks of one batch."""
    cfg, compute = cfg or BenchConfig(), compute or Compute.auto()
    dissolver = cfg.dissolver(compute)
    x, index = torch.rand(cfg.batch, 1, cfg.size, cfg.size), torch.arange(cfg.batch)
    face: dict[str, Any] = {"image": index, "flip": index % 2 == 0, "generator": generator(0)}
    rows = []
    for n in steps:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            bank = DissolvedBank(dissolver, x, folder, steps=n, origin={"bench": n}, progress=False)
            make = (time.perf_counter() - start) * images / cfg.batch
            look_up = median(seconds(partial(bank, x, **face), compute.device) for _ in range(20))
            mib = images * 2 * n * cfg.size**2 / 2**20
        rows.append({"images": images, "steps": n, "mib": mib, "make_s": make, "look_up_ms": 1000 * look_up})
    return rows
