"""The strength at which an operator changes healthy images as much as the dissolver does.

Without it a table compares strong with weak, not one kind of change with another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from diawork.base.config import DissolveConfig
from diawork.base.errors import UsageError
from diawork.base.seeding import generator
from diawork.data.images import Images
from diawork.method.operators import Operator, build_operator, operator_class

MOST_IMAGES = 512  # evenly spaced; more would move the mean by nothing visible
CHUNK = 64


def preview(operator: Operator, x: Tensor, *, seed: int = 0) -> Tensor:
    """Return what an operator makes of (B, C, H, W) in training, with draws that depend on ``seed`` alone."""
    rows = torch.arange(len(x))
    return operator(x, image=rows, flip=rows < 0, generator=generator(seed, "preview"))[0]


def mean_squared_change(operator: Operator, x: Tensor) -> float:
    """Return the mean of (x̂ − x)² over images (N, C, H, W), with draws that depend on nothing but the position."""
    parts = [x[i : i + CHUNK] for i in range(0, len(x), CHUNK)]
    errors = [(preview(operator, part, seed=i).cpu() - part).square().flatten(1) for i, part in enumerate(parts)]
    return float(torch.cat(errors).mean())


def matched_operator(name: str, dissolver: Operator, healthy: Images) -> tuple[Operator, dict[str, Any]]:
    """Return an alternative as strong as ``dissolver`` on healthy images, e.g. "gaussian_blur", and what was found."""
    cfg = DissolveConfig.model_validate({"operator": name})
    found = matched(cfg, dissolver, healthy)
    return build_operator(cfg.model_copy(update=found["settings"])), found


def matched(cfg: DissolveConfig, dissolver: Operator, healthy: Images) -> dict[str, Any]:
    """Return the settings of ``cfg.operator`` that match ``dissolver`` on healthy images, and what both change.

    A continuous dial meets the target; of whole numbers the nearest is taken and its own change recorded.
    """
    rows = torch.linspace(0, len(healthy) - 1, min(len(healthy), MOST_IMAGES)).round().long()
    x, kind = healthy[rows], operator_class(cfg)
    target, side = mean_squared_change(dissolver, x), x.shape[-1]

    def change(strength: float) -> float:
        changes = kind.settings(strength, side)
        return mean_squared_change(build_operator(cfg.model_copy(update=changes)), x)

    if kind.dial:
        _, low, high = kind.dial
        weakest, strongest = change(low), change(high)
        if not weakest <= target <= strongest:
            raise UsageError(
                f"{kind.name} changes images by {weakest:.2g} to {strongest:.2g} (mean square); "
                f"the dissolver's {target:.2g} is out of its reach.",
                hint="Choose another dissolve.t_range, or match='none'.",
            )
        found = brentq(lambda value: change(_rounded(value)) - target, low, high, xtol=1e-4 * high)
        strength = _rounded(found)
    elif kind.options:
        strength = _nearest(kind.options[1](side), target, change)
    else:
        raise UsageError(f"operator={kind.name!r} has no strength to match.", hint="Use match='none'.")
    return {"settings": kind.settings(strength, side), "mean_squared_change": change(strength), "wanted": target}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _nearest(options: Any, target: float, change: Callable[[int], float]) -> int:
    """Return the option whose change is nearest in ratio; they grow stronger, so the first above ends the search."""
    distances: dict[int, float] = {}
    for option in options:
        ratio = max(change(option), 1e-12) / max(target, 1e-12)
        distances[option] = abs(math.log(ratio))
        if ratio > 1:
            break
    return min(distances, key=lambda option: distances[option])
