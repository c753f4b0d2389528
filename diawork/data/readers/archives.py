"""The readers of archives that hold many images: npz as MedMNIST publishes it, and CIFAR in its binary form.

An npz holds ``{split}_images`` and ``{split}_labels``. The archive's directory bounds what is read, the CRC-32 of every
member is checked by reading it whole, and only then is an array's header believed. CIFAR's Python form is pickled, and
nothing is unpickled here: the binary form has rows of labels and 3 × 32 × 32 bytes.
"""

import functools
import hashlib
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from diawork.base.errors import DataError, did_you_mean, printable
from diawork.data.locations import find_file, find_folder
from diawork.data.manifests import Manifest
from diawork.data.preprocess import Cut, channels_first, decoding, parse_npy, to_unit
from diawork.data.splits import Item, split_items
from diawork.data.store import Content, Part, StoredImages, decoded_bytes, kept_as_bytes, refuse_beyond_memory

HEADER_BYTES = 65_536  # generous room for an array's header
COARSE = 20  # superclasses of CIFAR-100; a manifest of more classes means its fine labels
FORMS = {  # of CIFAR: files of train and test, and the labels before each picture: coarse, then fine
    "data_batch_1.bin": ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"], 1),
    "train.bin": (["train.bin"], ["test.bin"], 2),
}


def read(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read the splits of a manifest from its archive in ``root``."""
    return _read_cifar(manifest, root) if manifest.kind == "cifar" else _read_npz(manifest, root, download)


def _digests(pictures: np.ndarray) -> np.ndarray:
    """Return the SHA-256 (N, 32) of each picture's values."""
    rows = [hashlib.sha256(picture.tobytes()).digest() for picture in pictures]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32)


# --- npz -------------------------------------------------------------------------------------------------


def _read_npz(manifest: Manifest, root: Path | str | None, download: bool) -> Content:
    path = find_file(manifest, root, download=download)
    published = f"Expected MD5 {manifest.md5}. " if manifest.md5 else ""
    link = f" from {manifest.url[0]}" if manifest.url else ""
    reading = functools.partial(
        decoding, path, "not a readable npz", hint=f"{published}Remove it and get it again{link}."
    )
    with reading(), open(path, "rb") as f:
        md5 = hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        members = _read_members(f, manifest)
    parts: dict[str, Part] = {}
    notes = []
    for split in manifest.sizes:
        images: np.ndarray | StoredImages
        with reading(field=f"{split}_images"):
            stored = parse_npy(members[f"{split}_images"])
            _refuse_other_shapes(stored, manifest)
            if stored.dtype == np.uint8 and kept_as_bytes(manifest):
                images, cut = StoredImages(channels_first(stored), _digests(stored)), Cut()
            else:
                unit, cut = to_unit(stored, manifest.intensity)
                images = channels_first(unit)
        with reading(field=f"{split}_labels"):
            names = _class_names(parse_npy(members[f"{split}_labels"]), len(stored), manifest)
        if manifest.intensity and cut.n:
            with reading(field=f"{split}_images"):
                notes.append(f"{split}: {cut.words(manifest.intensity, most=manifest.most_cut)}")
        rows = _kept(split, names, manifest)
        parts[split] = Part(images.take(rows) if isinstance(images, StoredImages) else images[rows], names[rows])
    return Content(parts, f"{manifest.file}, MD5 {md5}", tuple(notes), path, md5)


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
    """Return the arrays' bytes by name; sizes that the counts cannot explain or memory cannot hold are not read."""
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
        needed, arrays = 0, [f"{split}_{what}" for split in manifest.sizes for what in ("images", "labels")]
        for name in arrays:
            if name not in members:
                present = [printable(other) for other in list(members)[:20]]
                what = f"the array {name!r} is missing; the file holds {', '.join(present) or 'none'}."
                raise DataError(what, hint=did_you_mean(name, present) if present else "")
        for split, n in manifest.sizes.items():
            decoded = decoded_bytes(manifest, split)
            sizes = {name: members[name].file_size for name in (f"{split}_images", f"{split}_labels")}
            for name, size in sizes.items():
                if size > HEADER_BYTES + 2 * decoded:  # 8 bytes a value
                    what = (
                        f"{name} declares {size:,} bytes, more than {n:,} images of {manifest.image.size} px can take."
                    )
                    raise DataError(what, hint="Wrong file, or wrong counts in the manifest.")
            needed += decoded + sum(sizes.values())
        refuse_beyond_memory(needed)
        return {name: archive.read(members[name]) for name in arrays}


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


# --- CIFAR -----------------------------------------------------------------------------------------------


def _read_cifar(manifest: Manifest, root: Path | str | None) -> Content:
    """Read train and test under a manifest's folder; its roles say which class is the normal one."""
    folder = find_folder(manifest, root)
    form = next((form for name, form in FORMS.items() if (folder / name).exists()), None)
    if form is None:
        pickled = any((folder / name).exists() for name in ("data_batch_1", "train"))
        what = "holds the pickled form, and nothing is unpickled" if pickled else "holds no binary batches"
        hint = "Get the binary version (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz)."
        raise DataError(f"{what}.", path=folder, hint=hint)
    *names, labels = form
    parts = {
        split: _batches(folder, files, labels, manifest) for split, files in zip(("train", "test"), names, strict=True)
    }
    if manifest.recipe:
        images, classes, *_ = parts["train"]
        items = [Item(f"{row:05d}", name) for row, name in enumerate(classes)]
        split_of = np.array([item.split for item in split_items(items, manifest.recipe)])
        parts |= {s: Part(images.take(split_of == s), classes[split_of == s]) for s in ("train", "val")}
    return Content(parts, f"binary batches under {manifest.place}", (), folder)


def _batches(folder: Path, names: list[str], labels: int, manifest: Manifest) -> Part:
    """Return the pictures (N, 3, 32, 32) of some files and the class that each one's first or fine label means."""
    rows, width = [], labels + 3 * 32 * 32
    for path in (folder / name for name in names):
        try:
            data = np.fromfile(path, np.uint8)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error}).", path=path) from None
        if not len(data) or len(data) % width:
            raise DataError(f"holds {len(data):,} bytes, which are no rows of {width:,}.", path=path)
        rows.append(data.reshape(-1, width))
    whole = np.concatenate(rows)
    label = whole[:, labels - 1 if len(manifest.classes) > COARSE else 0]
    unknown = np.setdiff1d(label, list(manifest.classes))
    if len(unknown):
        what = f"{names[0]} holds the label {unknown[0]}; the classes are {len(manifest.classes)}."
        raise DataError(what, path=folder)
    classes = np.array([manifest.classes.get(number, "") for number in range(256)])[label]
    pictures = np.ascontiguousarray(whole[:, labels:]).reshape(-1, 3, 32, 32)
    return Part(StoredImages(pictures, _digests(pictures)), classes)
