"""From a list of image files to the splits of a set: what is left out, divided, decoded once and stored."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diawork.base.errors import DataError, did_you_mean, printable
from diawork.base.files import digest
from diawork.data.manifests import Manifest
from diawork.data.readers.medical import Frame
from diawork.data.readers.picture import read_image, read_mask
from diawork.data.readers.resizing import resized, with_channels
from diawork.data.readers.splitting import Item, shared_patients, split_items
from diawork.data.readers.store import FileFacts, StoredImages, StoredMasks, open_store
from diawork.data.readers.types import Content, Part
from diawork.data.sources import cache_root

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy", ".dcm", ".dicom", ".nii", ".nii.gz")
DECODER = 1  # raised where the same file gives other values than before


class Listing(NamedTuple):
    """The images of a set that are files: where their paths begin, what is said of each, what the disk knows."""

    base: Path
    items: list[Item]
    facts: dict[str, FileFacts]  # by path, of those already looked at


def read_items(manifest: Manifest, listing: Listing) -> Content:
    """Return the splits of a set of listed files."""
    base, items, facts = listing
    if not items:
        raise DataError("there is no image of a known class.", path=base)
    every = sorted(items)
    store = open_store(
        _store_folder(manifest, base, "images"),
        [facts.get(item.path) or _facts(base, item.path) for item in every],
        lambda path: _decoded(manifest, base, path),
        shape=(manifest.image.channels, manifest.image.size, manifest.image.size),
        dtype="uint8" if manifest.intensity is None else "uint16",
        spec=_spec(manifest),
    )
    kept, notes = kept_items(manifest, every)
    _refuse_bad({item.path: store.bad[item.path] for item in kept if item.path in store.bad}, len(kept), base)
    kept = split_items(kept, manifest.recipe) if manifest.recipe else kept
    row_of = {item.path: row for row, item in enumerate(every)}
    masks = _masks(manifest, base, kept)
    parts = {
        split: _part([item for item in kept if item.split == split], row_of, store.images, masks)
        for split in dict.fromkeys(("train", *sorted({item.split for item in kept})))
    }
    return Content(parts, _source(manifest), (*notes, *_shared_note(kept, manifest)), base)


def _part(
    items: list[Item], row_of: dict[str, int], images: StoredImages, masks: tuple[StoredMasks, dict[str, int]] | None
) -> Part:
    rows = np.array([row_of[item.path] for item in items], np.int64)
    names = np.array([item.class_name for item in items], dtype=str)
    lesions = None
    if masks:
        stored, row_of_mask = masks
        mask_rows = np.array([row_of_mask.get(item.mask, -1) for item in items], np.int64)
        lesions = StoredMasks(stored.values, stored.all_digests, mask_rows)
    patients = np.array([item.patient for item in items], dtype=str)
    return Part(images.take(rows), names, lesions, np.array([item.path for item in items], dtype=str), patients)


def kept_items(manifest: Manifest, items: list[Item]) -> tuple[list[Item], list[str]]:
    """Return the items that the manifest does not leave out, and a note of what it does."""
    paths = {item.path for item in items}
    for name in manifest.drop:
        if name not in paths:
            raise DataError(f"{name!r} is not an image of the set.", field="drop", hint=did_you_mean(name, paths))
    kept = [item for item in items if item.path not in set(manifest.drop)]
    n = len(manifest.drop)
    return kept, [f"Left out by the manifest: {n} image{'s' if n > 1 else ''} ({_some(manifest.drop)})."] if n else []


def _refuse_bad(bad: dict[str, str], n: int, base: Path) -> None:
    if bad:
        path, reason = next(iter(bad.items()))
        what = f"{len(bad):,} of {n:,} images cannot be used, first {printable(path)}: {reason}"
        hint = "Mend or remove them, or name them under drop in the manifest."
        raise DataError(what, path=base, hint=hint)


def _masks(manifest: Manifest, base: Path, items: Sequence[Item]) -> tuple[StoredMasks, dict[str, int]] | None:
    """Return the masks of a set and the row of each by its path, or nothing where no image has one."""
    paths = sorted({item.mask for item in items if item.mask})
    if not paths:
        return None
    size = manifest.image.size

    def decode(path: str) -> np.ndarray:
        file, frame = _frame_of(path, manifest)
        return resized(read_mask(base / file, frame), size, manifest.resize).round()

    folder, spec = _store_folder(manifest, base, "masks"), _spec(manifest)
    facts = [_facts(base, path) for path in paths]
    store = open_store(folder, facts, decode, shape=(1, size, size), dtype="uint8", spec=spec)
    _refuse_bad(store.bad, len(paths), base)
    images = store.images
    return StoredMasks(images.values, images.all_digests), {path: row for row, path in enumerate(paths)}


def _decoded(manifest: Manifest, base: Path, path: str) -> np.ndarray:
    file, frame = _frame_of(path, manifest)
    image, facts = read_image(base / file, window=manifest.intensity, frame=frame).image, manifest.image
    return with_channels(resized(image, facts.size, manifest.resize), facts.channels)


def _frame_of(path: str, manifest: Manifest) -> tuple[str, Frame]:
    """Return the file and the picture in it that "file#12" means; without a number the manifest chooses."""
    file, mark, number = path.rpartition("#")
    return (file, int(number)) if mark and number.isdecimal() and len(number) < 6 else (path, manifest.frame)


def _spec(manifest: Manifest) -> dict[str, object]:
    return {
        "decoder": DECODER, "resize": manifest.resize, "intensity": manifest.intensity, "frame": manifest.frame,
    }  # fmt: skip


def _store_folder(manifest: Manifest, base: Path, what: str) -> Path:
    facts = [what, str(base), manifest.kind, manifest.file, manifest.image.model_dump(), _spec(manifest)]
    return cache_root() / "store" / f"{manifest.name}-{digest(facts)}"


def _facts(base: Path, path: str) -> FileFacts:
    file = path.rpartition("#")[0] if "#" in path else path
    try:
        facts = os.stat(base / file)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path=base / path) from None
    return FileFacts(path, facts.st_size, facts.st_mtime_ns)


def _source(manifest: Manifest) -> str:
    made = f", splits made by patient with seed {manifest.recipe.seed}" if manifest.recipe else ""
    return f"files under {manifest.place}{made}"


def _shared_note(items: Sequence[Item], manifest: Manifest) -> list[str]:
    patients, trained, evaluated = shared_patients(items)
    if not patients:
        return []
    who = f"{len(patients)} patient{'s stand' if len(patients) > 1 else ' stands'} in train and in val or test"
    what = f"({trained} and {evaluated} images; {_some(patients)})"
    return [f"{who} {what}: kept out of splits made of train, and of contamination."]


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
