"""One image from a file that nobody vouches for: PNG, TIFF or npy, with an explicit intensity window.

8-bit values are divided by 255; anything finer needs the stored values that mean black and white. What
is outside the window is cut and counted in ``notes``. Three equal channels are grey; colour stays colour
until a grey model averages it. The content decides what a file is, not its name.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diawork.base.errors import DataError, UsageError, printable

MOST_BYTES = 256 * 2**20
MOST_PIXELS = 64_000_000
_GREY = {"1", "L", "I;16", "I;16B", "I;16L", "I", "F"}  # Pillow's modes


@dataclass(frozen=True)
class Picture:
    """An image float32 (C, H, W) in [0, 1], C 1 or 3, and what a reader of it should know."""

    image: np.ndarray
    name: str = ""
    notes: list[str] = field(default_factory=list)


def read_image(source: Path | str | bytes, *, name: str = "", window: tuple[float, float] | None = None) -> Picture:
    """Return the image in a file, or in the bytes of one; ``window`` is the stored values of black and white.

    Raises ``DataError``, one sentence, for what is not one readable image.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), name or "image"
    else:
        data, name = _content(Path(source)), name or Path(source).name
    if window is not None and not (all(map(math.isfinite, window)) and window[0] < window[1]):
        raise UsageError(f"window={list(window)} must be [low, high] with low below high.")
    stored = _npy(data, name) if data.startswith(b"\x93NUMPY") else _picture(data, name)
    notes: list[str] = []
    image = _to_unit(_channels_first(stored, name), window, name, notes)
    if len(image) == 3 and (image == image[:1]).all():
        image = image[:1]
    return Picture(np.ascontiguousarray(image, np.float32), name, notes)


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise DataError("this is a folder; wanted one PNG, TIFF or npy file.", path=path)
        if size > MOST_BYTES:
            raise DataError(f"{size:,} bytes are too many for one image (at most {MOST_BYTES:,}).", path=path)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({getattr(error, 'strerror', None) or error}).", path=path) from None


def _picture(data: bytes, name: str) -> np.ndarray:
    """Decode PNG or TIFF as (H, W) or (H, W, 3), in the type of the file."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "TIFF")) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError(
                    f"{picture.width}×{picture.height} px are too many (at most {MOST_PIXELS:,}).", path=name
                )
            if getattr(picture, "n_frames", 1) > 1:
                raise DataError(f"holds {picture.n_frames} pictures; wanted a file with one.", path=name)
            return _plain(picture, name)
    except DataError:
        raise
    except Exception as error:  # Pillow raises a dozen types on damaged input; all mean the same
        head = printable(data[:12].decode("latin-1"))
        if data[:8] == b"\x89PNG\r\n\x1a\n" or data[:4] in (b"II*\0", b"MM\0*"):
            reason = (
                "its header cannot be read" if isinstance(error, UnidentifiedImageError) else printable(error)[:100]
            )
            raise DataError(f"this image is damaged ({reason}).", path=name) from None
        raise DataError(f"this is no PNG, TIFF or npy file: it begins with {head!r}.", path=name) from None


def _plain(picture: Image.Image, name: str) -> np.ndarray:
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode in ("LA", "RGBA"):
        if picture.getchannel("A").getextrema()[0] < 255:
            raise DataError("this image is partly transparent.", path=name, hint="Save it without an alpha channel.")
        picture = picture.convert(picture.mode.removesuffix("A"))
    if picture.mode not in _GREY | {"RGB"}:
        raise DataError(f"its colours are {picture.mode}.", path=name, hint="Save it as grey or RGB.")
    values = np.asarray(picture)
    return values.astype(np.uint8) * 255 if values.dtype == bool else values


def _npy(data: bytes, name: str) -> np.ndarray:
    """Parse an npy file; nothing is unpickled, and the header must account for every byte."""
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(buffer)
    except Exception as error:  # damaged headers raise many types
        raise DataError(f"this npy file is damaged ({printable(error)[:100]}).", path=name) from None
    if dtype.hasobject or dtype.kind not in "buif":
        raise DataError(f"holds {dtype}: only plain numbers are read, nothing is unpickled.", path=name)
    if math.prod(shape) * dtype.itemsize != len(data) - buffer.tell():
        raise DataError(f"declares the shape {shape} of {dtype}, which its bytes do not hold.", path=name)
    values = np.frombuffer(data, dtype, offset=buffer.tell()).reshape(shape, order="F" if fortran else "C")
    return values.astype(np.uint8) * 255 if dtype.kind == "b" else values


def _channels_first(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim == 2:
        values = values[None]
    elif values.ndim == 3 and values.shape[-1] in (1, 3):
        values = np.moveaxis(values, -1, 0)
    if values.ndim != 3 or len(values) not in (1, 3) or min(values.shape[1:]) < 4:
        raise DataError(
            f"has the shape {values.shape}; wanted one image, (H, W) or (H, W, 3), 4 px or more.", path=name
        )
    return values


def _to_unit(values: np.ndarray, window: tuple[float, float] | None, name: str, notes: list[str]) -> np.ndarray:
    if window is None and values.dtype == np.uint8:
        return values / np.float32(255)
    if not np.isfinite(values).all():
        raise DataError("holds NaN or infinite values.", path=name)
    if window is None:
        raise DataError(f"is {values.dtype}, {values.min():g} … {values.max():g}: it needs an intensity window.",
                        path=name, hint="Give the stored values of black and white, e.g. 0 and 4095.")  # fmt: skip
    unit = (values.astype(np.float64) - window[0]) / (window[1] - window[0])
    outside = int(((unit < 0) | (unit > 1)).sum())
    if outside:
        notes.append(f"{outside:,} of {unit.size:,} values of {name} lie outside the window and were cut to it.")
    return unit.clip(0, 1)
