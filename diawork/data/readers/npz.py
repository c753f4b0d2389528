"""Reading npz archives that nobody vouches for: sizes before bytes, checksums to the end, plain numbers only.

The archive's directory bounds what is read, the CRC-32 of every member is checked by reading it
whole, and only then is the array's header believed. Whatever is wrong becomes one ``DataError``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

import numpy as np

from diawork.base.errors import DataError, DiaworkError, did_you_mean, printable
from diawork.data.manifests import Manifest

GIB = 2**30
HEADER_BYTES = 65_536  # generous room for an array's header


class Arrays(NamedTuple):
    """One split as stored: float32 images (N, C, H, W) in [0, 1] and integer labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


def memory_limit() -> int:
    """Return the bytes a data set may take: half the memory, at most $DIAWORK_DATA_LIMIT_GB (4)."""
    try:
        most = float(os.environ.get("DIAWORK_DATA_LIMIT_GB", "4")) * GIB
    except ValueError:
        most = 4 * GIB
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not told on every system
        most = min(most, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2)
    return int(most)


def refuse_beyond_memory(needed: int, path: object) -> None:
    """Raise ``DataError`` where a data set would take more memory than the limit."""
    if needed > memory_limit():
        raise DataError(
            f"loading needs {needed / GIB:.1f} GiB of memory, the limit is {memory_limit() / GIB:.1f} GiB.",
            path=path,
            hint="If the data are what you expect, raise DIAWORK_DATA_LIMIT_GB (at most half the memory is used).",
        )


def decoded_bytes(manifest: Manifest, split: str) -> int:
    """Return the bytes of a split as float32 images."""
    return 4 * sum(manifest.counts[split].values()) * manifest.image.size**2 * manifest.image.channels


def read_npz(path: Path, manifest: Manifest) -> tuple[dict[str, Arrays], str, list[str]]:
    """Return the arrays of every split of the manifest, the file's MD5, and notes for the report."""
    notes: list[str] = []
    try:
        with open(path, "rb") as f:
            md5 = hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            _refuse_other_files(f, path, manifest)
            raw = _read_members(f, path, manifest)
        splits = {split: _decode(raw, split, path, manifest, notes) for split in manifest.counts}
    except DiaworkError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types on damaged input; all mean the same
        reason = str(getattr(error, "strerror", None) or error)[:120] or type(error).__name__
        _damaged(path, manifest, f"not a readable npz ({printable(reason)})")
    return splits, md5, notes


def _damaged(path: Path, manifest: Manifest, what: str) -> NoReturn:
    known = f" Expected MD5 {manifest.md5}." if manifest.md5 else ""
    link = f" from {manifest.url[0]}" if manifest.url else ""
    raise DataError(f"{what}.{known}", path=path, hint=f"Remove it and get it again{link}.")


def _refuse_other_files(f: IO[bytes], path: Path, manifest: Manifest) -> None:
    f.seek(0)
    head = f.read(512).lstrip()
    f.seek(0)
    if not head:
        _damaged(path, manifest, "the file is empty")
    if head.startswith(b"<"):
        _damaged(path, manifest, "a web page saved under the name of an npz: the download was refused")


