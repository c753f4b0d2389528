"""The training loop of every method: each brings its step; restoring, saving, stopping and showing are done here.

A step draws from generators that are keyed by its number, so a stopped or killed training goes on to the bit.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diawork.base.checkpoints import (
    Checkpoint,
    Checkpointer,
    Tensors,
    has_checkpoint,
    load_optimizer,
    load_weights,
    named,
    optimizer_state,
)
from diawork.base.distributed import ALONE, Group
from diawork.base.errors import CheckpointError, Interrupted, NumericError
from diawork.base.stopping import graceful_stop

T = TypeVar("T")
Row = dict[str, float]
TakeStep = Callable[..., Row]  # (number of the step, *batches of image positions (B,)) → what to note of it
EpochHook = Callable[[int, Any], float | None]  # epoch, what is trained → its validation score, where it has one


class Bar(Protocol):
    """What a progress bar is told."""

    def update(self, n: int = 1) -> Any:
        """Count n more steps."""

    def set_postfix(self, ordered_dict: Any = None, refresh: bool = True, **values: Any) -> None:
        """Show values beside the steps."""


# a bar or none, or what makes one from (total=, initial=, desc=), e.g. a part of one bar over several trainings
Progress = bool | Callable[..., AbstractContextManager[Bar]]


def progress_bar(progress: Progress, *, total: int, desc: str, initial: int = 0) -> AbstractContextManager[Bar]:
    """Return a bar of ``total`` steps, ``initial`` of which are done."""
    if callable(progress):
        return progress(total=total, initial=initial, desc=desc)
    return tqdm(total=total, initial=initial, desc=desc, disable=not progress)


@dataclass
class History:
    """What a training did, over all its interruptions."""

    steps: list[Row] = field(default_factory=list)  # a row a step
    epochs: list[Row] = field(default_factory=list)  # a row an epoch that got a score
    selected: int = 0  # epoch whose weights were kept, where one was chosen
    seconds: float = 0.0  # of training; what an interruption undid is not counted


class NotFinite(ArithmeticError):
    """Raised by a step that meets a number that is not finite; ``fit_steps`` adds which step and images it was."""


def fit_steps(
    take_step: TakeStep,
    *,
    modules: Mapping[str, nn.Module],  # saved under these names; the first one is the one that learns
    optimizers: Mapping[str, torch.optim.Optimizer],
    batches: Callable[[int], Iterable[Tensor]],  # epoch → positions (B,) of the images of its batches
    steps: int,
    checkpointer: Checkpointer,
    accumulate: int = 1,  # batches a step
    rate: Callable[[int], float] | None = None,  # step → learning rate
    on_epoch: EpochHook | None = None,
    best: nn.Module | None = None,  # is given the weights of the epoch with the best score
    progress: Progress = True,
    desc: str = "training",
    hint: str = "Lower the learning rate.",
) -> History:
    """Take ``steps`` steps, or those that are left of them; what is learnt lies in ``modules`` afterwards.

    Raises ``NumericError`` where something stops being finite, before anything that is not finite is saved, and
    ``Interrupted`` after saving on a stop signal. Several processes take each step together.
    """
    net, group = next(iter(modules.values())), checkpointer.group
    saved = {**modules, "best": best} if best is not None else modules
    history, epochs_done, started = History(), 0, time.perf_counter()
    per_epoch = sum(1 for _ in batches(0))

    def weights() -> Tensors:
        return named(**{name: module.state_dict() for name, module in saved.items()})

    def snapshot() -> tuple[Tensors, dict[str, Any]]:
        history.seconds = time.perf_counter() - started
        states = {name: optimizer_state(optimizer) for name, optimizer in optimizers.items()}
        tensors = weights() | named(**states) | {"history": history_tensor(history)}
        return tensors, {"epochs_done": epochs_done}

    # Go on from a checkpoint, where there is one
    if checkpoint := checkpointer.restore():
        restore(checkpoint, saved, optimizers)
        history = read_history(checkpoint)
        epochs_done, started = checkpoint.state.get("epochs_done", 0), started - history.seconds
    checkpointer.require_space(weights(), optimizers.values())
    done = len(history.steps)
    # One batch after another, without end; an epoch's order is drawn when it begins
    epoch, skipped = divmod(done * accumulate, per_epoch)
    order = itertools.islice(itertools.chain.from_iterable(map(batches, itertools.count(epoch))), skipped, None)

    shown = progress if group.leads else False
    with graceful_stop(), progress_bar(shown, total=steps, initial=done, desc=desc) as bar:
        for step in range(done, steps + 1):
            # Ask for the score of an epoch that has ended
            epoch = step * accumulate // per_epoch
            if on_epoch and epoch > epochs_done:
                try:
                    score = group.on_leader(lambda: on_epoch(epoch, net))  # noqa: B023 (called at once)
                except Interrupted:  # the step is done, the epoch is not: it will be asked again
                    checkpointer.save(step, snapshot)
                    raise
                if score is not None:
                    if best is not None and score > max((row["score"] for row in history.epochs), default=-math.inf):
                        best.load_state_dict(net.state_dict())
                        history.selected = epoch
                    history.epochs.append({"epoch": epoch, "score": score})
            epochs_done = epoch
            if step == steps:
                break

            # Take one step
            net.train()
            row = {"step": step, "epoch": step * accumulate / per_epoch}
            if rate:
                row["lr"] = rate(step)
                for parameters in itertools.chain(*(optimizer.param_groups for optimizer in optimizers.values())):
                    parameters["lr"] = row["lr"]
            index = list(itertools.islice(order, accumulate))
            try:
                history.steps.append(take_step(step, *index) | row)
            except NotFinite as error:
                what = (
                    f"{desc} stopped being finite at step {step}: {error}; healthy images {torch.cat(index).tolist()}."
                )
                raise NumericError(what, hint=f"{hint} The last checkpoint is intact.") from None
            for optimizer in optimizers.values():
                optimizer.zero_grad(set_to_none=True)

            # Show, save, stop
            bar.update()
            bar.set_postfix(epoch=epoch + 1, loss=f"{history.steps[-1]['loss']:.3f}", refresh=False)
            checkpointer.after_step(step + 1, snapshot)
        checkpointer.save(steps, snapshot)  # what follows the training may be interrupted, too
    history.seconds = time.perf_counter() - started
    return history


def update(optimizer: torch.optim.Optimizer, losses: Mapping[str, Tensor], *, clip: float = math.inf) -> Row:
    """Take one step down the gradients that are there; return the losses and the gradient's norm before clipping."""
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    values = torch.stack([*(loss.detach().float() for loss in losses.values()), norm.float()])
    row = dict(zip([*losses, "gradient_norm"], values.tolist(), strict=True))  # waits for the device, here alone
    if not all(map(math.isfinite, row.values())):
        raise NotFinite(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items()))
    optimizer.step()
    return row


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> Row:
    """Take one step of an optimiser down a loss."""
    loss.backward()
    return update(optimizer, {"loss": loss})


