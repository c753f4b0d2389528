"""One size a set: squash, centre crop or pad to a square, then antialiased bilinear; and one number of channels."""

import numpy as np
import torch
import torch.nn.functional as F

from diawork.base.errors import DataError

TINT = 8 / 255  # channels that differ by no more are one grey picture, saved as colour


def resized(image: np.ndarray, size: int, rule: str) -> np.ndarray:
    """Return (C, size, size) of an image (C, H, W) in [0, 1] by the rule "squash", "crop" or "pad" (with black)."""
    height, width = image.shape[-2:]
    if (height, width) == (size, size):
        return image
    x = torch.from_numpy(np.ascontiguousarray(image))[None]
    if rule == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        x = x[..., top : top + side, left : left + side]
    elif rule == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        x = F.pad(x, (left, side - width - left, top, side - height - top))
    x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return x[0].clamp(0, 1).numpy()


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return (channels, H, W): grey is repeated, a tint below ``TINT`` averaged; colour is never dropped in silence."""
    if len(image) == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=0)
    difference = float((image.max(0) - image.min(0)).max())
    if difference > TINT:
        what = f"is a colour picture (its channels differ by up to {difference:.2f}), and the manifest says grey."
        raise DataError(what, hint="Say image: {channels: 3} in the manifest, or leave the file out with drop.")
    return image.mean(0, keepdims=True)
