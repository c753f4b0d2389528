"""Opening a data set by name: images in [0, 1] at their own size, classes by name, counts checked."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diawork.base.errors import DataError, printable
from diawork.base.files import digest
from diawork.base.seeding import key
from diawork.data.manifests import Manifest, load_manifest
from diawork.data.phantom import make_phantom
from diawork.data.readers.npz import Arrays, decoded_bytes, read_npz, refuse_beyond_memory


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with what is known about each; checked when made."""

    images: Tensor  # float32 (N, C, H, W) in [0, 1]
    class_names: np.ndarray  # str (N,)
    anomalous: np.ndarray  # bool (N,)
    index: np.ndarray  # int64 (N,) position in the source split
    split: str  # "train", "val" or "test"
    name: str  # of the data set
    masks: Tensor | None = None  # bool (N, 1, H, W), lesions where known
    identity: str = field(default="")  # short SHA-256 of the content

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            self._refuse(f"images are {self.images.dtype} {tuple(self.images.shape)}, wanted float32 (N, C, H, W)")
        if self.masks is not None and self.masks.shape != (n, 1, *self.images.shape[2:]):
            self._refuse(f"masks are {tuple(self.masks.shape)}, wanted {(n, 1, *self.images.shape[2:])}")
        for column in ("class_names", "anomalous", "index"):
            if getattr(self, column).shape != (n,):
                self._refuse(f"{column} is {getattr(self, column).shape}, wanted ({n},)")
        if n and not (self.images.min() >= 0 and self.images.max() <= 1):  # false for NaN, too
            bad = ~((self.images >= 0) & (self.images <= 1)).flatten(1).all(1)
            first = int(bad.nonzero()[0])
            self._refuse(f"{int(bad.sum())} of {n} images hold NaN or values outside [0, 1], first image {first}")
        if not self.identity:
            object.__setattr__(self, "identity", self._content())

    def _refuse(self, what: str) -> None:
        raise DataError(f"{what}.", path=self.name, field=self.split)

    def _content(self) -> str:
        whole = hashlib.sha256(repr((tuple(self.images.shape), self.class_names.tolist())).encode())
        for values in (self.images.cpu().numpy(), self.anomalous, self.index):
            whole.update(np.ascontiguousarray(values).data)
        return whole.hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, idx: Any) -> ImageSet:
        """Return the images at positions ``idx`` (whole numbers or a boolean mask (N,))."""
        idx = np.asarray(idx)
        rows = np.flatnonzero(idx) if idx.dtype == bool else idx.astype(np.int64).reshape(-1)
        at = torch.from_numpy(rows)
        masks = None if self.masks is None else self.masks[at]
        columns = (self.class_names[rows], self.anomalous[rows], self.index[rows])
        return ImageSet(self.images[at], *columns, self.split, self.name, masks)

    def normal(self) -> ImageSet:
        """Return the healthy images."""
        return self.take(~self.anomalous)


