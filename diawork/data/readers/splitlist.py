"""The reader of split lists as MedIAnomaly keeps them: JSON of {"train": {"0": [files]}, "test": {"0": […], "1": […]}}.

Labels are those of the manifest's classes, files lie in its folder; an "unlabeled" part of train is left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diawork.base.errors import DataError, printable
from diawork.data.facts import SPLITS, inside_root
from diawork.data.manifests import Manifest
from diawork.data.readers.collection import Listing, read_items
from diawork.data.readers.folder import meaning, patient_of
from diawork.data.readers.pixels import decoding
from diawork.data.readers.splitting import Item
from diawork.data.readers.types import Content
from diawork.data.sources import find_file, root_of

MOST_BYTES = 256 * 2**20


def read(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read the images that a manifest's split list names, from its folder."""
    return read_items(manifest, list_items(manifest, root, download=download))


def list_items(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Listing:
    """List the images that a manifest's split list names."""
    path = find_file(manifest, root, download=download)
    base = manifest.path_in(root_of(path, manifest), str(manifest.folder))
    with decoding(path, "this split list is damaged"):
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path.stat().st_size:,} bytes are too many for a split list (at most {MOST_BYTES:,}).")
        return Listing(base, list(_items(json.loads(path.read_bytes()), manifest)), {})


def _items(lists: Any, manifest: Manifest) -> Iterator[Item]:
    seen: dict[str, str] = {}
    for split, by_label in _pairs(lists, "splits"):
        name = meaning(split, SPLITS, manifest, "split")
        for label, files in _pairs(by_label, "labels"):
            if label == "unlabeled":
                continue
            known = manifest.classes.get(int(label), label) if label.isdecimal() and len(label) < 6 else label
            class_name = meaning(known, manifest.classes.values(), manifest, "class")
            for path in files if isinstance(files, list) else [files]:
                yield from _item(path, name, class_name, seen, manifest)


def _item(path: Any, split: str, class_name: str, seen: dict[str, str], manifest: Manifest) -> Iterator[Item]:
    if not isinstance(path, str):
        raise DataError(f"names {path!r} where a file should stand.")
    try:
        inside_root(path)
    except ValueError as error:
        raise DataError(f"the path {printable(path)!r} {error}.") from None
    if seen.setdefault(path, class_name) != class_name:
        raise DataError(f"{printable(path)} stands under two labels, {seen[path]} and {class_name}.")
    if manifest.roles[class_name] != "unused":
        yield Item(path, class_name, split, patient_of(path.rpartition("/")[2], manifest))


def _pairs(values: Any, what: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(values, dict):
        raise DataError(f"holds {type(values).__name__} where a mapping of {what} should stand.")
    yield from values.items()
