"""Before any work: do data, encoder and DDPM fit each other, by the manifest alone or by the data as opened?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from diawork.base.config import DataConfig, ExperimentConfig, bridgeable
from diawork.base.errors import UsageError
from diawork.data.manifests import Manifest, load_manifest
from diawork.detectors.registry import CONTROLS, entry_of
from diawork.method.operators import operator_class
from diawork.method.pipelines.folder import PipelineFolder, require_diffusers
from diawork.runs.methods import fills_slot, has_slot, method_config, needs_ddpm, resolve, slot_folder

if TYPE_CHECKING:
    from diawork.data.images import Splits


UNTOLD = 10_000_000  # stands for counts that the manifest leaves to the opened files


@dataclass(frozen=True)
class _Images:
    """What must fit of a data set."""

    name: str
    channels: int
    height: int  # px
    width: int
    bridge: str
    healthy: int  # training images
    val: int  # images


def _images(facts: Splits | Manifest) -> _Images:
    if not isinstance(facts, Manifest):
        channels, height, width = facts.train.images.shape[1:]
        healthy, name = int((~facts.train.anomalous).sum()), facts.train.name
        return _Images(name, channels, height, width, facts.manifest.bridge, healthy, len(facts.val))
    size, val = facts.image.size, sum(facts.counts.get("val", {}).values()) if facts.counts else UNTOLD
    return _Images(facts.name, facts.image.channels, size, size, facts.bridge, _training(facts, "normal"), val)


def _training(manifest: Manifest, role: str) -> int:
    if not manifest.counts:
        return UNTOLD
    return sum(n for name, n in manifest.counts["train"].items() if manifest.roles[name] == role)


def refuse_misfits(cfg: ExperimentConfig, facts: Splits | Manifest) -> None:
    """Refuse, in one sentence and before any work, a config that cannot run on this data set.

    ``facts``: the data as opened, or the manifest alone, which is enough for a dry run.
    """
    if isinstance(facts, Manifest):
        facts = facts.against_the_rest(cfg.data.normal_class).at_size(cfg.data.size)
    cfg, images = resolve(cfg, facts), _images(facts)
    if isinstance(facts, Manifest):  # else: the changes are made
        _refuse_changes(cfg.data, facts)
    entry_of(cfg.detector).require()
    sections = entry_of(cfg.detector).uses
    if cfg.score.evaluate == "val" and not images.val:
        raise UsageError(f"{images.name} has no validation images to score.", hint="Use score.evaluate='test'.")
    if "train" in sections:
        _refuse_training(cfg, images)
    if "encoder" in sections and images.channels > cfg.encoder.channels:
        _refuse_grey("encoder", cfg.encoder.channels, images)
    if has_slot(cfg) and not fills_slot(cfg):
        operator_class(cfg.dissolve).refuse(cfg.dissolve, images.height, images.width)
    if has_slot(cfg) and cfg.dissolve.operator == "diffusers":
        require_diffusers()
    if folder := slot_folder(cfg):
        _refuse_pipeline(cfg, PipelineFolder.read(folder, weights=cfg.dissolve.weights), images)
    if needs_ddpm(cfg):
        _refuse_ddpm(cfg, images)


def _refuse_changes(data: DataConfig, manifest: Manifest) -> None:
    manifest.with_lesions(size=data.lesion_size, contrast=data.lesion_contrast)
    healthy, others = _training(manifest, "normal"), _training(manifest, "anomalous")
    wanted = round(data.contamination * healthy / (1 - data.contamination))
    if wanted > others:
        what = f"{data.contamination:g} needs {wanted} anomalous training images; {manifest.name} has {others}."
        raise UsageError(what, field="data.contamination")


def _refuse_training(cfg: ExperimentConfig, images: _Images) -> None:
    if images.healthy < 2:
        raise UsageError(
            f"contrastive training needs at least 2 healthy training images; {images.name} has {images.healthy}."
        )
    if cfg.train.select == "val" and not images.val:
        hint = "Use train.select='last'."
        raise UsageError(f"{images.name} has no validation images to select on.", hint=hint, field="train.select")


def _refuse_grey(part: str, channels: int, images: _Images) -> None:
    """Say that colour would be dropped; grey images are repeated without loss."""
    what = f"{channels} channel does not fit {images.name}, whose images have {images.channels}."
    raise UsageError(what, hint=f"Set {part}.channels={images.channels}.", field=f"{part}.channels")


def _refuse_ddpm(cfg: ExperimentConfig, images: _Images) -> None:
    """Refuse a DDPM that could not be pretrained on its images, or could not dissolve those of the run."""
    seen = [replace(images, bridge=cfg.dissolve.bridge or images.bridge)]
    seen += [_images(load_manifest(cfg.diffusion.dataset))] if cfg.diffusion.dataset else []
    for one in seen:
        _refuse_bridge(cfg.diffusion.image_size, one)
        if one.channels > cfg.diffusion.channels:
            _refuse_grey("diffusion", cfg.diffusion.channels, one)
    _refuse_steps(cfg)


def _refuse_pipeline(cfg: ExperimentConfig, model: PipelineFolder, images: _Images) -> None:
    """Refuse a model of others that could not see the images of the run."""
    _refuse_bridge(model.image_size, replace(images, bridge=cfg.dissolve.bridge or images.bridge))
    if images.channels > model.channels:
        what = f"it sees {model.channels} channel; the images of {images.name} have {images.channels}."
        raise UsageError(what, path=model.folder, field="dissolve.model", hint="Choose a model of colour images.")
    _refuse_steps(cfg)


def _refuse_steps(cfg: ExperimentConfig) -> None:
    t_range, steps = cfg.dissolve.t_range or (0, 0), cfg.diffusion.timesteps
    if t_range[1] >= steps:
        what = f"{list(t_range)} must lie in [0, {steps}), the steps of diffusion.timesteps={steps}."
        raise UsageError(what, field="dissolve.t_range")
    held = t_range[1] - t_range[0] + 1
    if fills_slot(cfg) and cfg.dissolve.bank_steps > held:
        what = f"{cfg.dissolve.bank_steps} outside [0, {held}], the steps of dissolve.t_range={list(t_range)}."
        raise UsageError(what, field="dissolve.bank_steps")


def _refuse_bridge(size: int, images: _Images) -> None:
    bridge = images.bridge
    if not bridgeable(bridge, size, images.height, images.width):
        px = f"the {images.height}×{images.width} px of {images.name}"
        what = f"bridge {bridge!r} cannot bring {px} to the model's {size}×{size}."
        hint = "Use dissolve.bridge='resize', or a model of the images' size."
        raise UsageError(what, hint=hint, field="diffusion.image_size")


def runnable(cfg: ExperimentConfig, method: str) -> ExperimentConfig:
    """Return the config of a method, refused where it cannot run on the data set that it names."""
    cfg = method_config(cfg, method)
    refuse_misfits(cfg, load_manifest(cfg.dataset))
    return cfg


def planned(cfg: ExperimentConfig, methods: str) -> list[str]:
    """Return the methods of a list such as "dia, csi, controls", each refused here where it cannot run."""
    words = [word.strip() for word in methods.split(",")]
    names = [name for word in words for name in (CONTROLS if word == "controls" else [word])]
    for name in names:
        runnable(cfg, name)
    return names
