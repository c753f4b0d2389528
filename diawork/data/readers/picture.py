"""One image from a PNG, JPEG, TIFF, BMP, WebP, npy, DICOM or NIfTI file; its content decides which, not its name.

The values of a file become light in one place: by 255 where they have 8 bits, by a window where they are finer,
turned where white is the lowest, upright where the file says how it was held.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import PREFIXES as TIFF
from tqdm.auto import tqdm

from diawork.base.errors import CheckpointError, DataError, UsageError, printable
from diawork.data.manifests import FILE_KINDS, MOST_CUT, WINDOWS, Manifest, Window
from diawork.data.preprocess import (
    IN_COLOUR,
    NPY,
    Picture,
    Stored,
    channels_first,
    decoding,
    is_colour,
    parse_npy,
    resized,
    to_unit,
    with_channels,
)
from diawork.data.readers import medical
from diawork.data.readers.medical import MOST_PIXELS
from diawork.data.store import FULL

MOST_BYTES = 256 * 2**20
PNG, JPEG, BMP, WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF"
KINDS = "PNG, JPEG, TIFF, BMP, WebP, npy, DICOM or NIfTI"
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npy", ".dcm", ".dicom", ".ima", ".nii", ".nii.gz",
)  # fmt: skip
ORIENTATION, BITS, PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and TIFF
MIN_IS_WHITE = 0
_GREY = {"1", "L", "I;16", "I;16B", "I;16L", "I", "F"}  # Pillow's modes


class Preprocessing(NamedTuple):
    """How an image file becomes what a detector sees; a run records it."""

    size: int  # px, square
    channels: int
    resize: str  # rule
    intensity: Window | None = None
    frame: medical.Frame = None
    levels: int = 0  # the whole number of white in a store of decoded files; 0: not rounded
    cut: float = MOST_CUT  # share of all values that may lie outside the window

    @classmethod
    def of(cls, manifest: Manifest) -> Preprocessing:
        """Return how the images of a manifest are opened."""
        levels = FULL["uint16" if manifest.intensity else "uint8"] if manifest.kind in FILE_KINDS else 0
        image = manifest.image
        return cls(
            image.size, image.channels, manifest.resize, manifest.intensity, manifest.frame, levels, manifest.most_cut
        )

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Preprocessing:
        """Undo ``_asdict``, after a journey through JSON."""
        try:
            window = record["intensity"]
            return cls(**record | {"intensity": tuple(window) if window else None})
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"says in no known way how its images were opened ({error}).") from None

    def read(self, path: Path | str, frame: medical.Frame = None) -> Picture:
        """Return the picture in a file as the run would have seen it, float32 (C, H, W); else ``DataError``."""
        picture = read_image(Path(path), window=self.intensity, frame=self.frame if frame is None else frame)
        unit = with_channels(resized(picture.image, self.size, self.resize), self.channels)
        tinted = self.channels == 1 and is_colour(picture.image)
        if self.levels:
            unit = np.divide(np.rint(unit.astype(np.float64) * self.levels), self.levels, dtype=np.float32)
        return replace(picture, image=unit, note="; ".join(filter(None, [picture.note, IN_COLOUR * tinted])))


def is_image(path: Path | str) -> bool:
    """Say whether a file is read as an image: by its ending, or because it begins as DICOM does."""
    name = str(path).lower()
    if name.endswith(SUFFIXES):
        return True
    if name.endswith((".txt", ".csv", ".json", ".xml", ".md", ".py", "dicomdir")):
        return False
    with contextlib.suppress(OSError), open(path, "rb") as f:
        return medical.is_dicom(f.read(132))
    return False


def file_and_frame(path: str, folder: Path | str = "") -> tuple[str, medical.Frame]:
    """Return the file and the picture in it that "file#12" or, of a volume, "file#x12" means; a file goes first."""
    match = re.fullmatch(r"(.+)#([xyz]?)(\d{1,5})", path, re.DOTALL)
    if match is None or os.path.exists(os.path.join(folder, path)):
        return path, None
    file, axis, number = match.groups()
    return file, axis + number if axis else int(number)


def frames_in(path: Path | str) -> dict[str, int]:
    """Return how many pictures a file holds: {"": n}, or of a volume {"z": n, "y": n, "x": n}, the usual axis first."""
    with decoding(path, "this image is damaged"):
        with open(path, "rb") as f:
            head = f.read(352)
        if not (medical.is_dicom(head) or head.startswith(medical.GZIP) or medical.is_nifti(head)):
            return {"": 1}
        return medical.frames_in(_read_bytes(Path(path)))


def slices(path: str, folder: Path | str = "", *, axis: str = "", middle: float = 0.6, most: int = 32) -> list[str]:
    """Return "file#z12" for pictures of a file that holds several: of its middle share, each or every k-th.

    ``axis`` is the usual one where it is "", and k the least number that leaves ``most``. A file of one: itself.
    """
    sides = frames_in(Path(folder) / path)
    axis = axis or next(iter(sides))
    n = sides.get(axis, 1)
    if n == 1 and axis in ("", "z"):
        return [path]
    inside = range(round(n * (1 - middle) / 2), max(round(n * (1 + middle) / 2), 1))
    return [f"{path}#{axis}{place}" for place in inside[:: math.ceil(len(inside) / most)]]


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
    return Picture(np.ascontiguousarray(image), name, cut, stored.note, stored.hounsfield, window)


def read_picture(folder: Path, path: str, window: Window | None = None, *, usual: medical.Frame = None) -> Picture:
    """Return the picture that a table's "path" or "path#12" means; ``usual`` is that of a path alone."""
    file, frame = file_and_frame(path, folder)
    return read_image(folder / file, window=window, frame=usual if frame is None else frame)