@dataclass(frozen=True, eq=False)
class Splits:
    """The splits of one data set; ``val`` is empty where the source has none."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    manifest: Manifest
    identity: str = field(default="")  # short digest of the content of all splits
    notes: list[str] = field(default_factory=list)  # warnings that a report must show
    source: str = ""  # where the images came from, without machine paths

    def __post_init__(self) -> None:
        if not self.identity:
            parts = [self.manifest.name, *(images.identity for images in self.all())]
            object.__setattr__(self, "identity", digest(parts))

    def all(self) -> tuple[ImageSet, ImageSet, ImageSet]:
        """Return train, val and test."""
        return self.train, self.val, self.test


def load(name: str | Path | Manifest = "phantom", root: Path | str | None = None, *, download: bool = False) -> Splits:
    """Open a data set by its name, by the path of a manifest of your own, or by a manifest.

    ``root`` is the folder of the files; without it $DIAWORK_DATA, $DIAWORK_HOME/data and
    ~/.cache/diawork are searched. Raises ``UsageError`` for an unknown name or a bad manifest and
    ``DataError`` for missing, damaged or mislabelled data.
    """
    manifest = name if isinstance(name, Manifest) else load_manifest(name)
    if manifest.kind == "phantom":
        return _phantom(manifest.model_dump_json())
    return _open(manifest, _find(manifest, root, download=download))


def _open(manifest: Manifest, path: Path) -> Splits:
    """Read a file and hold it against its manifest."""
    arrays, md5, notes = read_npz(path, manifest)
    sets = {split: _named(values, split, manifest, path) for split, values in arrays.items()}
    _check_counts(sets, manifest, path)
    if manifest.md5 not in (None, md5):
        notes.append(
            f"{manifest.file} is not the published file (MD5 {md5}, published {manifest.md5}); "
            "its counts per split and class are the published ones, so it is used."
        )
        warnings.warn(notes[-1], stacklevel=3)
    return _assemble(sets, manifest, f"{manifest.file}, MD5 {md5}", notes)


def _named(arrays: Arrays, split: str, manifest: Manifest, path: Path) -> ImageSet:
    """Give every image its class name and role; a label that the manifest does not know is refused."""
    labels, position, counts = np.unique(arrays.labels, return_inverse=True, return_counts=True)
    for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
        if label not in manifest.classes:
            known = ", ".join(f"{k}: {v}" for k, v in manifest.classes.items())
            raise DataError(f"{count} images have the label {label}; the classes are {known}.",
                            path=path, field=f"{split}_labels")  # fmt: skip
    names = np.array([manifest.classes[label] for label in labels.tolist()])[position]
    return _image_set(torch.from_numpy(arrays.images), names, split, manifest)


def _image_set(images: Tensor, names: np.ndarray, split: str, manifest: Manifest, masks: Any = None) -> ImageSet:
    anomalous = np.array([manifest.roles[name] == "anomalous" for name in names], dtype=bool)
    return ImageSet(images, names, anomalous, np.arange(len(names)), split, manifest.name, masks)


def _check_counts(sets: dict[str, ImageSet], manifest: Manifest, path: Path) -> None:
    for split, wanted in manifest.counts.items():
        names = sets[split].class_names
        found = {name: int((names == name).sum()) for name in wanted}
        if found != wanted:
            table = "; ".join(
                f"{name}: {found[name]:,} in the file, {n:,} in the manifest" for name, n in wanted.items()
            )
            raise DataError(f"the counts differ: {table}.", path=path, field=split,
                            hint="Another version of the data set needs a manifest of its own.")  # fmt: skip


def _assemble(sets: dict[str, ImageSet], manifest: Manifest, source: str, notes: list[str]) -> Splits:
    """Put the splits together; an absent val is empty. The protocol's roles must be there."""
    shape = (0, manifest.image.channels, manifest.image.size, manifest.image.size)
    empty = _image_set(torch.zeros(shape), np.array([], dtype=str), "val", manifest)
    splits = Splits(
        sets["train"], sets.get("val", empty), sets["test"], manifest, notes=[*manifest.notes, *notes], source=source
    )
    if not (~splits.train.anomalous).any():
        raise DataError("no normal image to train on.", path=manifest.name, field="train",
                        hint="Check the manifest: at least one class of train must be normal.")  # fmt: skip
    for images in (splits.val, splits.test):
        both = images.anomalous.any() and not images.anomalous.all()
        if not both and (len(images) or images.split == "test"):
            n = int(images.anomalous.sum())
            raise DataError(f"{len(images) - n} normal and {n} anomalous images: an evaluation needs both.",
                            path=manifest.name, field=images.split)  # fmt: skip
    return splits


# --- the phantom -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _phantom(manifest_json: str) -> Splits:
    """Make the phantom that a manifest describes; within a process it is made once."""
    manifest = Manifest.model_validate_json(manifest_json)
    needed = sum(decoded_bytes(manifest, split) for split in manifest.counts)
    refuse_beyond_memory(2 * needed, manifest.name)  # bytes, masks and floats
    facts = manifest.phantom
    spec = facts.spec(manifest.image.size)
    sets = {}
    for split, counts in manifest.counts.items():
        names = np.repeat(list(counts), list(counts.values()))
        anomalous = np.array([manifest.roles[name] == "anomalous" for name in names], dtype=bool)
        pixels, masks = make_phantom(spec, len(names), anomalous=anomalous, seed=key(facts.seed, "phantom", split))
        images = torch.from_numpy(np.divide(pixels[:, None], 255, dtype=np.float32))
        sets[split] = _image_set(images, names, split, manifest, torch.from_numpy(masks[:, None]))
    source = f"made by diawork: {facts.kind} phantom, seed {facts.seed}; lesions: {facts.describe()}"
    return _assemble(sets, manifest, source, [])


