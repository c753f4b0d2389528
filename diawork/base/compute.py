"""Where and how numbers are computed: device, precision, memory format, compilation, threads.

Every module takes a ``Compute``; none of them decides for itself.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from diawork.base.distributed import ALONE, Group
from diawork.base.errors import ResourceError, UsageError, did_you_mean
from diawork.base.files import home_cache

Module = TypeVar("Module", bound=nn.Module)
CPU = torch.device("cpu")
PRECISIONS = ("fp32", "bf16")
# Compiling the frozen UNet of width 64 saved 10-14 % of its time on 2 cores at about 0.3 TFLOP/s, and took 50 s
# (6 s with a warm cache): it pays back, cold, from this much arithmetic. Compiling a training did not pay there:
# 148 s for 3 % of a DDPM's step. CUDA was not measured, so there nothing is compiled unasked.
COMPILE_FROM = {"cpu": 1e14}  # floating-point operations


@dataclass(frozen=True)
class Compute:
    """One choice of device and arithmetic, handed to everything that computes."""

    device: torch.device = CPU
    precision: str = "fp32"  # of matrix products and convolutions; weights stay fp32
    channels_last: bool = False
    compile: bool | None = None  # None: a frozen model, where its work pays for it; True: trainings, too
    group: Group = ALONE  # the processes that share a training
    asked: bool = True  # whether this precision was asked for

    @classmethod
    def auto(
        cls, device: str = "auto", precision: str = "auto", *, compile: bool | None = None, group: Group = ALONE
    ) -> Compute:
        """Choose for this machine: CUDA where there is one, bf16 where the hardware computes in it.

        Channels lie last in bf16 and on CPUs, where a step of CSI took a sixth less in fp32, too. Each process
        of a ``group`` has a card of its own.

        Raises ``ResourceError`` for a device that is not there and ``UsageError`` for fp16, which is
        known to keep a DDPM from converging.
        """
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        chosen = _device(f"cuda:{group.card()}" if name == "cuda" and group.size > 1 else name)
        asked = precision != "auto"
        if not asked:
            precision = "bf16" if has_bf16(chosen) else "fp32"
        if precision not in PRECISIONS:
            hint = "fp16 is known not to converge for a DDPM; use bf16 or fp32." if "16" in precision else ""
            raise UsageError(
                f"precision={precision!r} is not offered.", hint=hint or did_you_mean(precision, PRECISIONS)
            )
        return cls(chosen, precision, precision == "bf16" or chosen.type == "cpu", compile, group, asked)

    def exact(self) -> Compute:
        """Return the choice for work whose results low precision moves: fp32, unless another one was asked for."""
        return self if self.asked else replace(self, precision="fp32")

    def prepare(self, module: Module) -> Module:
        """Move a module to the device and memory format; compile it where asked."""
        module = self._moved(module)
        if self.compile and module._compiled_call_impl is None:
            _lasting_cache()
            module.compile()
        return module

    def _moved(self, module: Module) -> Module:
        module = module.to(self.device)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module

    def freeze(self, module: Module) -> Module:
        """Return a copy for inference alone: on the device, without gradients, weights in the precision.

        Weights that are already low spare every pass the casts that autocast would make.
        """
        frozen = copy.deepcopy(module).eval().requires_grad_(False)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return self._moved(frozen.to(dtype))

    def compile_frozen(self, module: nn.Module, example: tuple[torch.Tensor, ...], *, passes: int) -> float | None:
        """Compile a frozen module for inputs of the shapes of ``example``, where ``passes`` of them pay for it.

        Returns the seconds it took, or None where it was left as it is. The rule looks at the amount of
        arithmetic alone, so that a repeated or resumed run decides alike. Code is cached across processes.
        """
        least = COMPILE_FROM.get(self.device.type)
        compiled = self.compile
        if compiled is None:  # nothing is counted where nothing could be compiled
            compiled = least is not None and has_compiler() and 2 * count_macs(module, *example) * passes >= least
        if not compiled:
            return None
        _lasting_cache()
        start = time.perf_counter()
        module.compile(mode="reduce-overhead" if self.device.type == "cuda" else None)
        with torch.no_grad():
            module(*example)
        return time.perf_counter() - start

    def autocast(self, module: nn.Module | None = None) -> contextlib.AbstractContextManager:
        """Return the context in which forward passes run; a ``module`` of low precision needs none."""
        low = module is not None and next(module.parameters(), torch.empty(0)).dtype == torch.bfloat16
        if self.precision == "fp32" or low:
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
            "compile": "where it pays" if self.compile is None else self.compile,
            "threads": torch.get_num_threads(),
        }


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # which meta, a device without numbers, has not
    except (RuntimeError, AssertionError, ImportError):  # torch was built without this kind of device
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


def has_compiler() -> bool:
    """Say whether ``torch.compile`` finds the C++ compiler that it needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _lasting_cache() -> None:
    """Keep compiled code where the next process finds it, unless the user has chosen a place."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or home_cache())
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / "diawork" / "inductor"))


def count_macs(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Count the multiply-accumulates of one forward pass (convolutions, linear layers, attention), by shapes alone."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: value.to("meta") for name, value in state.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(module, shapes, tuple(x.to("meta") for x in inputs))
    return counter.get_total_flops() // 2


def layer_macs(module: nn.Module, *inputs: torch.Tensor) -> dict[nn.Module, int]:
    """Count the multiply-accumulates of one forward pass, layer by layer (convolutions, linear layers)."""
    counts: dict[nn.Module, int] = {}

    def note(layer: nn.Conv2d | nn.Linear, _: Any, output: torch.Tensor) -> None:
        counts[layer] = counts.get(layer, 0) + output.numel() * layer.weight[0].numel()

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return counts