def propose_window(folder: Path, paths: Sequence[str]) -> tuple[str | list[float], str]:
    """Return the intensity window for files deeper than 8 bits, by all of their values, and why in a sentence.

    Of CT it is the whole range in HU, by its name; of whole numbers from 0 on, the bits that hold them; else both ends
    of what the files hold.
    """
    low, high, whole, hounsfield, some = math.inf, -math.inf, True, True, []
    for path in tqdm(paths, desc="the range of all values", unit="image", disable=None):
        file, frame = file_and_frame(path, folder)
        with contextlib.suppress(DataError), decoding(path, "cannot be read"):
            stored = _decode(_read_bytes(folder / file), frame)
            values = stored.values[np.isfinite(stored.values)]
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            whole = whole and bool((values == np.rint(values)).all())
            hounsfield = hounsfield and stored.hounsfield
            some.append(values[:: max(1, values.size // 4096)].astype(np.float32))
    every = np.concatenate(some)
    inner = np.quantile(every, [0.0005, 0.9995])
    seen = f"values from {low:.6g} to {high:.6g}"
    if high - low > 4 * (inner[1] - inner[0]):
        seen += f" (99.9 % of them from {inner[0]:.6g} to {inner[1]:.6g})"
    outside = {name: float(((every < a) | (every > b)).mean()) for name, (a, b) in WINDOWS.items()}
    if hounsfield and outside["whole"] <= MOST_CUT:
        others = ", ".join(
            f"{name} {list(WINDOWS[name])} cuts {share:.0%}" for name, share in outside.items() if name != "whole"
        )
        return "whole", f"CT in HU, {seen}; intensity: whole. To see one tissue name its window: {others}"
    if whole and low >= 0 and high < 2**16:
        bits = next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits)
        return [0.0, float(2**bits - 1)], f"{bits} bits: {seen}, so white is {2**bits - 1}"
    ends = [0.0, 1.0] if low >= 0 and 0.5 < high <= 1 else [low, high if high > low else low + 1]
    return ends, f"{seen}, so black is {ends[0]:.6g} and white {ends[1]:.6g}"


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
    elif data.startswith((PNG, JPEG, BMP, WEBP, *TIFF)):
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
    """Return the one picture of a PNG, JPEG, TIFF, BMP or WebP file, held upright; of several in a photo, the first."""
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are looked at below, and of a photo's second picture
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF", "BMP", "WEBP"))
    except UnidentifiedImageError:
        raise ValueError("its header cannot be read") from None
    if picture.width * picture.height > MOST_PIXELS:
        raise DataError(f"{picture.width}×{picture.height} px are too many (at most {MOST_PIXELS:,}).")
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise DataError("holds several pictures; wanted a file with one.")
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
