"""From the values in a file to float32 in [0, 1], channels first, at one size and with one number of channels."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from diawork.base.errors import DataError, DiaworkError, printable
from diawork.data.manifests import WINDOWS, Window

NPY = b"\x93NUMPY"  # how an npy file begins
IN_COLOUR = "in colour, brought to grey"
CHUNK = 2**20  # values brought to light at a time
TINT = 8 / 255  # channels that differ by no more are one grey picture, saved as colour
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class PassingFault(DataError):
    """What keeps a file from being read and is no fault of its content: a package, a permission, memory."""


class Stored(NamedTuple):
    """The values (H, W) or (H, W, C) of a file as they are, and what is known of them."""

    values: np.ndarray
    inverted: bool = False  # the lowest of them is white
    hounsfield: bool = False  # they are those of a CT
    note: str = ""  # what was done to the file's picture, in words that hold for others, too


class Cut(NamedTuple):
    """How many values lie outside an intensity window, of how many, and the range of all."""

    n: int = 0
    of: int = 0
    low: float = 0.0
    high: float = 0.0

    def plus(self, other: Cut) -> Cut:
        """Return what both say together."""
        if not (self.of and other.of):
            return self if self.of else other
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Cut(self.n + other.n, self.of + other.of, low, high)

    def words(self, window: Window, *, most: float = 0.0) -> str:
        """Say what share was cut to the window; where it is above ``most``, refuse with the range that holds all."""
        share = self.n / max(self.of, 1)
        what = f"{self.n:,} of {self.of:,} values ({share:.2%}) lie outside the intensity window {list(window)}"
        if most and share > most and window not in WINDOWS.values():
            every = f"intensity: [{self.low:g}, {self.high:g}]"
            named = (
                f"of CT name a window ({', '.join(WINDOWS)}); to cut them on purpose: cut: {share * 1.01 + 0.001:.3f}"
            )
            raise DataError(f"{what}; at most {most:.1%} may.", hint=f"To hold them all: {every}; {named}.")
        return f"{what} and were cut to it."


@dataclass(frozen=True)
class Picture:
    """An image float32 (C, H, W) in [0, 1], C 1 or 3, and what a reader of it should know."""

    image: np.ndarray
    name: str = ""
    cut: Cut = field(default_factory=Cut)
    note: str = ""
    hounsfield: bool = False
    window: Window | None = None

    @property
    def notes(self) -> list[str]:
        """Say what was cut, and what was done to the file's picture."""
        cut = self.cut.words(self.window) if self.window and self.cut.n else ""
        return [f"{self.name}: {text}" for text in (cut, self.note) if text]


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
        passing = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
        kind = PassingFault if passing else DataError
        raise kind(f"{what} ({printable(reason)}).", path=path, field=field, hint=hint) from None


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


def to_unit(images: np.ndarray, window: Window | None) -> tuple[np.ndarray, Cut]:
    """Return images (N, …) as float32 in [0, 1] by the window, 8-bit ones by 255, and what was cut."""
    if images.dtype.kind not in "uif":
        raise DataError(f"is {images.dtype}; wanted uint8, or numbers with an intensity window.")
    if window is None and images.dtype == np.uint8:
        return np.divide(images, 255, dtype=np.float32), Cut(0, images.size)
    if not images.size:
        return images.astype(np.float32), Cut()
    finite = np.isfinite(images).reshape(len(images), -1).all(1)
    if not finite.all():
        raise DataError(f"image {int(finite.argmin())} holds NaN or infinite values.")
    if window is None:
        hint = "Give the stored values of black and white, e.g. 0 and 4095; in a manifest, 'intensity: [0, 4095]'."
        what = f"is {images.dtype}, {images.min():g} … {images.max():g}: it needs an intensity window."
        raise DataError(what, hint=hint)
    flat, unit, cut = images.reshape(-1), np.empty(images.shape, np.float32), 0
    for start in range(0, flat.size, CHUNK):  # in float64, without holding all of it
        some = flat[start : start + CHUNK]
        cut += int(((some < window[0]) | (some > window[1])).sum())
        share = (some.astype(np.float64) - window[0]) / (window[1] - window[0])
        unit.reshape(-1)[start : start + CHUNK] = share.clip(0, 1)
    return unit, Cut(cut, flat.size, float(flat.min()), float(flat.max()))


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


def is_colour(image: np.ndarray) -> bool:
    """Say whether the channels of an image (C, H, W) differ by more than ``TINT``."""
    return bool((image.max(0) - image.min(0)).max() > TINT)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return (channels, H, W): grey is repeated, colour averaged."""
    if len(image) == channels:
        return image
    return np.repeat(image, 3, axis=0) if channels == 3 else image.mean(0, keepdims=True)
