"""Pixels of files that nobody vouches for: bytes to numbers, numbers to float32 in [0, 1], channels first."""

import contextlib
import io
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diawork.base.errors import DataError, DiaworkError, printable
from diawork.data.manifests import Manifest, Split

GIB = 2**30
MOST_FLOAT_PX = 64  # a side; larger images of an archive are kept as bytes
NPY = b"\x93NUMPY"  # how an npy file begins
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


def kept_as_bytes(manifest: Manifest) -> bool:
    """Say whether the images of an archive are large, and stay bytes until a batch is made of them."""
    return manifest.image.size > MOST_FLOAT_PX and manifest.intensity is None


def decoded_bytes(manifest: Manifest, split: Split) -> int:
    """Return the bytes of a split as it is kept: float32 images, or the bytes of larger ones."""
    return (
        (1 if kept_as_bytes(manifest) else 4) * manifest.sizes[split] * manifest.image.size**2 * manifest.image.channels
    )


def memory_limit() -> int:
    """Return the bytes a data set may take: half the memory, at most $DIAWORK_DATA_LIMIT_GB (4)."""
    try:
        most = float(os.environ.get("DIAWORK_DATA_LIMIT_GB", "4")) * GIB
    except ValueError:
        most = 4 * GIB
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not told on every system
        most = min(most, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2)
    return int(most)


def refuse_beyond_memory(needed: int) -> None:
    """Raise ``DataError`` where a data set would take more memory than the limit."""
    if needed > memory_limit():
        what = f"loading needs {needed / GIB:.1f} GiB of memory, the limit is {memory_limit() / GIB:.1f} GiB."
        hint = "If the data are what you expect, raise DIAWORK_DATA_LIMIT_GB (at most half the memory is used)."
        raise DataError(what, hint=hint)
