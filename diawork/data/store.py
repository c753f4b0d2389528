"""Images decoded once into a file: whole numbers on disk, float32 in [0, 1] made a batch at a time.

A store is known by what its images were decoded from (path, size and time of every file) and how; the
digest of each image's content is taken as it is decoded, so that an open store is never read through. An image is
held against it when a process first reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from torch import Tensor
from tqdm.auto import tqdm

from diawork.base.errors import CheckpointError, DataError, DiaworkError, ResourceError
from diawork.base.files import digest, read_json, write_json
from diawork.base.locks import locked
from diawork.base.stopping import stop_at_once
from diawork.data.manifests import Manifest, Split
from diawork.data.preprocess import Cut, PassingFault, Picture
from diawork.data.splits import FileStat

GIB = 2**30
MOST_FLOAT_PX = 64  # a side; larger images of an archive are kept as bytes
FULL = {"uint8": 255, "uint16": 65_535}  # the stored value of white
CHUNK = 64  # images decoded between two looks at the clock
SAVE_SECONDS = 5.0
HELD_BYTES = 64 * 2**20  # of the file, kept mapped between two reads
DIGEST_BYTES = 32

Decode = Callable[[str], Picture]  # path → float32 (C, H, W) in [0, 1]


class StoredImages:
    """Rows of a store as one float32 tensor (N, C, H, W) in [0, 1] would look, of which only what is indexed is made.

    ``values`` (M, C, H, W) are whole numbers, ``rows`` (N,) the positions in it; a row of −1 is black.
    """

    dtype: torch.dtype = torch.float32
    ndim = 4

    def __init__(
        self, values: np.ndarray, digests: np.ndarray, rows: np.ndarray | None = None, *, channels: int = 0,
        sound: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.values, self.all_digests = values, digests
        self.rows = np.arange(len(values)) if rows is None else rows
        self.channels = channels or values.shape[1]
        self._held = 0
        mapped = isinstance(values, np.memmap)  # what lies in a file is held against its digest when first read
        self.sound = np.full(len(values), not mapped) if sound is None else sound

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), self.channels, *self.values.shape[2:]))

    @property
    def digests(self) -> np.ndarray:
        """The SHA-256 (N, 32) of each image's stored values."""
        return self.all_digests[self.rows]

    def take(self, rows: np.ndarray) -> Self:
        """Return the images at positions ``rows`` (n,) without reading any."""
        return type(self)(self.values, self.all_digests, self.rows[rows], channels=self.channels, sound=self.sound)

    def repeated(self, channels: int) -> StoredImages:
        """Return the same grey images with ``channels`` equal channels."""
        return StoredImages(self.values, self.all_digests, self.rows, channels=channels, sound=self.sound)

    def __getitem__(self, at: Any) -> Tensor:
        """Return what is indexed as a tensor in memory: one image, or those of a slice, list, array or mask."""
        if isinstance(at, tuple):
            first, *rest = at
            return self[first][tuple(rest) if _is_one(first) else (slice(None), *rest)]
        if _is_one(at):
            return self._read(self.rows[[int(at)]])[0]
        key = at.numpy() if isinstance(at, Tensor) else at
        return self._read(self.rows[np.asarray(key, np.int64) if isinstance(key, list) else key])

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield the images in order, ``size`` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def _read(self, rows: np.ndarray) -> Tensor:
        places = rows.clip(min=0)
        stored = self.values[places]
        for place, picture in zip(places, stored, strict=True):
            if not self.sound[place]:
                if hashlib.sha256(picture.data).digest() != self.all_digests[place].tobytes():
                    path = getattr(self.values, "filename", None)
                    hint = "Remove its folder; the images are decoded again."
                    raise CheckpointError(
                        f"image {place} of this store is not as it was decoded.", path=path, hint=hint
                    )
                self.sound[place] = True
        self._held += stored.nbytes
        mapped = getattr(self.values, "_mmap", None)
        if self._held > HELD_BYTES and mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)  # the pages are the system's to cache, not ours to hold
            self._held = 0
        unit = np.divide(stored, FULL[str(self.values.dtype)], dtype=np.float32)
        unit[rows < 0] = 0
        x = torch.from_numpy(unit)
        return x if x.shape[1] == self.channels else x.expand(-1, self.channels, -1, -1)


