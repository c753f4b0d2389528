"""Opening a data set: by its name, by a manifest, or as a config wants it, changed on purpose for an ablation."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diawork.base.config import ExperimentConfig
from diawork.base.errors import DataError
from diawork.base.seeding import generator
from diawork.data.checks import missing_roles, seen_again, without_leaks
from diawork.data.images import ImageSet, Splits
from diawork.data.locations import cache_root
from diawork.data.manifests import FILE_KINDS, Manifest, load_manifest
from diawork.data.preprocess import resized
from diawork.data.readers import read_content
from diawork.data.store import Part


def load(
    dataset: str | Path | Manifest | ExperimentConfig = "phantom",
    root: Path | str | None = "",
    *,
    download: bool = False,
) -> Splits:
    """Open a data set by its name, by the path of a manifest of your own, by a manifest, or as a config wants it.

    ``root`` is the folder of the files; where it is "" or None those of ``data_roots`` are searched. A config brings
    the changes of its section ``data``. A set that is missing, damaged or not as its manifest says is a ``DataError``.
    """
    root = root or None
    if not isinstance(dataset, ExperimentConfig):
        manifest = dataset if isinstance(dataset, Manifest) else load_manifest(dataset)
        return _read(manifest, root, download=download)
    changes, usual = dataset.data, load_manifest(dataset.dataset).against_the_rest(dataset.data.normal_class)
    manifest = usual.with_lesions(size=changes.lesion_size, contrast=changes.lesion_contrast)
    splits = _read_at_size(manifest, changes.size, root, download=download)
    if manifest.phantom and manifest is not usual:
        splits = replace(splits, notes=[*splits.notes, f"Lesions dialled on purpose: {manifest.phantom.describe()}."])
    if changes.drop_leaks:
        splits = without_leaks(splits, cache=cache_root() / "data-checks")
    return contaminated(splits, changes.contamination) if changes.contamination else splits


def _read(manifest: Manifest, root: Path | str | None, *, download: bool) -> Splits:
    """Return the splits of a manifest, held against its counts."""
    content = read_content(manifest, root, download=download)
    sets = {split: _image_set(part, split, manifest) for split, part in content.parts.items()}
    _refuse_other_counts(sets, manifest, content.path or manifest.name)
    shortcuts = [f"Known shortcut: {text}" for text in manifest.shortcuts]
    beliefs = [f"Not verified: {text}" for text in manifest.uncertain]
    notes = [*manifest.notes, *shortcuts, *beliefs, *content.notes]
    if manifest.md5 not in (None, content.md5):
        other = f"{manifest.file} is not the published file (MD5 {content.md5}, published {manifest.md5})"
        notes.append(f"{other}; its counts per split and class are the published ones, so it is used.")
        warnings.warn(notes[-1], stacklevel=3)
    if "test" not in sets:
        hint = "Let the manifest's recipe make one, e.g. recipe: {test: 0.2, val: 0.1}."
        raise DataError("there is no test split.", path=manifest.name, hint=hint)
    if "val" not in sets:
        sets["val"] = replace(sets["train"].take([]), split="val")
    splits = Splits(
        sets["train"],
        sets["val"],
        sets["test"],
        manifest,
        notes=notes,
        source=content.source,
        md5=content.md5,
        folder=content.path if manifest.kind in FILE_KINDS else None,
    )
    for what in missing_roles(splits):
        hint = "Check the manifest: training needs normal images, an evaluation needs both roles."
        raise DataError(what, path=manifest.name, hint=hint)
    return splits


def _image_set(part: Part, split: str, manifest: Manifest) -> ImageSet:
    def tensor(values: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(values)) if isinstance(values, np.ndarray) else values

    anomalous = np.isin(part.class_names, [name for name, role in manifest.roles.items() if role == "anomalous"])
    columns = (part.class_names, anomalous, np.arange(len(part.images)))
    masks = tensor(part.masks)
    return ImageSet(tensor(part.images), *columns, split, manifest.name, masks, part.files, part.patients)


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


def _read_at_size(manifest: Manifest, size: int | None, root: Path | str | None, *, download: bool) -> Splits:
    """Return the splits at ``size`` px; image files are decoded at that size, other images resized in memory."""
    other = manifest.at_size(size)
    if other is manifest or manifest.kind in FILE_KINDS:
        return _read(other, root, download=download)
    splits = _read(manifest, root, download=download)
    train, val, test = (_resized(images, other) for images in splits.all())
    notes = [*splits.notes, f"Resized from {manifest.image.size} to {size} px ({manifest.resize}, antialiased)."]
    return Splits(train, val, test, other, notes=notes, source=splits.source)


def _resized(images: ImageSet, manifest: Manifest) -> ImageSet:
    size, channels = manifest.image.size, manifest.image.channels

    def at_size(values: Tensor) -> Tensor:
        rows = [torch.from_numpy(resized(x.numpy(), size, manifest.resize)) for x in values.float()]
        return torch.stack(rows) if rows else torch.zeros(0, channels, size, size)

    masks = None if images.masks is None else at_size(images.masks[:]) > 0.5
    return replace(images, images=at_size(images.images[:]), masks=masks)


def contaminated(splits: Splits, share: float) -> Splits:
    """Pass anomalous training images off as healthy until they are ``share`` of those called healthy.

    The same images whatever the run's seed, and those of a small share are among those of a larger one;
    none that stands in val or test, too, for that would be a leak and no contamination.
    """
    train = splits.train
    evaluated = {content for images in (splits.val, splits.test) for content in images.digests()}
    healthy, contents = int((~train.anomalous).sum()), train.digests()
    others = np.flatnonzero(train.anomalous & ~seen_again(splits))
    others = np.array([i for i in others if contents[i] not in evaluated], np.int64)
    wanted = round(share * healthy / (1 - share))
    if wanted > len(others):
        needed = f"contamination {share:g} needs {wanted} anomalous training images beside {healthy} healthy ones"
        there = f"there {'is' if len(others) == 1 else 'are'} {len(others) or 'none'}"
        what = f"{needed}; {there}, and none is taken from val or test."
        raise DataError(what, path=train.name, field="data.contamination")
    order = torch.randperm(len(others), generator=generator(0, "contamination", train.name)).numpy()
    anomalous = train.anomalous.copy()
    anomalous[others[order[:wanted]]] = False
    fitted = f"{wanted / (healthy + wanted):.0%} of the {healthy + wanted} images fitted on"
    note = f"Contaminated on purpose: {wanted} anomalous training images are passed off as healthy, {fitted}."
    train = replace(train, anomalous=anomalous, pixels_checked=True)
    return replace(splits, train=train, notes=[*splits.notes, note])
