"""The images of a data set, split by split, and what is known about each."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from diawork.base.errors import DataError
from diawork.base.files import digest
from diawork.base.shown import Shown
from diawork.data.manifests import Manifest
from diawork.data.store import StoredImages, StoredMasks

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
    files: np.ndarray | None = None  # str (N,) path of each image, where it is a file of its own
    patients: np.ndarray | None = None  # str (N,), "" where not known
    pixels_checked: InitVar[bool] = False  # true of a selection from a set that was checked

    def __post_init__(self, pixels_checked: bool) -> None:
        n, images = len(self.images), self.images
        if images.ndim != 4 or images.dtype != torch.float32:
            self._refuse(f"images are {images.dtype} {tuple(images.shape)}, wanted float32 (N, C, H, W)")
        if self.masks is not None and self.masks.shape != (n, 1, *images.shape[2:]):
            self._refuse(f"masks are {tuple(self.masks.shape)}, wanted {(n, 1, *images.shape[2:])}")
        for name in ("class_names", "anomalous", "index", "files", "patients"):
            column = getattr(self, name)
            if column is not None and column.shape != (n,):
                self._refuse(f"{name} is {column.shape}, wanted ({n},)")
        if pixels_checked or not isinstance(images, Tensor) or not n:
            return
        if not (images.min() >= 0 and images.max() <= 1):  # false for NaN, too
            bad = (~((images >= 0) & (images <= 1)).flatten(1).all(1)).nonzero()
            self._refuse(f"{len(bad)} of {n} images hold NaN or values outside [0, 1], first image {int(bad[0])}")

    def _refuse(self, what: str) -> None:
        raise DataError(f"{what}.", path=self.name, field=self.split)

    @functools.cached_property
    def identity(self) -> str:
        """Short SHA-256 of pixels, class names, roles and indices; read once, when first asked for."""
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
        return replace(self, pixels_checked=True, **{name: some(getattr(self, name)) for name in columns})

    def loaded(self) -> Self:
        """Return the same images in memory."""
        masks = self.masks if self.masks is None else self.masks[:]
        return replace(self, images=self.images[:], masks=masks, pixels_checked=True)

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


@dataclass(frozen=True, eq=False, repr=False)
class Splits(Shown):
    """The splits of one data set; ``val`` is empty where the source has none."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    manifest: Manifest
    notes: list[str] = field(default_factory=list)  # warnings that a report must show
    source: str = ""  # where the images came from, without machine paths
    md5: str | None = None  # of the file, where the set is one
    folder: Path | None = None  # where the paths of image files begin

    @functools.cached_property
    def identity(self) -> str:
        """Short digest of the set's name and the content of all splits."""
        return digest([self.manifest.name, *(images.identity for images in self.all())])

    def shown(self) -> tuple[str, Mapping[str, object]]:
        """Return the set's title, and what each split holds."""
        image = self.manifest.image
        rows = {
            part.split: f"{int((~part.anomalous).sum()):,} healthy, {int(part.anomalous.sum()):,} anomalous"
            for part in self.all()
        }
        size = {"image": f"{image.size} × {image.size} px, {'colour' if image.channels == 3 else 'grey'}"}
        return f"{self.manifest.name}: {self.manifest.title}", size | rows

    def all(self) -> tuple[ImageSet, ImageSet, ImageSet]:
        """Return train, val and test."""
        return self.train, self.val, self.test


def at_once(images: Images, most: int) -> int:
    """Return how many images to hold at a time: ``most`` of 32 px, and fewer of larger ones, down to 16."""
    return min(most, max(16, most * 32**2 // (images.shape[-1] * images.shape[-2])))


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
