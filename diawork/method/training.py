"""One training step and one loop: the encoder learns from the views of healthy images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.optim.lars import Lars
from torch import Tensor

from diawork.base.checkpoints import (
    Checkpoint,
    Keeper,
    Tensors,
    load_optimizer,
    load_weights,
    matching,
    named,
    optimizer_state,
)
from diawork.base.compute import Compute
from diawork.base.config import LossConfig, TrainConfig
from diawork.base.errors import Interrupted, NumericError, UsageError
from diawork.base.processes.batchnorm import share_batchnorm
from diawork.base.seeding import generator
from diawork.base.stopping import graceful_stop
from diawork.data.images import Images, batches
from diawork.method.encoder import Encoder
from diawork.method.loss import LossParts, dia_loss
from diawork.method.progress import Bars, stage
from diawork.method.views import BranchBuilder, Views

EpochHook = Callable[[int, Encoder], float | None]


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

    Of several processes each runs its own rows and takes the loss over those of all.
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


@dataclass
class History:
    """What a training did: one row a step, one an epoch where a hook said something."""

    steps: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    selected: int = 0  # epoch whose weights the encoder carries
    seconds: float = 0.0  # of training, what an interruption undid not counted


def fit(
    encoder: Encoder,
    images: Images,
    builder: BranchBuilder,
    *,
    train: TrainConfig,
    loss: LossConfig,
    seed: int = 0,
    compute: Compute | None = None,
    keeper: Keeper | None = None,
    on_epoch: EpochHook | None = None,
    progress: Bars = True,
) -> History:
    """Train ``encoder`` on healthy images (N, C, H, W) in [0, 1].

    ``on_epoch(epoch, encoder)`` is called after every epoch; where ``train.select`` is not "last" it must
    return the validation score, and the best epoch's weights are kept. Raises ``NumericError`` where
    something stops being finite and ``Interrupted`` after saving on a stop signal.
    """
    if len(images) < 2:
        raise UsageError(f"contrastive training needs at least 2 images, there is {len(images)}.")
    compute = compute or Compute()
    keeper = keeper or Keeper(None, spec={})
    compute.prepare(encoder)
    share_batchnorm(encoder, compute.group, compute.device)
    loop = _Loop(encoder, train, loss, seed, compute)
    loop.restore(keeper.restore())
    keeper.require_space(loop.snapshot()[0], loop.optimizer)
    per_epoch = len(epoch_batches(len(images), train, seed=seed, epoch=0))
    total = train.epochs * per_epoch
    shown = progress if compute.group.leads else False
    with graceful_stop(), stage(shown, total=total, initial=loop.step, desc="training") as bar:
        while loop.epochs < train.epochs:
            order = epoch_batches(len(images), train, seed=seed, epoch=loop.epochs)
            for index in order[loop.step - loop.epochs * per_epoch :]:
                own = images[index[compute.group.rows(len(index))]]
                row = loop.one_step(own, index, builder, epoch=loop.step / per_epoch)
                bar.update()
                bar.set_postfix(epoch=loop.epochs + 1, loss=f"{row['loss']:.3f}", refresh=False)
                keeper.after_step(loop.step, loop.snapshot)
            loop.end_epoch(on_epoch, keeper)
        keeper.save(loop.step, loop.snapshot)  # what follows the training may be interrupted, too
    return loop.finish()


class _Loop:
    """Encoder, optimiser and history, with a step that draws everything from the step's own generators."""

    def __init__(self, encoder: Encoder, train: TrainConfig, loss: LossConfig, seed: int, compute: Compute) -> None:
        self.encoder, self.train, self.loss, self.seed, self.compute = encoder, train, loss, seed, compute
        self.optimizer = build_optimizer(encoder, train)
        self.step, self.epochs, self.history = 0, 0, History()  # done so far
        self.best: Tensors | None = None
        self.started = time.perf_counter()

    def one_step(self, x: Tensor, index: Tensor, builder: BranchBuilder, *, epoch: float) -> dict[str, float]:
        """Take one optimiser step on the images ``index`` (B,), of which x (b, C, H, W) are this process's share."""
        self.encoder.train()
        lr = learning_rate(epoch, self.train)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x = x.to(self.compute.device, non_blocking=True)  # the views are made where the dissolver's are
        rows = self.compute.group.rows(len(index))
        views = builder(x, index=index, seed=self.seed, step=self.step, rows=rows)
        if not torch.isfinite(views.images).all():  # one such pixel would poison the BatchNorm statistics
            raise self._not_finite("the views of these images hold NaN or infinite values", index)
        parts = train_step(self.encoder, views, self.loss, compute=self.compute)
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.train.clip_norm or math.inf)
        row = dict(zip(("loss", "contrastive", "shift"), map(float, parts), strict=True))
        row |= {"step": self.step, "epoch": epoch, "lr": lr, "gradient_norm": float(norm)}
        if not all(map(math.isfinite, row.values())):
            raise self._not_finite(f"loss {row['loss']}, gradient norm {row['gradient_norm']}", index)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.history.steps.append(row)
        self.step += 1
        return row

    def _not_finite(self, what: str, index: Tensor) -> NumericError:
        return NumericError(
            f"training stopped being finite at step {self.step}: {what}; healthy images {index.tolist()}.",
            hint="Lower train.peak_lr or use precision='fp32'; the last checkpoint is intact.",
        )

    def end_epoch(self, on_epoch: EpochHook | None, keeper: Keeper) -> None:
        """Ask the hook for its score and remember the best weights where selection is by validation."""
        epoch = self.epochs + 1
        try:
            score = self.compute.group.told(lambda: on_epoch(epoch, self.encoder)) if on_epoch else None
        except Interrupted:  # the step is done, the epoch is not: the hook is asked again
            keeper.save(self.step, self.snapshot)
            raise
        self.epochs = epoch
        if score is None:
            return
        best = max((row["score"] for row in self.history.epochs), default=-math.inf)
        self.history.epochs.append({"epoch": epoch, "score": score})
        if self.train.select != "last" and score > best:
            self.best = {k: v.detach().clone() for k, v in self.encoder.state_dict().items()}

    def snapshot(self) -> tuple[Tensors, dict[str, Any]]:
        """Return all tensors and plain values that a resumed training needs."""
        encoder, optimizer = self.encoder.state_dict(), optimizer_state(self.optimizer)
        tensors = named(encoder=encoder, optimizer=optimizer, best=self.best or {})
        self.history.seconds = time.perf_counter() - self.started
        state = {name: getattr(self.history, name) for name in ("steps", "epochs", "seconds")}
        return tensors, state | {"epochs_done": self.epochs}

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint, where there is one."""
        if checkpoint is None:
            return
        tensors, path = checkpoint.tensors, checkpoint.path
        checkpoint.refuse_others("encoder.", "optimizer.", "best.")
        load_weights(self.encoder, tensors, prefix="encoder.", path=path)
        load_optimizer(self.optimizer, tensors, prefix="optimizer.", path=path)
        if any(name.startswith("best.") for name in tensors):
            self.best = matching(tensors, "best.", self.encoder.state_dict(), path=path)
        self.step, self.epochs = checkpoint.value("step", int), checkpoint.value("epochs_done", int)
        self.history = History(checkpoint.value("steps", list), checkpoint.value("epochs", list))
        self.started -= checkpoint.value("seconds", float)

    def finish(self) -> History:
        """Leave the selected weights in the encoder, in eval mode."""
        history, select = self.history, self.train.select
        history.selected, history.seconds = self.train.epochs, time.perf_counter() - self.started
        if select != "last":
            if not self.best:
                raise UsageError(f"train.select={select!r} needs a validation score after each epoch.")
            self.encoder.load_state_dict(self.best)
            history.selected = int(max(history.epochs, key=lambda row: row["score"])["epoch"])
        self.encoder.eval()
        return history
