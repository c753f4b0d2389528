"""From the values in a file to float32 in [0, 1], channels first, at one size and with one number of channels."""

import contextlib
import io
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from diawork.base.errors import DataError, DiaworkError, printable

NPY = b"\x93NUMPY"  # how an npy file begins
TINT = 8 / 255  # channels that differ by no more are one grey picture, saved as colour
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Window = tuple[float, float]  # the stored values of black and white


class Stored(NamedTuple):
    """The values (H, W) or (H, W, C) of a file as they are, and whether the lowest of them is white."""

    values: np.ndarray
    inverted: bool = False


@contextlib.contextmanager
def decoding(path: object, what: str, *, field: str = "", hint: str = "") -> Iterator[None]:
    """Turn whatever goes wrong inside the block into one ``DataError`` about ``path``; ``what`` says it in words."""
    try:
        yield
    except DiaworkError as error:
        error.path, error.field = error.path or path, error.field or field
        raise
    except Exception as error:  # decoders raise a dozen types on damaged input; all mean the same
        reason = str(getattr(error, "strerror", None) or error)[:120] or type(error).__name__
        raise DataError(f"{what} ({printable(reason)}).", path=path, field=field, hint=hint) from None


def parse_npy(data: bytes) -> np.ndarray:
    """Return the array of an npy file; nothing is unpickled, and the header must account for every byte."""
    buffer = io.BytesIO(data)
    version = np.lib.format.read_magic(buffer)
    if version not in _HEADERS:
        raise ValueError(f"unknown npy version {version}")
    shape, fortran, dtype = _HEADERS[version](buffer)
    if dtype.hasobject or not dtype.itemsize:
        raise DataError(f"holds {dtype}: only plain numbers are read, nothing is unpickled.")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - buffer.tell():
        raise ValueError(f"declares the shape {shape} of {dtype}, which its bytes do not hold")
    return np.frombuffer(data, dtype, offset=buffer.tell()).reshape(shape, order="F" if fortran else "C")


def to_unit(images: np.ndarray, window: Window | None) -> tuple[np.ndarray, int]:
    """Return images (N, …) as float32 in [0, 1] by the window, 8-bit ones by 255, and how many values were cut."""
    if images.dtype.kind not in "uif":
        raise DataError(f"is {images.dtype}; wanted uint8, or numbers with an intensity window.")
    if window is None and images.dtype == np.uint8:
        return np.divide(images, 255, dtype=np.float32), 0
    finite = np.isfinite(images).reshape(len(images), -1).all(1)
    if not finite.all():
        raise DataError(f"image {int(finite.argmin())} holds NaN or infinite values.")
    if window is None:
        hint = "Give the stored values of black and white, e.g. 0 and 4095; in a manifest, 'intensity: [0, 4095]'."
        what = f"is {images.dtype}, {images.min():g} … {images.max():g}: it needs an intensity window."
        raise DataError(what, hint=hint)
    unit = (images.astype(np.float64) - window[0]) / (window[1] - window[0])
    cut = int(((unit < 0) | (unit > 1)).sum())
    return unit.clip(0, 1).astype(np.float32), cut


def channels_first(images: np.ndarray) -> np.ndarray:
    """Return images (N, C, H, W) from (N, H, W) or from (N, H, W, C) with C 1 or 3; others stay as they are."""
    if images.ndim == 3:
        return images[:, None]
    return np.moveaxis(images, -1, 1) if images.ndim == 4 and images.shape[-1] in (1, 3) else images


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
    """Return (channels, H, W): grey is repeated, a tint below ``TINT`` averaged; real colour is a ``DataError``."""
    if len(image) == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=0)
    difference = float((image.max(0) - image.min(0)).max())
    if difference > TINT:
        what = f"is a colour picture (its channels differ by up to {difference:.2f}), and the set is grey."
        raise DataError(what, hint="Say image: {channels: 3} in the manifest, or leave the file out with drop.")
    return image.mean(0, keepdims=True)
