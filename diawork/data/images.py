"""Opening a data set by name: images in [0, 1] at their own size, classes by name, counts checked."""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from diawork.base.errors import DataError
from diawork.base.files import digest
from diawork.data.manifests import Manifest, load_manifest
from diawork.data.readers import Part, read_content
from diawork.data.readers.store import StoredImages, StoredMasks

Images = Tensor | StoredImages  # float32 (N, C, H, W) in [0, 1], in memory or made a batch at a time


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with what is known about each; checked when made."""

    images: Images  # float32 (N, C, H, W) in [0, 1]
    class_names: np.ndarray  # str (N,)
    anomalous: np.ndarray  # bool (N,)
    index: np.ndarray  # int64 (N,) position in the source split
    split: str  # "train", "val" or "test"
    name: str  # of the data set
    masks: Tensor | StoredMasks | None = None  # bool (N, 1, H, W), lesions where known
    identity: str = field(default="")  # short SHA-256 of the content
    files: np.ndarray | None = None  # str (N,) path of each image, where it is a file of its own
    patients: np.ndarray | None = None  # str (N,), "" where not known

    def __post_init__(self) -> None:
        n, images = len(self.images), self.images
        if images.ndim != 4 or images.dtype != torch.float32:
            self._refuse(f"images are {images.dtype} {tuple(images.shape)}, wanted float32 (N, C, H, W)")
        if self.masks is not None and self.masks.shape != (n, 1, *images.shape[2:]):
            self._refuse(f"masks are {tuple(self.masks.shape)}, wanted {(n, 1, *images.shape[2:])}")
        for name in ("class_names", "anomalous", "index", "files", "patients"):
            column = getattr(self, name)
            if column is not None and column.shape != (n,):
                self._refuse(f"{name} is {column.shape}, wanted ({n},)")
        if isinstance(images, Tensor) and n and not (images.min() >= 0 and images.max() <= 1):  # false for NaN, too
            bad = (~((images >= 0) & (images <= 1)).flatten(1).all(1)).nonzero()
            self._refuse(f"{len(bad)} of {n} images hold NaN or values outside [0, 1], first image {int(bad[0])}")
        if not self.identity:
            object.__setattr__(self, "identity", self._content())

    def _refuse(self, what: str) -> None:
        raise DataError(f"{what}.", path=self.name, field=self.split)

    def _content(self) -> str:
        whole = hashlib.sha256(repr((tuple(self.images.shape), self.class_names.tolist())).encode())
        images = self.images
        pixels = images.digests if isinstance(images, StoredImages) else images.cpu().numpy()
        for values in (pixels, self.anomalous, self.index):
            whole.update(np.ascontiguousarray(values).data)
        return whole.hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Any) -> Self:
        """Return the images at positions ``rows`` (whole numbers or a boolean mask (N,))."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64).reshape(-1)

        def some(values: Any) -> Any:
            if isinstance(values, StoredImages):
                return values.take(rows)
            return values if values is None else values[torch.from_numpy(rows) if isinstance(values, Tensor) else rows]

        columns = ("images", "class_names", "anomalous", "index", "masks", "files", "patients")
        return replace(self, identity="", **{name: some(getattr(self, name)) for name in columns})

    def loaded(self) -> Self:
        """Return the same images in memory."""
        masks = self.masks if self.masks is None else self.masks[:]
        return replace(self, images=self.images[:], masks=masks)

    def batches(self, size: int = 256) -> Iterator[Tensor]:
        """Yield the images in order, ``size`` at a time, or fewer where they are larger than 32 px."""
        return iter(self.images.split(at_once(self.images, size)))

    def digests(self) -> list[bytes]:
        """Return what is equal for equal images of one data set, and for no others."""
        if isinstance(self.images, StoredImages):
            return [row.tobytes() for row in self.images.digests]
        return [hashlib.sha256(pixels.tobytes()).digest() for pixels in self.images.numpy()]

    def normal(self) -> Self:
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
    md5: str | None = None  # of the file, where the set is one

    def __post_init__(self) -> None:
        if not self.identity:
            parts = [self.manifest.name, *(images.identity for images in self.all())]
            object.__setattr__(self, "identity", digest(parts))

    def all(self) -> tuple[ImageSet, ImageSet, ImageSet]:
        """Return train, val and test."""
        return self.train, self.val, self.test


