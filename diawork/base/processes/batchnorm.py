"""BatchNorm over a batch of which each process holds a share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diawork.base.processes.group import ALONE, Group


class GroupBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with the statistics of all processes' rows; torch's SyncBatchNorm refuses tensors on a CPU.

    Parameters, buffers and values are those of BatchNorm2d on the whole batch.
    """

    group: Group = ALONE

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (r, C, H, W), of which other processes hold further rows."""
        if not self.training:
            return super().forward(x)
        values, shape = x.to(torch.promote_types(x.dtype, torch.float32)), (1, -1, 1, 1)
        n = self.group.sum(torch.tensor(x.numel() // x.shape[1], dtype=torch.float64, device=x.device))
        mean = self.group.sum(values.sum((0, 2, 3))) / n
        centred = values - mean.view(shape)
        variance = self.group.sum(centred.square().sum((0, 2, 3))) / n
        self._remember(mean.detach(), variance.detach() * n / (n - 1))
        y = centred * (variance + self.eps).rsqrt().view(shape)
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


def share_batchnorm(module: nn.Module, group: Group, device: torch.device) -> None:
    """Let every BatchNorm inside ``module`` see the rows of all processes: on cards by torch's SyncBatchNorm."""
    if group.size == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for inner in module.modules():
        if type(inner) is nn.BatchNorm2d:
            shared: Any = inner
            shared.__class__, shared.group = GroupBatchNorm2d, group  # same parameters, same buffers
