"""A run's data set: as its manifest says, or changed on purpose for an ablation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from diawork.base.config import ExperimentConfig
from diawork.base.errors import DataError
from diawork.base.seeding import generator
from diawork.data.images import Splits, load
from diawork.data.manifests import load_manifest


def open_data(cfg: ExperimentConfig, root: Path | str | None = None) -> Splits:
    """Open the data set of a config with the changes of its section ``data``."""
    manifest = load_manifest(cfg.dataset)
    dialled = manifest.with_lesions(size=cfg.data.lesion_size, contrast=cfg.data.lesion_contrast)
    splits = load(dialled, root)
    if dialled.phantom and dialled is not manifest:
        splits = replace(splits, notes=[*splits.notes, f"Lesions dialled on purpose: {dialled.phantom.describe()}."])
    return contaminated(splits, cfg.data.contamination) if cfg.data.contamination else splits


def contaminated(splits: Splits, share: float) -> Splits:
    """Pass anomalous training images off as healthy until they are ``share`` of those called healthy.

    The same images whatever the run's seed, and those of a small share are among those of a larger one;
    none that stands in val or test, too, for that would be a leak and no contamination.
    """
    train = splits.train
    evaluated = {pixels.tobytes() for images in (splits.val, splits.test) for pixels in images.images.numpy()}
    healthy, rows = int((~train.anomalous).sum()), np.flatnonzero(train.anomalous)
    others = np.array([i for i in rows if train.images[i].numpy().tobytes() not in evaluated], np.int64)
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
