"""The strength at which an alternative changes healthy images as much as the dissolver does.

Without it a table compares strong with weak, not one kind of change with another.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from diawork.base.config import DissolveConfig
from diawork.base.errors import UsageError
from diawork.data.images import Images
from diawork.method.dissolve import Dissolve, build_operator, preview

MOST_IMAGES = 512  # evenly spaced; more would move the mean by nothing visible
CHUNK = 64
DIALS = {"gaussian_blur": ("sigma", 0.2, 8.0), "noise": ("noise_sd", 0.001, 1.0)}  # continuous, lowest and highest


def mean_squared_change(operator: Dissolve, x: Tensor) -> float:
    """Return the mean of (x̂ − x)² over images (N, C, H, W), with draws that depend on nothing but the position."""
    parts = [x[i : i + CHUNK] for i in range(0, len(x), CHUNK)]
    errors = [(preview(operator, part, seed=i).cpu() - part).square().flatten(1) for i, part in enumerate(parts)]
    return float(torch.cat(errors).mean())


def matched(cfg: DissolveConfig, dissolver: Dissolve, healthy: Images) -> dict[str, Any]:
    """Return the settings of ``cfg.operator`` that match ``dissolver`` on healthy images, and what both change.

    Blur (its window following its sigma) and noise meet the target; a median's window and a size to
    shrink to are whole numbers, so the nearest is taken and its own change recorded.
    """
    rows = torch.linspace(0, len(healthy) - 1, min(len(healthy), MOST_IMAGES)).round().long()
    x = healthy[rows]
    target = mean_squared_change(dissolver, x)

    def change(strength: dict[str, Any]) -> float:
        return mean_squared_change(build_operator(cfg.model_copy(update=strength)), x)

    if cfg.operator in DIALS:
        strength = _dialled(cfg.operator, target, change, size=x.shape[-1])
    else:
        strength = _nearest(_options(cfg.operator, x.shape[-1]), target, change)
    return {"settings": strength, "mean_squared_change": change(strength), "wanted": target}


def _dialled(operator: str, target: float, change: Any, *, size: int) -> dict[str, Any]:
    name, low, high = DIALS[operator]

    def at(value: float) -> dict[str, Any]:
        value = float(f"{value:.4g}")
        window = 2 * min(math.ceil(3 * value), (size - 1) // 2) + 1
        return {name: value, "kernel_size": max(3, window)} if name == "sigma" else {name: value}

    weakest, strongest = change(at(low)), change(at(high))
    if not weakest <= target <= strongest:
        raise UsageError(
            f"{operator} changes images by {weakest:.2g} to {strongest:.2g} (mean square); "
            f"the dissolver's {target:.2g} is out of its reach.",
            hint="Choose another dissolve.t_range, or match='none'.",
        )
    return at(brentq(lambda value: change(at(value)) - target, low, high, xtol=1e-4 * high))


def _nearest(options: list[dict[str, Any]], target: float, change: Any) -> dict[str, Any]:
    """Return the option whose change is nearest in ratio; options grow stronger, so the first above ends the search."""
    distances: list[float] = []
    for option in options:
        ratio = max(change(option), 1e-12) / max(target, 1e-12)
        distances.append(abs(math.log(ratio)))
        if ratio > 1:
            break
    return options[distances.index(min(distances))]


def _options(operator: str, size: int) -> list[dict[str, Any]]:
    """Return what a setting in whole numbers may be, the weakest first."""
    if operator == "median_blur":
        return [{"kernel_size": k} for k in range(3, size if size % 2 else size - 1, 2)]
    if operator == "resize":
        return [{"resize_to": s} for s in reversed(range(1, size))]
    raise UsageError(f"operator={operator!r} has no strength to match.", hint="Use match='none'.")