def restore(
    checkpoint: Checkpoint, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Put modules and optimisers back to where a checkpoint has them."""
    tensors, path = checkpoint.tensors, checkpoint.path
    checkpoint.refuse_others(*(f"{name}." for name in (*modules, *optimizers)), "history")
    for name, module in modules.items():
        load_weights(module, tensors, prefix=f"{name}.", path=path)
    for name, optimizer in optimizers.items():
        if any(key.startswith(f"{name}.") for key in tensors):  # one that has not stepped yet has no state
            load_optimizer(optimizer, tensors, prefix=f"{name}.", path=path)


def history_tensor(history: History) -> Tensor:
    """Return a history as the bytes of its JSON (n,): that of a long training has no room in a file's metadata."""
    return torch.frombuffer(bytearray(json.dumps(asdict(history)).encode()), dtype=torch.uint8)


def read_history(checkpoint: Checkpoint) -> History:
    """Return the history in a checkpoint, whose state holds it in one of format 1, of a DDPM the losses alone."""
    state = checkpoint.state
    if "history" in checkpoint.tensors:
        try:
            return History(**json.loads(checkpoint.tensors["history"].numpy().tobytes()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"its history cannot be read ({error}).", path=checkpoint.path) from None
    steps = state["steps"] if "steps" in state else [{"loss": loss} for loss in state.get("losses", [])]
    return History(steps, state.get("epochs", []), state.get("selected", 0), state.get("seconds", 0.0))


def fit_or_load(
    path: Path | None,
    *,
    load: Callable[[], T],
    fit: Callable[[Checkpointer], T],
    save: Callable[[T], None],
    spec: dict[str, Any],  # of the training
    every_seconds: float,
    group: Group = ALONE,
) -> T:
    """Return what is finished at ``path``; else train it, with checkpoints beside it, save it and clear these."""
    checkpointer = Checkpointer(path.parent if path else None, spec=spec, every_seconds=every_seconds, group=group)
    if path and group.on_leader(lambda: has_checkpoint(path)):
        finished = load()
    else:
        finished = fit(checkpointer)
        if path and group.leads:
            save(finished)
    checkpointer.clear()  # also what a kill just after the last save left
    group.wait()
    return finished
