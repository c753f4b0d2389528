"""The reader of folders of images, whose levels say split, class and patient as the manifest lists them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from diawork.base.errors import DataError, did_you_mean, printable
from diawork.data.facts import SPLITS
from diawork.data.manifests import Manifest
from diawork.data.readers.collection import SUFFIXES, Listing, read_items
from diawork.data.readers.splitting import Item
from diawork.data.readers.store import FileFacts
from diawork.data.readers.types import Content
from diawork.data.sources import find_folder

MOST_DEPTH = 16  # links may lead in circles


def read(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read the images under a manifest's folder in ``root``."""
    return read_items(manifest, list_items(manifest, root))


def list_items(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Listing:
    """List the images under a manifest's folder in ``root``."""
    base = find_folder(manifest, root)
    facts = {file.path: file for file in walk(base)}
    layout = manifest.layout or ()
    items = [_item(path, layout, manifest, base) for path in facts]
    return Listing(base, [item for item in items if item.class_name], facts)


def walk(base: Path) -> Iterator[FileFacts]:
    """Yield every image file under a folder, whatever its depth; hidden ones and other suffixes are passed over."""
    folders = [""]
    while folders:
        inside = folders.pop()
        try:
            entries = sorted(os.scandir(base / inside), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror}).", path=base / inside) from None
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if entry.is_dir() and path.count("/") < MOST_DEPTH:
                folders.append(path)
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                known = entry.stat()
                yield FileFacts(path, known.st_size, known.st_mtime_ns)


def _item(path: str, layout: tuple[str, ...], manifest: Manifest, base: Path) -> Item:
    """Return what a path says; the class is "" where it is unused."""
    *folders, name = path.split("/")
    if len(folders) != len(layout):
        wanted = "/".join(f"<{level}>" for level in layout)
        what = f"{printable(path)} lies {len(folders)} folders deep; the layout is {wanted}/<file>."
        raise DataError(
            what, path=base, hint="Set layout in the manifest, one word a level: split, class, patient, any."
        )
    said = dict(zip(layout, folders, strict=True))
    split = meaning(said.get("split", "train"), SPLITS, manifest, "split")
    class_name = meaning(said["class"], manifest.classes.values(), manifest, "class")
    patient = said.get("patient", "") or patient_of(name, manifest)
    return Item(path, "" if manifest.roles[class_name] == "unused" else class_name, split, patient)


def meaning(word: str, allowed: object, manifest: Manifest, what: str) -> str:
    """Return the class or split that a folder's or cell's word stands for."""
    names = list(allowed)  # type: ignore[call-overload]
    name = manifest.aliases.get(word, word)
    if name not in names:
        hint = f"{did_you_mean(name, names)} A word of another meaning goes into the manifest's aliases."
        raise DataError(f"{word!r} is not a {what} of the set.", path=manifest.name, field=what, hint=hint)
    return name


def patient_of(name: str, manifest: Manifest) -> str:
    """Return the patient that a file's name names by the manifest's pattern; "" without a pattern."""
    if manifest.patient is None:
        return ""
    match = re.search(manifest.patient, name)
    patient = next((group for group in match.groups() if group), "") if match else ""
    if not patient:
        what = f"{printable(name)} names no patient by the pattern {manifest.patient!r}."
        raise DataError(what, path=manifest.name, field="patient", hint="Widen the pattern, or leave the image out.")
    return patient
