"""One image from a PNG, JPEG, TIFF, npy, DICOM or NIfTI file; its content decides which it is, not its name.

The values of a file become light in one place: by 255 where they have 8 bits, by a window where they are finer,
turned where white is the lowest, upright where the file says how it was held.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import PREFIXES as TIFF

from diawork.base.errors import CheckpointError, DataError, UsageError, printable
from diawork.data.manifests import FILE_KINDS, Manifest
from diawork.data.preprocess import (
    NPY,
    Stored,
    Window,
    channels_first,
    decoding,
    parse_npy,
    resized,
    to_unit,
    with_channels,
)
from diawork.data.readers import medical
from diawork.data.store import FULL

MOST_BYTES = 256 * 2**20
MOST_PIXELS = 64_000_000
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
KINDS = "PNG, JPEG, TIFF, npy, DICOM or NIfTI"
ORIENTATION, BITS, PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and TIFF
MIN_IS_WHITE = 0
_GREY = {"1", "L", "I;16", "I;16B", "I;16L", "I", "F"}  # Pillow's modes


@dataclass(frozen=True)
class Picture:
    """An image float32 (C, H, W) in [0, 1], C 1 or 3, and what a reader of it should know."""

    image: np.ndarray
    name: str = ""
    notes: list[str] = field(default_factory=list)


class Preprocessing(NamedTuple):
    """How an image file becomes what a detector sees; a run records it."""

    size: int  # px, square
    channels: int
    resize: str  # rule
    intensity: Window | None = None
    frame: medical.Frame = None
    levels: int = 0  # the whole number of white in a store of decoded files; 0: not rounded

    @classmethod
    def of(cls, manifest: Manifest) -> Preprocessing:
        """Return how the images of a manifest are opened."""
        levels = FULL["uint16" if manifest.intensity else "uint8"] if manifest.kind in FILE_KINDS else 0
        image = manifest.image
        return cls(image.size, image.channels, manifest.resize, manifest.intensity, manifest.frame, levels)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Preprocessing:
        """Undo ``_asdict``, after a journey through JSON."""
        try:
            window = record["intensity"]
            return cls(**record | {"intensity": tuple(window) if window else None})
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"says in no known way how its images were opened ({error}).") from None

    def read(self, path: Path | str) -> np.ndarray:
        """Return the image float32 (C, H, W) in a file as the run would have seen it; else ``DataError``."""
        image = read_image(Path(path), window=self.intensity, frame=self.frame).image
        unit = with_channels(resized(image, self.size, self.resize), self.channels)
        if not self.levels:
            return unit
        return np.divide(np.rint(unit.astype(np.float64) * self.levels), self.levels, dtype=np.float32)


def read_image(
    source: Path | str | bytes, *, name: str = "", window: Window | None = None, frame: medical.Frame = None
) -> Picture:
    """Return the image in a file, or in the bytes of one; three equal channels are grey.

    ``frame`` chooses one of several pictures: its number, or "middle". What is no image is a ``DataError``.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), name or "image"
    else:
        data, name = _read_bytes(Path(source)), name or Path(source).name
    if window is not None and not (all(map(math.isfinite, window)) and window[0] < window[1]):
        raise UsageError(f"window={list(window)} must be [low, high] with low below high.")
    with decoding(name, "this npy file is damaged" if data.startswith(NPY) else "this image is damaged"):
        stored = _decode(data, frame)
        images = channels_first(stored.values[None])
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 4:
            shape = stored.values.shape
            raise DataError(f"has the shape {shape}; wanted one image, (H, W) or (H, W, 3), 4 px or more.")
        (image,), cut = to_unit(images, window)
        image = 1 - image if stored.inverted else image
    if (image == image[:1]).all():
        image = image[:1]
    share = f"{cut:,} of {stored.values.size:,} values of {name}"
    notes = [f"{share} lie outside the window and were cut to it."] if cut else []
    return Picture(np.ascontiguousarray(image), name, notes)


def read_mask(path: Path, frame: medical.Frame = None) -> np.ndarray:
    """Return float32 (1, H, W) of a mask's file: 1 where a value lies above half of the highest, else 0."""
    with decoding(path, "this mask is damaged"):
        values = channels_first(_decode(_read_bytes(path), frame).values[None])[0].max(0)
        return (values > values.max() / 2)[None].astype(np.float32)