def _is_one(at: Any) -> bool:
    """Say whether an index names one image."""
    return isinstance(at, int | np.integer) or (isinstance(at, Tensor | np.ndarray) and at.ndim == 0)


class StoredMasks(StoredImages):
    """The same for masks: bool (N, 1, H, W), True inside a lesion; a row of −1 shows none."""

    dtype = torch.bool

    def _read(self, rows: np.ndarray) -> Tensor:
        return super()._read(rows) > 0.5


class Part(NamedTuple):
    """One split: images (N, C, H, W) in [0, 1], float32 or stored, and what is known of each."""

    images: np.ndarray | StoredImages
    class_names: np.ndarray  # str (N,)
    masks: np.ndarray | StoredMasks | None = None  # bool (N, 1, H, W) of lesions
    files: np.ndarray | None = None  # str (N,), where an image is a file of its own
    patients: np.ndarray | None = None  # str (N,), "" where not known


class Content(NamedTuple):
    """What a reader returns: the splits of a data set and where they came from."""

    parts: dict[str, Part]  # by split
    source: str  # where it came from, without machine paths
    notes: tuple[str, ...] = ()  # what a report must show
    path: Path | None = None  # of the file or folder
    md5: str | None = None  # of the file


# --- memory ---------------------------------------------------------------------------------------------


def kept_as_bytes(manifest: Manifest) -> bool:
    """Say whether the images of an archive are large, and stay bytes until a batch is made of them."""
    return manifest.image.size > MOST_FLOAT_PX and manifest.intensity is None


def decoded_bytes(manifest: Manifest, split: Split) -> int:
    """Return the bytes of a split as it is kept: float32 images, or the bytes of larger ones."""
    size, channels = manifest.image.size, manifest.image.channels
    return (1 if kept_as_bytes(manifest) else 4) * manifest.sizes[split] * size**2 * channels


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


# --- decoding, once -------------------------------------------------------------------------------------


class Key(NamedTuple):
    """What a store is of: the digests of its files and of how they are decoded, and what is stored of them."""

    files: str
    spec: str
    shape: tuple[int, int, int, int]  # (N, C, H, W)
    dtype: str