def _read_members(f: IO[bytes], path: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the wanted members as arrays, after checking every declared size."""
    with zipfile.ZipFile(f) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            _damaged(path, manifest, "two members of the archive have the same name")
        keys = [f"{split}_{part}" for split in manifest.counts for part in ("images", "labels")]
        for key in keys:
            if f"{key}.npy" not in members:
                found = [printable(name).removesuffix(".npy") for name in list(members)[:20]]
                raise DataError(
                    f"the array {key!r} is missing; the file holds {', '.join(found) or 'none'}.",
                    path=path,
                    hint=did_you_mean(key, found) if found else "",
                )
        declared = {key: members[f"{key}.npy"].file_size for key in keys}
        _refuse_declared(declared, path, manifest)
        return {key: _array(key, archive.read(members[f"{key}.npy"]), path, manifest) for key in keys}


def _refuse_declared(declared: dict[str, int], path: Path, manifest: Manifest) -> None:
    """Refuse sizes that the manifest's counts cannot explain, or that the memory cannot hold."""
    for key, size in declared.items():
        split = key.rpartition("_")[0]
        allowed = HEADER_BYTES + 2 * decoded_bytes(manifest, split)  # 8 bytes a value
        if size > allowed:
            n = sum(manifest.counts[split].values())
            raise DataError(
                f"{key} declares {size:,} bytes, more than {n:,} images of {manifest.image.size} px can take.",
                path=path,
                hint="Wrong file, or wrong counts in the manifest.",
            )
    refuse_beyond_memory(sum(declared.values()) + sum(decoded_bytes(manifest, s) for s in manifest.counts), path)


def _array(key: str, data: bytes, path: Path, manifest: Manifest) -> np.ndarray:
    """Parse one npy member; its header must account for every byte."""
    buffer = io.BytesIO(data)
    version = np.lib.format.read_magic(buffer)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(buffer)
    else:
        _damaged(path, manifest, f"{key} has the unknown npy version {version}")
    if dtype.hasobject or dtype.itemsize == 0:
        raise DataError(f"{key} holds {dtype}: only plain numbers are read, nothing is unpickled.", path=path)
    count = 1
    for length in shape:
        count *= int(length)
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(data) - buffer.tell():
        _damaged(path, manifest, f"{key} declares the shape {shape} of {dtype}, which its bytes do not hold")
    flat = np.frombuffer(data, dtype, offset=buffer.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def _decode(raw: dict[str, np.ndarray], split: str, path: Path, manifest: Manifest, notes: list[str]) -> Arrays:
    """Check shapes and types of a split and return it in the house's form."""
    images, labels = raw[f"{split}_images"], raw[f"{split}_labels"]
    size, channels = manifest.image.size, manifest.image.channels
    wanted = (size, size) if channels == 1 else (size, size, 3)
    if images.ndim < 3 or images.shape[1:] != wanted:
        raise DataError(
            f"{split}_images has the shape {images.shape}, wanted (N, {', '.join(map(str, wanted))}).", path=path
        )
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
        raise DataError(
            f"{split}_labels is {labels.dtype} {labels.shape}, wanted whole numbers ({len(images)},) "
            f"or ({len(images)}, 1): one for each of the {len(images)} images.",
            path=path,
        )
    if not len(images):
        raise DataError(f"{split}_images holds no image.", path=path)
    values = _to_unit(images, split, path, manifest, notes)
    values = values[:, None] if channels == 1 else np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    return Arrays(values, labels.reshape(-1).astype(np.int64))


def _to_unit(images: np.ndarray, split: str, path: Path, manifest: Manifest, notes: list[str]) -> np.ndarray:
    """Return float32 in [0, 1]: 8-bit data by 255, anything else only by the manifest's intensity window."""
    window = manifest.intensity
    if images.dtype.kind not in "uif":
        raise DataError(f"{split}_images is {images.dtype}; wanted uint8, or numbers with a window.", path=path)
    if window is None and images.dtype == np.uint8:
        return np.divide(images, 255, dtype=np.float32)
    if not np.isfinite(images).all():
        at = int(np.flatnonzero(~np.isfinite(images.reshape(len(images), -1)).all(1))[0])
        raise DataError(f"{split}_images: image {at} holds NaN or infinite values.", path=path)
    if window is None:
        raise DataError(
            f"{split}_images is {images.dtype} with values {images.min():g} … {images.max():g}; wanted uint8.",
            path=path,
            hint="16-bit and float data need an explicit window in the manifest, e.g. 'intensity: [0, 4095]'.",
        )
    unit = (images.astype(np.float64) - window[0]) / (window[1] - window[0])
    outside = int(((unit < 0) | (unit > 1)).sum())
    if outside:
        share = f"{outside:,} of {unit.size:,} values"
        notes.append(f"{split}: {share} lie outside the intensity window and were cut to it.")
    return unit.clip(0, 1).astype(np.float32)
