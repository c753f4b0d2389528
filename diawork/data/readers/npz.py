"""The reader of npz archives, as MedMNIST publishes them: ``{split}_images`` and ``{split}_labels``.

The archive's directory bounds what is read, the CRC-32 of every member is checked by reading it
whole, and only then is an array's header believed.
"""

import functools
import hashlib
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from diawork.base.errors import DataError, did_you_mean, printable
from diawork.data.manifests import Manifest
from diawork.data.readers import pixels
from diawork.data.readers.store import StoredImages
from diawork.data.readers.types import Content, Part
from diawork.data.sources import find_file

HEADER_BYTES = 65_536  # generous room for an array's header


def read(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read the splits of a manifest from its file in ``root``."""
    path = find_file(manifest, root, download=download)
    published = f"Expected MD5 {manifest.md5}. " if manifest.md5 else ""
    link = f" from {manifest.url[0]}" if manifest.url else ""
    hint = f"{published}Remove it and get it again{link}."
    decoding = functools.partial(pixels.decoding, path, "not a readable npz", hint=hint)
    with decoding(), open(path, "rb") as f:
        md5 = hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        members = _read_members(f, manifest)
    parts: dict[str, Part] = {}
    notes = []
    for split in manifest.sizes:
        with decoding(field=f"{split}_images"):
            stored = pixels.parse_npy(members[f"{split}_images"])
            _refuse_other_shapes(stored, manifest)
            images, cut = _images(stored, manifest)
        with decoding(field=f"{split}_labels"):
            names = _class_names(pixels.parse_npy(members[f"{split}_labels"]), len(stored), manifest)
        if cut:
            share = f"{cut:,} of {stored.size:,} values"
            notes.append(f"{split}: {share} lie outside the intensity window and were cut to it.")
        rows = _kept(split, names, manifest)
        images = images.take(rows) if isinstance(images, StoredImages) else images[rows]
        parts[split] = Part(images, names[rows])
    return Content(parts, f"{manifest.file}, MD5 {md5}", tuple(notes), path, md5)


def _images(stored: np.ndarray, manifest: Manifest) -> tuple[np.ndarray | StoredImages, int]:
    """Return images (N, C, H, W), large 8-bit ones as the bytes they are, and how many values a window cut."""
    if stored.dtype == np.uint8 and pixels.kept_as_bytes(manifest):
        digests = [hashlib.sha256(image.tobytes()).digest() for image in stored]
        return StoredImages(
            pixels.channels_first(stored), np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        ), 0
    unit, cut = pixels.to_unit(stored, manifest.intensity)
    return pixels.channels_first(unit), cut


def _kept(split: str, names: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Return the rows of a split without those of unused classes and those that the manifest drops."""
    unused = [name for name, role in manifest.roles.items() if role == "unused"]
    kept = ~np.isin(names, unused)
    for name in manifest.drop:
        where, _, row = name.partition("/")
        if where not in manifest.sizes or not row.isdecimal():
            raise DataError(f"{name!r} is no image of the set.", field="drop", hint="An image is called train/17.")
        if where == split:
            if int(row) >= len(names):
                raise DataError(f"{name!r} is beyond the {len(names):,} images of {split}.", field="drop")
            kept[int(row)] = False
    return np.flatnonzero(kept)


def _read_members(f: IO[bytes], manifest: Manifest) -> dict[str, bytes]:
    """Return the arrays' bytes by name, after checking every declared size."""
    f.seek(0)
    start = f.read(512).lstrip()
    if not start:
        raise ValueError("the file is empty")
    if start.startswith(b"<"):
        raise ValueError("a web page saved under the name of an npz: the download was refused")
    with zipfile.ZipFile(f) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two members of the archive have the same name")
        arrays = [f"{split}_{part}" for split in manifest.sizes for part in ("images", "labels")]
        for missing in (name for name in arrays if name not in members):
            present = [printable(name) for name in list(members)[:20]]
            what = f"the array {missing!r} is missing; the file holds {', '.join(present) or 'none'}."
            raise DataError(what, hint=did_you_mean(missing, present) if present else "")
        _refuse_declared_sizes({name: members[name].file_size for name in arrays}, manifest)
        return {name: archive.read(members[name]) for name in arrays}


def _refuse_declared_sizes(declared: dict[str, int], manifest: Manifest) -> None:
    """Refuse sizes that the manifest's counts cannot explain, or that the memory cannot hold."""
    decoded = {split: pixels.decoded_bytes(manifest, split) for split in manifest.sizes}
    for split, n in manifest.sizes.items():
        for name in (f"{split}_images", f"{split}_labels"):
            if declared[name] > HEADER_BYTES + 2 * decoded[split]:  # 8 bytes a value
                images = f"{n:,} images of {manifest.image.size} px"
                hint = "Wrong file, or wrong counts in the manifest."
                raise DataError(f"{name} declares {declared[name]:,} bytes, more than {images} can take.", hint=hint)
    pixels.refuse_beyond_memory(sum(declared.values()) + sum(decoded.values()))


def _refuse_other_shapes(stored: np.ndarray, manifest: Manifest) -> None:
    size = manifest.image.size
    wanted = (size, size) if manifest.image.channels == 1 else (size, size, 3)
    if stored.ndim < 3 or stored.shape[1:] != wanted:
        raise DataError(f"has the shape {stored.shape}, wanted (N, {', '.join(map(str, wanted))}).")
    if not len(stored):
        raise DataError("holds no image.")


def _class_names(labels: np.ndarray, n: int, manifest: Manifest) -> np.ndarray:
    """Return the class name of each of the n images; a label that the manifest does not know is refused."""
    if manifest.multilabel and labels.dtype.kind in "iu" and labels.ndim == 2 and len(labels) == n:
        labels = (labels != 0).any(axis=1).astype(np.uint8).reshape(n)
    if labels.dtype.kind not in "iu" or labels.shape not in ((n,), (n, 1)):
        what = f"is {labels.dtype} {labels.shape}, wanted whole numbers ({n},) or ({n}, 1)"
        raise DataError(f"{what}: one for each of the {n} images.")
    distinct, position, counts = np.unique(labels.reshape(-1), return_inverse=True, return_counts=True)
    for label, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        if label not in manifest.classes:
            known = ", ".join(f"{k}: {v}" for k, v in manifest.classes.items())
            raise DataError(f"{count} images have the label {label}; the classes are {known}.")
    return np.array([manifest.classes[label] for label in distinct.tolist()])[position]