class Store(BaseModel):
    """A store's record: how many files are decoded, why some could not be, and what is known of the others."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    done: int = Field(ge=0)
    bad: dict[str, str] = {}  # path → reason
    cut: Cut = Cut()  # to the intensity window
    said: dict[str, int] = {}  # what was done to pictures → how many
    _folder: Path = PrivateAttr()

    @classmethod
    def of(cls, folder: Path, key: Key) -> Store:
        """Return the record in ``folder`` as far as it is of this key and its files are whole; else a new one."""
        store = cls(key=key, done=0)
        with contextlib.suppress(ValidationError, CheckpointError, OSError):
            known = cls.model_validate(read_json(folder / "store.json"))
            store = known if known.key == key and known.done <= key.shape[0] else store
        store._folder = folder
        return store

    @property
    def files(self) -> dict[Path, int]:
        """The files of the images and of their digests, and their size (bytes) by what is done."""
        row = math.prod(self.key.shape[1:]) * np.dtype(self.key.dtype).itemsize
        name = self._folder / digest(self.key._asdict())
        return {Path(f"{name}-images.bin"): self.done * row, Path(f"{name}-digests.bin"): self.done * DIGEST_BYTES}

    @property
    def images(self) -> StoredImages:
        """The images in the order of the files."""
        for path, size in self.files.items():
            if not path.exists() or path.stat().st_size != size:
                hint = f"Remove {self._folder}."
                raise CheckpointError("this store of decoded images is damaged.", path=path, hint=hint)
        images, digests = self.files
        values = np.memmap(images, self.key.dtype, "r", shape=self.key.shape)
        return StoredImages(values, np.fromfile(digests, np.uint8).reshape(-1, DIGEST_BYTES))


def open_store(
    folder: Path, files: Sequence[FileStat], decode: Decode, *, shape: tuple[int, int, int], dtype: str,
    spec: Mapping[str, Any],
) -> Store:  # fmt: skip
    """Return the store of these files, decoded now where it is not there yet, or where a first pass was interrupted.

    ``spec`` says how they are decoded, ``shape`` (C, H, W) and ``dtype`` what is stored of each.
    """
    listing = hashlib.sha256("\n".join(f"{f.size} {f.mtime_ns} {f.path}" for f in files).encode()).hexdigest()
    key = Key(listing, digest(dict(spec)), (len(files), *shape), dtype)
    if (store := Store.of(folder, key)).done < len(files):
        with locked(folder, wait=True):
            store = Store.of(folder, key)  # another process, which was waited for, may have made it
            if store.done < len(files):
                _first_pass(store, [f.path for f in files], decode)
    return store


def _first_pass(store: Store, paths: list[str], decode: Decode) -> None:
    """Decode every file in order; what was saved before an interruption is kept."""
    folder = store._folder
    try:
        for path, whole in store.files.items():
            path.touch()
            os.truncate(path, whole)  # what was written after the last save
        with stop_at_once(), contextlib.ExitStack() as stack:
            images, digests = (stack.enter_context(open(path, "ab")) for path in store.files)
            saved = time.monotonic()
            for file, values, picture, reason in _decoded(paths[store.done :], len(paths), decode, store.key):
                images.write(values.data)
                digests.write(hashlib.sha256(values.data).digest())
                store.done += 1
                store.bad |= {file: reason} if reason else {}
                store.cut = store.cut.plus(picture.cut)
                store.said |= {picture.note: store.said.get(picture.note, 0) + 1} if picture.note else {}
                if store.done == len(paths) or time.monotonic() - saved > SAVE_SECONDS:
                    for written in (images, digests):
                        written.flush()
                        os.fsync(written.fileno())
                    write_json(folder / "store.json", store.model_dump())
                    saved = time.monotonic()
    except OSError as error:
        what = f"the decoded images cannot be written ({error.strerror or error})."
        size = f"They take {math.prod(store.key.shape) * np.dtype(store.key.dtype).itemsize / GIB:.1f} GiB"
        hint = f"{size}; free some space or set DIAWORK_HOME. What was decoded is kept."
        raise ResourceError(what, path=folder, hint=hint) from None
    for other in set(folder.glob("*.bin")) - set(store.files):
        other.unlink(missing_ok=True)  # of files that have changed since


def _decoded(paths: list[str], total: int, decode: Decode, key: Key) -> Iterator[tuple[str, np.ndarray, Picture, str]]:
    """Yield path, stored values (C, H, W), picture and, where the file is bad, the reason, in order.

    A fault that is not of the file's content ends it: it is not kept, and the next pass goes on from there.
    """
    shape, dtype = key.shape[1:], key.dtype

    def one(path: str) -> tuple[str, np.ndarray, Picture, str]:
        try:
            picture = decode(path)
            if picture.image.shape != shape:
                raise DataError(f"has the shape {picture.image.shape}, wanted {shape}.")
        except PassingFault:
            raise
        except DiaworkError as error:
            return path, np.zeros(shape, dtype), Picture(np.zeros(0)), f"{error.what} {error.hint}".rstrip()
        values = np.rint(picture.image.astype(np.float64) * FULL[dtype])
        return path, np.ascontiguousarray(values, dtype), picture, ""

    bar = tqdm(total=total, initial=total - len(paths), desc="decoding images, once", unit="image", disable=None)
    with bar, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), CHUNK):
            for row in pool.map(one, paths[start : start + CHUNK]):
                yield row
                bar.update()
