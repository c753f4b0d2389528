"""One image from a PNG, TIFF or npy file; its content decides which it is, not its name."""

import io
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import PREFIXES as TIFF

from diawork.base.errors import DataError, UsageError, printable
from diawork.data.readers.pixels import NPY, Window, channels_first, decoding, parse_npy, to_unit

MOST_BYTES = 256 * 2**20
MOST_PIXELS = 64_000_000
PNG = b"\x89PNG\r\n\x1a\n"
_GREY = {"1", "L", "I;16", "I;16B", "I;16L", "I", "F"}  # Pillow's modes


@dataclass(frozen=True)
class Picture:
    """An image float32 (C, H, W) in [0, 1], C 1 or 3, and what a reader of it should know."""

    image: np.ndarray
    name: str = ""
    notes: list[str] = field(default_factory=list)


def read_image(source: Path | str | bytes, *, name: str = "", window: Window | None = None) -> Picture:
    """Return the image in a file, or in the bytes of one; three equal channels are grey."""
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), name or "image"
    else:
        data, name = _read_bytes(Path(source)), name or Path(source).name
    if window is not None and not (all(map(math.isfinite, window)) and window[0] < window[1]):
        raise UsageError(f"window={list(window)} must be [low, high] with low below high.")
    with decoding(name, "this npy file is damaged" if data.startswith(NPY) else "this image is damaged"):
        stored = _decode(data)
        images = channels_first(stored[None])
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 4:
            raise DataError(f"has the shape {stored.shape}; wanted one image, (H, W) or (H, W, 3), 4 px or more.")
        (image,), cut = to_unit(images, window)
    if (image == image[:1]).all():
        image = image[:1]
    share = f"{cut:,} of {stored.size:,} values of {name}"
    notes = [f"{share} lie outside the window and were cut to it."] if cut else []
    return Picture(np.ascontiguousarray(image), name, notes)


def _read_bytes(path: Path) -> bytes:
    with decoding(path, "cannot be read"):
        size = path.stat().st_size
        if path.is_dir():
            raise DataError("this is a folder; wanted one PNG, TIFF or npy file.")
        if size > MOST_BYTES:
            raise DataError(f"{size:,} bytes are too many for one image (at most {MOST_BYTES:,}).")
        return path.read_bytes()


def _decode(data: bytes) -> np.ndarray:
    """Return an image (H, W) or (H, W, C) in the type of the file; bits become 0 and 255."""
    if data.startswith(NPY):
        values = parse_npy(data)
    elif data.startswith((PNG, *TIFF)):
        values = _picture(data)
    else:
        start = printable(data[:12].decode("latin-1"))
        raise DataError(f"this is no PNG, TIFF or npy file: it begins with {start!r}.")
    return values.astype(np.uint8) * 255 if values.dtype == bool else values


def _picture(data: bytes) -> np.ndarray:
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "TIFF"))
    except UnidentifiedImageError:
        raise ValueError("its header cannot be read") from None
    with picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise DataError(f"{picture.width}×{picture.height} px are too many (at most {MOST_PIXELS:,}).")
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise DataError(f"holds {frames} pictures; wanted a file with one.")
        return _plain(picture)


def _plain(picture: Image.Image) -> np.ndarray:
    """Return the values of a grey or RGB picture; a palette is looked up, an opaque alpha channel left out."""
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode in ("LA", "RGBA"):
        if np.asarray(picture.getchannel("A")).min() < 255:
            raise DataError("this image is partly transparent.", hint="Save it without an alpha channel.")
        picture = picture.convert(picture.mode.removesuffix("A"))
    if picture.mode not in _GREY | {"RGB"}:
        raise DataError(f"its colours are {picture.mode}.", hint="Save it as grey or RGB.")
    return np.asarray(picture)
