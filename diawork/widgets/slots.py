"""Whatever may stand in the dissolver's slot, under one face for the explorer: (images, steps) → stack.

An occupant is called with x float32 (B, C, H, W) in [0, 1] and T steps and returns (T, B, C, H, W), in
batched passes; ``progress`` is called with the share done. One that has no step returns the same T times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from diawork.base.compute import Compute
from diawork.base.config import DissolveConfig
from diawork.base.errors import UsageError
from diawork.method.ddpm import DDPM, load_ddpm
from diawork.method.dissolve import Dissolver, build_operator, preview, to_model

Occupant = Callable[..., np.ndarray]
PASS = 64  # rows of one batched pass
RANGES = {"normalized": "[-1, 1] as trained", "released": "[0, 1] as released"}


def dissolving_slots(
    ddpm: DDPM,
    cfg: DissolveConfig | None = None,
    *,
    others: Mapping[str, DDPM] | None = None,
    compute: Compute | None = None,
) -> dict[str, Occupant]:
    """Return name → occupant: this model, its other weights and range, other models, and the alternatives."""
    cfg = cfg or DissolveConfig()
    other = {"weights": "raw" if cfg.weights == "ema" else "ema"}
    turned = {"range_mode": "released" if cfg.range_mode == "normalized" else "normalized"}
    slots = {
        "DDPM": _stepped(ddpm, cfg, compute),
        f"DDPM, {'raw' if other['weights'] == 'raw' else 'EMA'} weights": _stepped(ddpm, _with(cfg, other), compute),
        f"DDPM, range {RANGES[turned['range_mode']]}": _stepped(ddpm, _with(cfg, turned), compute),
    }
    for name, model in (others or {}).items():
        slots[name] = _stepped(model, cfg, compute)
    alternatives = {
        "gaussian_blur": f"Gaussian blur, {cfg.kernel_size} px", "median_blur": f"median, {cfg.kernel_size} px",
        "resize": f"resize to {cfg.resize_to} px", "noise": f"noise, sd {cfg.noise_sd:g}",
    }  # fmt: skip
    return slots | {name: _stepless(_with(cfg, {"operator": word})) for word, name in alternatives.items()}


def checkpoint_slot(
    folder: Path | str, like: DDPM, cfg: DissolveConfig | None = None, *, compute: Compute | None = None
) -> Occupant:
    """Return the occupant made of a saved model; one that sees another size or fewer steps than ``like`` is refused."""
    ddpm = load_ddpm(folder)
    for what, unit in (("image_size", "px"), ("timesteps", "steps")):
        found, wanted = getattr(ddpm.config, what), getattr(like.config, what)
        if found != wanted:
            raise UsageError(f"this checkpoint has {what}={found}; the explorer's model has {wanted} {unit}.",
                             path=folder, hint="Choose one trained at the same size and number of steps.")  # fmt: skip
    return _stepped(ddpm, cfg or DissolveConfig(), compute)


def fit_to(size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what brings an image (C, H, W) to (C, size, size): black beside what is not square, then resized."""

    def fit(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[-2:]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        square = F.pad(torch.from_numpy(image)[None], (left, side - width - left, top, side - height - top))
        return to_model(square, size, "resize", antialias=True)[0].clamp(0, 1).numpy()

    return fit


def _with(cfg: DissolveConfig, changes: dict[str, Any]) -> DissolveConfig:
    return cfg.model_copy(update=changes)


def _stepped(ddpm: DDPM, cfg: DissolveConfig, compute: Compute | None) -> Occupant:
    """Return a model as an occupant; it is moved to its device when first asked."""
    made: list[Dissolver] = []

    def occupant(x: np.ndarray, ts: Sequence[int], progress: Callable[[float], None] | None = None) -> np.ndarray:
        if not made:
            made.append(Dissolver(ddpm.weights(cfg.weights), cfg, compute=compute))
        images, per = torch.from_numpy(np.ascontiguousarray(x, np.float32)), max(1, PASS // len(x))
        parts = []
        for start in range(0, len(ts), per):
            parts.append(made[0].stack(images, ts[start : start + per], batch=PASS).float().numpy())
            if progress:
                progress(min(1.0, (start + per) / len(ts)))
        return np.concatenate(parts)

    return occupant


def _stepless(cfg: DissolveConfig) -> Occupant:
    operator = build_operator(cfg)

    def occupant(x: np.ndarray, ts: Sequence[int], progress: Callable[[float], None] | None = None) -> np.ndarray:
        once = preview(operator, torch.from_numpy(np.ascontiguousarray(x, np.float32))).numpy()
        return np.broadcast_to(once, (len(ts), *once.shape))

    return occupant
