"""The reader of CIFAR-10 and CIFAR-100 in their binary form: rows of labels and 3 × 32 × 32 bytes.

The Python form is pickled, and nothing is unpickled here; the binary form is offered beside it.
"""

import hashlib
from pathlib import Path

import numpy as np

from diawork.base.errors import DataError
from diawork.data.facts import Recipe
from diawork.data.manifests import Manifest
from diawork.data.readers.splitting import Item, split_items
from diawork.data.readers.store import StoredImages
from diawork.data.readers.types import Content, Part
from diawork.data.sources import find_folder

SIDE = 32
PIXELS = 3 * SIDE * SIDE
COARSE = 20  # superclasses of CIFAR-100; a manifest of more classes means its fine labels
FORMS = {  # files of train and test, and the labels before each picture: coarse, then fine
    "data_batch_1.bin": ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"], 1),
    "train.bin": (["train.bin"], ["test.bin"], 2),
}


def read(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read train and test under a manifest's folder; its roles say which class is the normal one."""
    folder = find_folder(manifest, root)
    form = next((form for name, form in FORMS.items() if (folder / name).exists()), None)
    if form is None:
        pickled = any((folder / name).exists() for name in ("data_batch_1", "train"))
        what = "holds the pickled form, and nothing is unpickled" if pickled else "holds no binary batches"
        hint = "Get the binary version (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz)."
        raise DataError(f"{what}.", path=folder, hint=hint)
    *names, labels = form
    fine = len(manifest.classes) > COARSE
    splits = {
        split: _batches(folder, files, labels, fine=fine) for split, files in zip(("train", "test"), names, strict=True)
    }
    parts = {split: _part(*content, manifest, split) for split, content in splits.items()}
    if manifest.recipe:
        parts |= _divided(parts["train"], manifest.recipe)
    return Content(parts, f"binary batches under {manifest.place}", (), folder)


def _batches(folder: Path, names: list[str], labels: int, *, fine: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the first label (N,), or the fine one, and the picture (N, 3, 32, 32) of every row of some files."""
    rows = []
    for name in names:
        path, width = folder / name, labels + PIXELS
        try:
            data = np.fromfile(path, np.uint8)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error}).", path=path) from None
        if not len(data) or len(data) % width:
            raise DataError(f"holds {len(data):,} bytes, which are no rows of {width:,}.", path=path)
        rows.append(data.reshape(-1, width))
    whole = np.concatenate(rows)
    column = labels - 1 if fine else 0
    return whole[:, column], np.ascontiguousarray(whole[:, labels:]).reshape(-1, 3, SIDE, SIDE)


def _part(labels: np.ndarray, pictures: np.ndarray, manifest: Manifest, split: str) -> Part:
    unknown = np.setdiff1d(labels, list(manifest.classes))
    if len(unknown):
        raise DataError(f"{split} holds the label {unknown[0]}; the classes are {len(manifest.classes)}.")
    names = np.array([manifest.classes.get(label, "") for label in range(256)])[labels]
    digests = np.frombuffer(b"".join(hashlib.sha256(p.data).digest() for p in pictures), np.uint8).reshape(-1, 32)
    return Part(StoredImages(pictures, digests), names)


def _divided(train: Part, recipe: Recipe) -> dict[str, Part]:
    """Return train and val, as the recipe makes them of the train images."""
    items = [Item(f"{row:05d}", name) for row, name in enumerate(train.class_names)]
    split_of = np.array([item.split for item in split_items(items, recipe)])
    images = train.images
    assert isinstance(images, StoredImages)
    return {s: Part(images.take(split_of == s), train.class_names[split_of == s]) for s in ("train", "val")}
