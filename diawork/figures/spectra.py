"""What dissolving takes away, as numbers: the energy of the change, and the power at every scale."""

from __future__ import annotations

import numpy as np

from diawork.base.errors import DataError


def energy_removed(x: np.ndarray, stack: np.ndarray) -> np.ndarray:
    """Return (T,): mean squared change of ``x`` ([C,] H, W) in ``stack`` (T, [C,] H, W), over its variance."""
    change = np.square(stack - x).reshape(len(stack), -1).mean(1)
    return change / max(float(np.var(x)), 1e-8)


def radial_power(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies (R,) in cycles per px up to 0.5, and the mean power (…, R) of images (…, H, W) at each.

    A ring gathers all directions at one distance from the constant part, which is left out.
    """
    images = np.asarray(images, np.float64)
    height, width = images.shape[-2:]
    side = min(height, width)
    if side < 4:
        raise DataError(f"an image of {height}×{width} px has no spectrum to speak of; wanted 4 px or more.")
    distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) * side
    ring = np.rint(distance).astype(int).ravel()
    power = np.square(np.abs(np.fft.fft2(images))).reshape(-1, ring.size) / ring.size
    members = np.arange(1, side // 2 + 1)[:, None] == ring
    mean = power @ members.T / members.sum(1)
    return np.arange(1, side // 2 + 1) / side, mean.reshape(*images.shape[:-2], -1)
