"""What one of several processes knows of the others: its share of a batch, sums over all, whether to stop.

``ALONE`` is a group of one, for which nothing is sent or waited for: a loop reads the same for one process and many.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diawork.base.errors import Interrupted

PATIENCE = timedelta(days=7)  # one may wait for another's scoring; who has died is noticed by who started them
_STOPPED = {"stopped": True}


class Group:
    """Process ``rank`` of ``size`` that train one model. The first of them leads: it alone writes files.

    Every process computes the loss of the whole batch from its own and the others' features, so that the gradients
    of all, summed, are those of one process.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def join(cls, *, cuda: bool) -> Group:
        """Join the processes that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT name; torchrun sets them, too."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return ALONE
        if cuda:
            torch.cuda.set_device(cls.card())
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @staticmethod
    def card() -> int:
        """Return the number of this process's card on its machine."""
        return int(os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or 0)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows bars."""
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """Return which of the ``n`` images of a batch are this process's; shares differ by one at most."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def gathered(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return tensors (r, …) with the rows of all processes (Σr, …); gradients reach a process's own rows."""
        if self.size == 1:
            return tensors
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(tensors[0])]))
        return tuple(self._gather(own, [int(count) for count in counts]) for own in tensors)

    def _gather(self, own: Tensor, counts: list[int]) -> Tensor:
        padded = own.new_zeros(max(counts), *own.shape[1:])  # all must send equally much
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        parts = [part[:count] for part, count in zip(parts, counts, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; one that a process lacks counts as zero."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in trained])
        dist.all_reduce(flat)
        for p, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = torch.empty_like(p).copy_(part.view(p.shape))  # in the parameter's memory format

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of x over the processes; its gradient is the sum of their gradients."""
        return x if self.size == 1 else _Sum.apply(x)

    def any(self, flag: bool) -> bool:
        """Say whether the flag is up in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def on_leader(self, work: Callable[[], Any]) -> Any:
        """Do ``work`` in the leading process alone; return its result, plain values, in all. If stopped, all are."""
        if self.size == 1:
            return work()
        if not self.leads:
            if (received := self._broadcast()) == _STOPPED:
                raise Interrupted("Stopped on request.", hint="The same command goes on.")
            return received["result"]
        try:
            result = work()
        except Interrupted:
            self._broadcast(_STOPPED)
            raise
        self._broadcast({"result": result})
        return result

    @staticmethod
    def _broadcast(value: Any = None) -> Any:
        """Send the leader's value to all as JSON, and return what it sent."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(text)])
        dist.broadcast(length, 0)
        text = text if len(text) == length else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))

    @contextmanager
    def membership(self) -> Iterator[Group]:
        """Leave the group at the end of the block; on an error the process ends, and the others notice."""
        yield self
        if self.size > 1:
            dist.destroy_process_group()


ALONE = Group()


class _Sum(torch.autograd.Function):
    """The sum over all processes, of values on the way forward and of gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
