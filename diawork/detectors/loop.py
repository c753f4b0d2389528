"""Networks trained step by step, resumable to the bit: what the trained detectors share of a training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diawork.base.checkpoints import Checkpoint, Keeper, Tensors, load_optimizer, load_weights, named, optimizer_state
from diawork.base.errors import NumericError, UsageError
from diawork.base.seeding import generator
from diawork.base.stopping import graceful_stop
from diawork.data.images import batches

TakeStep = Callable[[Tensor, int], dict[str, float]]  # rows of the images, number of the step → what to note of it


@dataclass
class Progress:
    """What a training did: one row a step, and the seconds over all its interruptions."""

    steps: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Loop:
    """Takes steps on a network until there are enough; ``take_step`` draws from the step's own generators."""

    net: nn.Module
    optimizers: Mapping[str, torch.optim.Optimizer]
    keeper: Keeper
    n: int  # images
    batch_size: int
    seed: int = 0

    def run(self, take_step: TakeStep, steps: int, *, progress: bool = True) -> Progress:
        """Take ``steps`` steps, or those that are left of them; the network is left in evaluation."""
        if self.n < 2:
            raise UsageError(f"this training needs at least 2 images, there is {self.n}.")
        self.done, self.started = Progress(), time.perf_counter()
        self._restore(self.keeper.restore())
        for optimizer in self.optimizers.values():
            self.keeper.require_space(self._snapshot()[0], optimizer)
        with (
            graceful_stop(),
            tqdm(total=steps, initial=len(self.done.steps), desc="training", disable=not progress) as bar,
        ):
            for index in self._batches(len(self.done.steps)):
                step = len(self.done.steps)
                if step >= steps:
                    break
                self.net.train()
                row = take_step(index, step) | {"step": step, "epoch": step / self.per_epoch}
                if not all(map(math.isfinite, row.values())):
                    raise NumericError(f"training stopped being finite at step {step}: {row}.", hint="Lower the rate.")
                self.done.steps.append(row)
                bar.update()
                self.keeper.after_step(step + 1, self._snapshot)
            self.keeper.save(len(self.done.steps), self._snapshot)  # what follows may be interrupted, too
        self.net.eval()
        self.done.seconds = time.perf_counter() - self.started
        return self.done

    @property
    def per_epoch(self) -> int:
        """Steps in which every image is seen once."""
        return -(-self.n // self.batch_size)

    def _batches(self, start: int) -> Iterator[Tensor]:
        """Yield the rows of one step after another, from step ``start`` on, without end."""
        epoch, skipped = divmod(start, self.per_epoch)
        while True:
            order = batches(self.n, self.batch_size, generator(self.seed, "train", epoch, "order"))
            yield from list(order)[skipped:]
            epoch, skipped = epoch + 1, 0

    def _snapshot(self) -> tuple[Tensors, dict[str, Any]]:
        optimizers = {name: optimizer_state(optimizer) for name, optimizer in self.optimizers.items()}
        tensors = named(net=self.net.state_dict(), **optimizers)
        return tensors, {"steps": self.done.steps, "seconds": time.perf_counter() - self.started}

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        tensors, path = checkpoint.tensors, checkpoint.path
        checkpoint.refuse_others("net.", *(f"{name}." for name in self.optimizers))
        load_weights(self.net, tensors, prefix="net.", path=path)
        for name, optimizer in self.optimizers.items():
            if any(key.startswith(f"{name}.") for key in tensors):  # one that has not stepped yet has no state
                load_optimizer(optimizer, tensors, prefix=f"{name}.", path=path)
        self.done.steps = checkpoint.value("steps", list)
        self.started -= checkpoint.value("seconds", float)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Take one step of an optimiser down a loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return {"loss": float(loss.detach())}
