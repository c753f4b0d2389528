"""One training step and one loop: the encoder learns from the views of healthy images."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn

from diawork.base.checkpoints import Checkpointer
from diawork.base.compute import Compute
from diawork.base.config import LossConfig, TrainConfig
from diawork.base.errors import UsageError
from diawork.base.loop import EpochHook, History, NotFinite, Progress, Row, fit_steps, update
from diawork.base.seeding import generator
from diawork.data.images import Images, batches
from diawork.method.encoder import Encoder
from diawork.method.loss import LossParts, dia_loss
from diawork.method.views import BranchBuilder, Views


def build_optimizer(encoder: Encoder, cfg: TrainConfig) -> torch.optim.Optimizer:
    """Return LARS (trust coefficient 0.001, all tensors adapted), SGD or AdamW over all parameters."""
    parameters = list(encoder.parameters())
    if cfg.optimizer == "lars":
        return Lars(
            parameters, lr=cfg.peak_lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay, trust_coeff=0.001,
            eps=1e-8, always_adapt=True,
        )  # fmt: skip
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=cfg.peak_lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
    return torch.optim.AdamW(parameters, lr=cfg.peak_lr, weight_decay=cfg.weight_decay)


def learning_rate(epoch: float, cfg: TrainConfig) -> float:
    """Return the rate at a fractional epoch: linear warm-up to ``peak_lr``, then a half cosine (§7)."""
    if epoch <= cfg.warmup_epochs and cfg.warmup_epochs > 0:
        return cfg.start_lr + (cfg.peak_lr - cfg.start_lr) * epoch / cfg.warmup_epochs
    length = cfg.decay_epochs or max(1e-9, cfg.epochs - cfg.warmup_epochs)
    return cfg.peak_lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - cfg.warmup_epochs) / length)))


def epoch_batches(n: int, cfg: TrainConfig, *, seed: int, epoch: int) -> list[Tensor]:
    """Return the batches of one epoch as index tensors; every image once, or a random part of them."""
    order = list(batches(n, cfg.batch_size, generator(seed, "train", epoch, "order")))
    if cfg.epoch_size == "batches":
        return order[: cfg.epoch_n]
    if cfg.epoch_size == "samples" and cfg.epoch_n < n:
        return list(torch.cat(order)[: cfg.epoch_n].split(cfg.batch_size))
    return order


def train_step(encoder: Encoder, views: Views, loss: LossConfig, *, compute: Compute) -> LossParts:
    """Run views forward and backward; gradients are left in the encoder's parameters.

    Of several processes each runs its own rows and takes the loss over those of all. BatchNorm sees the rows of all on
    cards (torch's SyncBatchNorm), and on CPUs, which that class does not support, those of its own process.
    """
    group = compute.group
    with compute.autocast():
        embedding = encoder(compute.to(views.images))
    labels = (views.image, views.shift, views.branch)
    z, logits, image, shift, branch = group.gathered(embedding.z, embedding.shift_logits, *labels)
    views = replace(views, image=image, shift=shift, branch=branch)
    parts = dia_loss(embedding._replace(z=z, shift_logits=logits), views, loss)
    parts.total.backward()
    group.sum_gradients(encoder.parameters())
    return LossParts(*(value.detach() for value in parts))


def fit(
    encoder: Encoder,
    images: Images,
    builder: BranchBuilder,
    *,
    train: TrainConfig,
    loss: LossConfig,
    seed: int = 0,
    compute: Compute | None = None,
    checkpointer: Checkpointer | None = None,
    on_epoch: EpochHook | None = None,
    progress: Progress = True,
) -> History:
    """Train ``encoder`` on healthy images (N, C, H, W) in [0, 1]; it is left in evaluation.

    ``on_epoch(epoch, encoder)`` is called after every epoch; where ``train.select`` is not "last" it must
    return the validation score, and the best epoch's weights are kept. Raises ``NumericError`` where
    something stops being finite and ``Interrupted`` after saving on a stop signal.
    """
    if len(images) < 2:
        raise UsageError(f"contrastive training needs at least 2 images, there is {len(images)}.")
    compute = compute or Compute()
    best = copy.deepcopy(encoder) if train.select != "last" else None
    compute.prepare(encoder)
    if compute.group.size > 1 and compute.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    optimizer = build_optimizer(encoder, train)
    per_epoch = len(epoch_batches(len(images), train, seed=seed, epoch=0))

    def take_step(step: int, index: Tensor) -> Row:
        rows = compute.group.rows(len(index))  # this process's share of the batch
        x = images[index[rows]].to(compute.device, non_blocking=True)  # views are made where the dissolver's are
        views = builder(x, index=index, seed=seed, step=step, rows=rows)
        if not torch.isfinite(views.images).all():  # one such pixel would poison the BatchNorm statistics
            raise NotFinite("the views of these images hold NaN or infinite values")
        parts = train_step(encoder, views, loss, compute=compute)
        losses = {"loss": parts.total, "contrastive": parts.contrastive, "shift": parts.shift}
        return update(optimizer, losses, clip=train.clip_norm or math.inf)

    history = fit_steps(
        take_step,
        modules={"encoder": encoder},
        optimizers={"optimizer": optimizer},
        batches=lambda epoch: epoch_batches(len(images), train, seed=seed, epoch=epoch),
        steps=train.epochs * per_epoch,
        checkpointer=checkpointer or Checkpointer(None, spec={}, group=compute.group),
        rate=lambda step: learning_rate(step / per_epoch, train),
        on_epoch=on_epoch,
        best=best,
        progress=progress,
        hint="Lower train.peak_lr or use precision='fp32'.",
    )
    if best is None:
        history.selected = train.epochs
    elif not history.epochs:
        raise UsageError(f"train.select={train.select!r} needs a validation score after each epoch.")
    else:
        encoder.load_state_dict(best.state_dict())
    encoder.eval()
    return history
