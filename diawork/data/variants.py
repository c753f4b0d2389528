"""A run's data set: as its manifest says, or changed on purpose for an ablation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diawork.base.config import ExperimentConfig
from diawork.base.errors import DataError
from diawork.base.seeding import generator
from diawork.data.checks import seen_again, without_leaks
from diawork.data.images import ImageSet, Splits, load
from diawork.data.manifests import UNCOUNTED, Manifest, load_manifest
from diawork.data.readers.resizing import resized
from diawork.data.sources import cache_root


def open_data(cfg: ExperimentConfig, root: Path | str | None = None) -> Splits:
    """Open the data set of a config with the changes of its section ``data``."""
    manifest = load_manifest(cfg.dataset).against_the_rest(cfg.data.normal_class)
    dialled = manifest.with_lesions(size=cfg.data.lesion_size, contrast=cfg.data.lesion_contrast)
    splits = _load_at(dialled, cfg.data.size, root)
    if dialled.phantom and dialled is not manifest:
        splits = replace(splits, notes=[*splits.notes, f"Lesions dialled on purpose: {dialled.phantom.describe()}."])
    if cfg.data.drop_leaks:
        splits = without_leaks(splits, cache=cache_root() / "data-checks")
    return contaminated(splits, cfg.data.contamination) if cfg.data.contamination else splits


def _load_at(manifest: Manifest, size: int | None, root: Path | str | None) -> Splits:
    """Open a data set at ``size`` px; files of their own are decoded at that size, other images resized in memory."""
    other = manifest.at_size(size)
    if other is manifest or manifest.kind in UNCOUNTED:
        return load(other, root)
    splits = load(manifest, root)
    train, val, test = (_resized(images, other) for images in splits.all())
    notes = [*splits.notes, f"Resized from {manifest.image.size} to {size} px ({manifest.resize}, antialiased)."]
    return Splits(train, val, test, other, notes=notes, source=splits.source)


def _resized(images: ImageSet, manifest: Manifest) -> ImageSet:
    size, channels = manifest.image.size, manifest.image.channels

    def at_size(values: Tensor) -> Tensor:
        rows = [torch.from_numpy(resized(x.numpy(), size, manifest.resize)) for x in values.float()]
        return torch.stack(rows) if rows else torch.zeros(0, channels, size, size)

    masks = None if images.masks is None else at_size(images.masks[:]) > 0.5
    return replace(images, images=at_size(images.images[:]), masks=masks, identity="")


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
    train = replace(train, anomalous=anomalous, identity="")
    return replace(splits, train=train, notes=[*splits.notes, note], identity="")