def at_once(images: Images, most: int) -> int:
    """Return how many images to hold at a time: ``most`` of 32 px, and fewer of larger ones, down to 16."""
    return min(most, max(16, most * 32**2 // (images.shape[-1] * images.shape[-2])))


def load(name: str | Path | Manifest = "phantom", root: Path | str | None = None, *, download: bool = False) -> Splits:
    """Open a data set by its name, by the path of a manifest of your own, or by a manifest.

    ``root`` is the folder of the files; without it those of ``data_roots`` are searched.
    """
    manifest = name if isinstance(name, Manifest) else load_manifest(name)
    content = read_content(manifest, root, download=download)
    sets = {split: _image_set(part, split, manifest) for split, part in content.parts.items()}
    _refuse_other_counts(sets, manifest, content.path or manifest.name)
    shortcuts = [f"Known shortcut: {text}" for text in manifest.shortcuts]
    beliefs = [f"Not verified: {text}" for text in manifest.uncertain]
    notes = [*manifest.notes, *shortcuts, *beliefs, *content.notes]
    if manifest.md5 not in (None, content.md5):
        other = f"{manifest.file} is not the published file (MD5 {content.md5}, published {manifest.md5})"
        notes.append(f"{other}; its counts per split and class are the published ones, so it is used.")
        warnings.warn(notes[-1], stacklevel=2)
    if "test" not in sets:
        hint = "Let the manifest's recipe make one, e.g. recipe: {test: 0.2, val: 0.1}."
        raise DataError("there is no test split.", path=manifest.name, hint=hint)
    if "val" not in sets:
        sets["val"] = replace(sets["train"].take([]), split="val", identity="")
    splits = Splits(
        sets["train"], sets["val"], sets["test"], manifest, notes=notes, source=content.source, md5=content.md5
    )
    for what in missing_roles(splits):
        hint = "Check the manifest: training needs normal images, an evaluation needs both roles."
        raise DataError(what, path=manifest.name, hint=hint)
    return splits


def _image_set(part: Part, split: str, manifest: Manifest) -> ImageSet:
    anomalies = [name for name, role in manifest.roles.items() if role == "anomalous"]
    columns = (part.class_names, np.isin(part.class_names, anomalies), np.arange(len(part.images)))
    images, masks = _tensor(part.images), None if part.masks is None else _tensor(part.masks)
    made = ImageSet(images, *columns, split, manifest.name, masks)
    return replace(made, files=part.files, patients=part.patients)


def _tensor(values: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(values)) if isinstance(values, np.ndarray) else values


def _refuse_other_counts(sets: dict[str, ImageSet], manifest: Manifest, path: Path | str) -> None:
    for split, size in manifest.images.items():
        if len(sets[split]) != size:
            what = f"{len(sets[split]):,} images in the file, {size:,} in the manifest."
            raise DataError(what, path=path, field=split, hint="Another version needs a manifest of its own.")
    for split, wanted in manifest.counts.items():
        present = {name: int((sets[split].class_names == name).sum()) for name in wanted}
        if present != wanted:
            table = (f"{name}: {present[name]:,} in the file, {n:,} in the manifest" for name, n in wanted.items())
            hint = "Another version of the data set needs a manifest of its own."
            raise DataError(f"the counts differ: {'; '.join(table)}.", path=path, field=split, hint=hint)


def missing_roles(splits: Splits) -> Iterator[str]:
    """Say which splits the protocol cannot use: train needs normal images, an evaluation both roles."""
    if splits.train.anomalous.all():
        yield "train holds no normal image."
    for images in (splits.val, splits.test):
        anomalous = int(images.anomalous.sum())
        absent = images.split == "val" and not len(images)
        if anomalous in (0, len(images)) and not absent:
            yield f"{images.split} holds {len(images) - anomalous} normal and {anomalous} anomalous images."


def batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield ⌈n / batch_size⌉ index tensors (batch_size,) that visit 0 … n−1 in random order.

    The last one is filled up from the start of the order, so that no batch is smaller than the
    others (BatchNorm and the contrastive loss need company); with n < batch_size the one batch holds all n.
    """
    if n < 1 or batch_size < 1:
        raise DataError(f"{n} images in batches of {batch_size}: both must be at least 1.")
    order = torch.randperm(n, generator=generator)
    if n >= batch_size:
        order = torch.cat([order, order[: -n % batch_size]])
    yield from order.split(batch_size)


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
        *([f"page     {manifest.source}"] if manifest.source else []),
        f"source   {splits.source}",
        *(f"note     {note}" for note in splits.notes),
    ]
    return "\n".join(lines)
