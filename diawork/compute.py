"""Where and how numbers are computed: device, precision, memory format, compilation, threads.

Every module takes a ``Compute``; none of them decides for itself.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diawork.errors import ResourceError, UsageError, did_you_mean

CPU = torch.device("cpu")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Compute:
    """One choice of device and arithmetic, handed to everything that computes."""

    device: torch.device = CPU
    precision: str = "fp32"  # of matrix products and convolutions; weights stay fp32
    channels_last: bool = False
    compile: bool = False

    @classmethod
    def auto(cls, device: str = "auto", precision: str = "auto", *, compile: bool = False) -> Compute:
        """Choose for this machine: CUDA where there is one, bf16 where the hardware computes in it.

        Raises ``ResourceError`` for a device that is not there and ``UsageError`` for fp16, which is
        known to keep a DDPM from converging.
        """
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        chosen = _device(name)
        if precision == "auto":
            precision = "bf16" if has_bf16(chosen) else "fp32"
        if precision not in PRECISIONS:
            hint = "fp16 is known not to converge for a DDPM; use bf16 or fp32." if "16" in precision else ""
            raise UsageError(
                f"precision={precision!r} is not offered.", hint=hint or did_you_mean(precision, PRECISIONS)
            )
        return cls(chosen, precision, precision == "bf16", compile)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module to the device and memory format; compile it where asked."""
        if self.channels_last:
            module = module.to(self.device, memory_format=torch.channels_last)
        else:
            module = module.to(self.device)
        if self.compile:
            module.compile()
        return module

    def freeze(self, module: nn.Module) -> nn.Module:
        """Return a copy for inference alone: on the device, without gradients, weights in the precision.

        Weights that are already low spare every pass the casts that autocast would make.
        """
        frozen = copy.deepcopy(module).eval().requires_grad_(False)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return self.prepare(frozen.to(dtype))

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which forward passes run."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def to(self, x: torch.Tensor) -> torch.Tensor:
        """Move a tensor to the device; a batch of images also to the memory format."""
        if self.channels_last and x.ndim == 4:
            return x.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        return x.to(self.device, non_blocking=True)

    def as_dict(self) -> dict[str, Any]:
        """Return what a run records about its arithmetic."""
        return {
            "device": str(self.device),
            "precision": self.precision,
            "channels_last": self.channels_last,
            "compile": self.compile,
            "threads": torch.get_num_threads(),
        }


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ResourceError(
            f"device {name!r} is not available on this machine.", hint="Use device='cpu' or 'auto'."
        ) from None
    return device


def has_bf16(device: torch.device) -> bool:
    """Say whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capability = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and bool(capability and capability())


def count_macs(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Count the multiply-accumulates of one forward pass (convolutions, linear layers, attention)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops() // 2