# --- files -------------------------------------------------------------------------------------------


def data_roots(root: Path | str | None = None) -> list[Path]:
    """Return the folders searched for data files, first to last."""
    if root is not None:
        return [Path(root)]
    home = os.environ.get("DIAWORK_HOME")
    named = [os.environ.get("DIAWORK_DATA"), os.path.join(home, "data") if home else None]
    return [Path(folder) for folder in named if folder] + [Path(os.path.expanduser("~/.cache/diawork"))]


def _find(manifest: Manifest, root: Path | str | None, *, download: bool) -> Path:
    """Return the data file, downloading it where that was asked for."""
    roots = data_roots(root)
    for folder in roots:
        path = manifest.path_in(folder)
        try:
            if path.is_file():
                return path
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror}).", path=path) from None
        if path.exists():
            raise DataError("not a file.", path=path)
    if download:
        return _download(manifest, roots[0])
    how = f"`diawork data download {manifest.name}` gets it from {''.join(manifest.url[:1])} ({manifest.licence}), or"
    raise DataError(
        f"{manifest.file} was not found; looked in {', '.join(map(printable, roots))}.",
        path=manifest.name,
        hint=f"{how if manifest.url else 'Please'} set DIAWORK_DATA to the folder that holds it.",
    )


def _download(manifest: Manifest, folder: Path) -> Path:
    """Fetch the file into ``folder``; it gets its name only once its checksum is right."""
    import pooch

    target = manifest.path_in(folder)
    reason = "the manifest names no url"
    for url in manifest.url:
        try:
            pooch.retrieve(
                url,
                known_hash=f"md5:{manifest.md5}" if manifest.md5 else None,
                fname=target.name,
                path=target.parent,
                downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=60),
            )
            return target
        except Exception as error:  # requests, urllib3, ssl and pooch each raise their own
            reason = f"{url}: {' '.join(str(error).split())[:300]}"
    raise DataError(
        f"the download failed ({reason}).",
        path=manifest.name,
        hint=f"Wanted in {target.parent} with MD5 {manifest.md5}; you may put the file there by hand.",
    )


# --- batches and words -------------------------------------------------------------------------------


def batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield ⌈n / batch_size⌉ index tensors (batch_size,) that visit 0 … n−1 in random order.

    The last one is filled up from the start of the order, so that no batch is smaller than the
    others (BatchNorm and the contrastive loss need company); with n < batch_size the one batch holds all n.
    """
    if n < 1 or batch_size < 1:
        raise DataError(f"{n} images in batches of {batch_size}: both must be at least 1.")
    order = torch.randperm(n, generator=generator)
    for start in range(0, n, batch_size):
        missing = max(0, start + batch_size - n) if n >= batch_size else 0
        yield torch.cat([order[start : start + batch_size], order[:missing]])


def describe(splits: Splits) -> str:
    """Return counts per split and class, size, channels, licence, source and notes as plain text."""
    manifest = splits.manifest
    size, channels = manifest.image.size, manifest.image.channels
    heads = [f"{name} ({manifest.roles[name]})" for name in manifest.classes.values()]
    lines = [
        f"{manifest.name}: {manifest.title}",
        f"images   {size} × {size} px, {channels} channel{'s' if channels > 1 else ''}, identity {splits.identity}",
        "split    " + "  ".join(heads),
    ]
    for images in splits.all():
        counts = [int((images.class_names == name).sum()) for name in manifest.classes.values()]
        cells = [f"{count:>{len(head)},}" for head, count in zip(heads, counts, strict=True)]
        lines.append(f"{images.split:<9}" + "  ".join(cells))
    lines += [
        f"method   dissolving steps {manifest.t_range[0]}-{manifest.t_range[1]}, bridge {manifest.bridge}",
        f"licence  {manifest.licence}",
        f"cite     {manifest.citation}",
        f"source   {splits.source}",
        *(f"note     {note}" for note in splits.notes),
    ]
    return "\n".join(lines)