def write_pngs(images: Iterable[np.ndarray], folder: Path | str) -> Path:
    """Write images (C, H, W) in [0, 1] as 8-bit PNG files, named by their place, and return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for place, image in enumerate(images):
        values = np.rint(np.moveaxis(np.asarray(image), 0, -1) * 255).astype(np.uint8)
        Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values).save(folder / f"{place:05d}.png")
    return folder


def _read_bytes(path: Path) -> bytes:
    with decoding(path, "cannot be read"):
        size = path.stat().st_size
        if path.is_dir():
            raise DataError(f"this is a folder; wanted one {KINDS} file.")
        if size > MOST_BYTES:
            raise DataError(f"{size:,} bytes are too many for one image (at most {MOST_BYTES:,}).")
        return path.read_bytes()


def _decode(data: bytes, frame: medical.Frame) -> Stored:
    """Return an image (H, W) or (H, W, C) in the type of the file; bits become 0 and 255."""
    if medical.is_dicom(data):
        return medical.dicom_values(data, frame)
    if medical.is_nifti(data):
        return medical.nifti_values(data, frame)
    if frame not in (None, 0):
        raise DataError(f"has no picture {frame}: only DICOM and NIfTI files are read as several.")
    if data.startswith(NPY):
        stored = Stored(parse_npy(data))
    elif data.startswith((PNG, JPEG, *TIFF)):
        stored = _decode_picture(data)
    elif not data:
        raise DataError("this file is empty.")
    else:
        start = printable(data[:12].decode("latin-1"))
        raise DataError(f"this is no {KINDS} file: it begins with {start!r}.")
    if stored.values.dtype == bool:
        return stored._replace(values=stored.values.astype(np.uint8) * 255)
    return stored


def _decode_picture(data: bytes) -> Stored:
    """Return the one picture of a PNG, JPEG or TIFF file, held upright."""
    if data.startswith(PNG):
        with _opened(data) as picture:
            picture.verify()  # the checksum of every part of the file, which decoding skips
    with _opened(data) as picture:
        tags = getattr(picture, "tag_v2", {})
        bits = max(np.atleast_1d(tags.get(BITS, 8)).tolist())
        if data.startswith(PNG) and data[25] in (2, 4, 6):  # RGB, grey and RGB with alpha
            bits = data[24]
        if bits > 8 and picture.mode not in _GREY:
            what = f"its colours have {bits} bits each, of which 8 would be read."
            raise DataError(what, hint="Save it as npy, as grey, or with 8 bits a colour.")
        turned = tags.get(PHOTOMETRIC) == MIN_IS_WHITE and picture.mode not in ("1", "L", "P")  # Pillow turns these
        values = _plain(picture)
        orientation = 1 if tags else picture.getexif().get(ORIENTATION, 1)  # Pillow holds a TIFF upright
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return Stored(values[::-1] if orientation in (3, 4, 7, 8) else values, turned)


def _opened(data: bytes) -> Image.Image:
    """Return the picture, not yet decoded, of a file whose size and number of pictures are as they should be."""
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF"))
    except UnidentifiedImageError:
        raise ValueError("its header cannot be read") from None
    if picture.width * picture.height > MOST_PIXELS:
        raise DataError(f"{picture.width}×{picture.height} px are too many (at most {MOST_PIXELS:,}).")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        raise DataError(f"holds {frames} pictures; wanted a file with one.")
    return picture


def _plain(picture: Image.Image) -> np.ndarray:
    """Return the values of a grey or RGB picture; a palette is looked up, an opaque alpha channel left out."""
    key = picture.info.get("transparency")
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if key is not None else "RGB")
    elif key is not None:
        values = np.asarray(picture)
        if (values == np.asarray(key)).reshape(*values.shape[:2], -1).all(-1).any():
            raise DataError("this image is partly transparent.", hint="Save it without a transparent colour.")
    if picture.mode in ("LA", "RGBA"):
        values = np.asarray(picture)
        if values[..., -1].min() < 255:
            raise DataError("this image is partly transparent.", hint="Save it without an alpha channel.")
        return values[..., 0] if picture.mode == "LA" else values[..., :-1]
    if picture.mode not in _GREY | {"RGB"}:
        raise DataError(f"its colours are {picture.mode}.", hint="Save it as grey or RGB.")
    return np.asarray(picture)
