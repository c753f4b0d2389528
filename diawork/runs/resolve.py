"""A config meets its data: what it leaves open is settled once, and what cannot run is refused before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from diawork.base.config import ExperimentConfig, Frozen, bridgeable, validated
from diawork.base.errors import UsageError
from diawork.base.registry import entry_of
from diawork.data.manifests import Manifest, load_manifest
from diawork.method.operators import operator_class

if TYPE_CHECKING:
    from diawork.data.images import Splits

UNTOLD = 10_000_000  # stands for counts that the manifest leaves to the opened files


class Resolved(ExperimentConfig):
    """A config that leaves nothing open, made once a run; what its detector does not use has its default."""

    keeps_others = False

    @property
    def fills_slot(self) -> bool:
        """Say whether a diffusion model dissolves in this run: its own DDPM, or one of others."""
        return self.has_slot and operator_class(self.dissolve).diffusion

    @property
    def needs_ddpm(self) -> bool:
        """Say whether a run needs a pretrained DDPM: to dissolve, or to match its strength."""
        if self.fills_slot:
            return self.dissolve.operator == "ddpm"
        return self.has_slot and self.dissolve.match == "ddpm"

    @model_validator(mode="after")
    def _settled(self) -> Resolved:
        if not (self.needs_ddpm or self.slot_folder):
            return self
        if self.dissolve.t_range is None or self.dissolve.bridge is None:
            raise ValueError("dissolve.t_range and dissolve.bridge are open")
        low, high = self.dissolve.t_range
        if self.fills_slot and self.dissolve.bank_steps > high - low + 1:
            what = f"dissolve.bank_steps={self.dissolve.bank_steps} outside [0, {high - low + 1}]"
            raise ValueError(f"{what}, the steps of dissolve.t_range={[low, high]}")
        return self


def resolve(cfg: ExperimentConfig, data: Splits | Manifest) -> Resolved:
    """Return the config as it runs on a data set: what is open is settled, what its detector does not use is dropped.

    Equal work then has one digest. What cannot run on these data is refused, in one sentence. ``data``: as opened, or
    the manifest alone, which is enough for a dry run. A resolved config is returned as it is.
    """
    if isinstance(cfg, Resolved):
        return cfg
    if isinstance(data, Manifest):
        data = data.against_the_rest(cfg.data.normal_class).at_size(cfg.data.size)
        data.with_lesions(size=cfg.data.lesion_size, contrast=cfg.data.lesion_contrast)
        healthy, others = _training(data, "normal"), _training(data, "anomalous")
        wanted = round(cfg.data.contamination * healthy / (1 - cfg.data.contamination))
        if wanted > others:
            what = f"{cfg.data.contamination:g} needs {wanted} anomalous training images; {data.name} has {others}."
            raise UsageError(what, field="data.contamination")
    manifest, images = (data if isinstance(data, Manifest) else data.manifest), _Images.of(data)
    used = cfg.but(**_unused(cfg))
    settled: dict[str, Any] = {}
    if "encoder" in used.uses:
        settled["encoder"] = _in_colour(used.encoder, manifest)
    if used.has_slot:
        settled |= _slot(used, manifest)
    resolved = validated(Resolved, dict(iter(used)) | settled)
    _refuse_misfits(resolved, images)
    return resolved


def _unused(cfg: ExperimentConfig) -> dict[str, Any]:
    """Return the defaults of every section that the detector does not use."""
    entry, plain = entry_of(cfg.detector), ExperimentConfig(detector=cfg.detector)
    changes: dict[str, Any] = {
        name: value for name, value in plain if isinstance(value, Frozen) and name not in entry.uses
    }
    if "score" in changes:
        changes["score"] = plain.score.but(evaluate=cfg.score.evaluate)
    if not entry.seeded:
        changes["seed"] = plain.seed
    if "dissolve" in changes:  # without dissolved views there is no other classifier
        changes["loss"] = changes.get("loss", cfg.loss).but(classifier=plain.loss.classifier)
    return changes


def _slot(cfg: ExperimentConfig, manifest: Manifest) -> dict[str, Any]:
    """Return the sections of the dissolver and its diffusion model, as far as one is needed."""
    dissolve, diffusion, plain = cfg.dissolve, cfg.diffusion, ExperimentConfig().diffusion
    if dissolve.operator == "diffusers":  # trained already: of ``diffusion``, the schedule of ``t`` remains
        schedule = diffusion.model_dump(include={"timesteps", "beta_schedule"})
        # a bridge left open resizes: the manifest's is about a model of this data's own size
        return {"dissolve": dissolve.filled(manifest.t_range, "resize").but(match="none"),
                "diffusion": plain.but(**schedule)}  # fmt: skip
    dissolve = dissolve.but(model=None)
    dissolves = operator_class(dissolve).diffusion
    if not dissolves and dissolve.match != "ddpm":
        beyond = dissolve.t_range and dissolve.t_range[1] >= plain.timesteps  # steps of a DDPM that this run has not
        return {"dissolve": dissolve.but(t_range=None) if beyond else dissolve, "diffusion": plain}
    dissolve = dissolve.filled(manifest.t_range, manifest.bridge)
    if dissolves:
        dissolve = dissolve.but(match="none")  # it is its own measure
    if diffusion.dataset in (cfg.dataset, manifest.name):
        diffusion = diffusion.but(dataset=None)
    if diffusion.per_seed:
        diffusion = diffusion.but(seed=cfg.seed, per_seed=False)
    return {"dissolve": dissolve, "diffusion": _in_colour(diffusion, manifest)}


def _in_colour(section: Any, manifest: Manifest) -> Any:
    """Return a section whose network sees colour where the images have it; one that repeats grey stays as it is."""
    return section.but(channels=max(section.channels, manifest.image.channels))


# --- what does not fit ------------------------------------------------------------------------------------


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

    @classmethod
    def of(cls, data: Splits | Manifest) -> _Images:
        if isinstance(data, Manifest):
            size, val = data.image.size, sum(data.counts.get("val", {}).values()) if data.counts else UNTOLD
            return cls(data.name, data.image.channels, size, size, data.bridge, _training(data, "normal"), val)
        channels, height, width = data.train.images.shape[1:]
        healthy, name = int((~data.train.anomalous).sum()), data.train.name
        return cls(name, channels, height, width, data.manifest.bridge, healthy, len(data.val))


def _training(manifest: Manifest, role: str) -> int:
    if not manifest.counts:
        return UNTOLD
    return sum(n for name, n in manifest.counts["train"].items() if manifest.roles[name] == role)


def _refuse_misfits(cfg: Resolved, images: _Images) -> None:
    entry_of(cfg.detector).require()
    if cfg.score.evaluate == "val" and not images.val:
        raise UsageError(f"{images.name} has no validation images to score.", hint="Use score.evaluate='test'.")
    if "train" in cfg.uses and images.healthy < 2:
        what = f"contrastive training needs at least 2 healthy training images; {images.name} has {images.healthy}."
        raise UsageError(what)
    if "train" in cfg.uses and cfg.train.select == "val" and not images.val:
        what = f"{images.name} has no validation images to select on."
        raise UsageError(what, hint="Use train.select='last'.", field="train.select")
    if "encoder" in cfg.uses:
        _refuse_grey("encoder", cfg.encoder.channels, images)
    if cfg.has_slot and not cfg.fills_slot:
        operator_class(cfg.dissolve).refuse(cfg.dissolve, images.height, images.width)
    if cfg.has_slot and cfg.dissolve.operator == "diffusers":
        from diawork.method.pipelines import PipelineFolder, require_diffusers  # brings torch, which only it needs

        require_diffusers()
        model = PipelineFolder.read(cfg.dissolve.model, weights=cfg.dissolve.weights)
        _refuse_bridge(model.image_size, replace(images, bridge=cfg.dissolve.bridge or images.bridge))
        if images.channels > model.channels:
            what = f"it sees {model.channels} channel; the images of {images.name} have {images.channels}."
            raise UsageError(what, path=model.folder, field="dissolve.model", hint="Choose a model of colour images.")
    if cfg.needs_ddpm:  # which is pretrained on its images, and dissolves those of the run
        seen = [replace(images, bridge=cfg.dissolve.bridge or images.bridge)]
        seen += [_Images.of(load_manifest(cfg.diffusion.dataset))] if cfg.diffusion.dataset else []
        for one in seen:
            _refuse_bridge(cfg.diffusion.image_size, one)
            _refuse_grey("diffusion", cfg.diffusion.channels, one)


def _refuse_grey(part: str, channels: int, images: _Images) -> None:
    """Say that colour would be dropped; grey images are repeated without loss."""
    if images.channels > channels:
        what = f"{channels} channel does not fit {images.name}, whose images have {images.channels}."
        raise UsageError(what, hint=f"Set {part}.channels={images.channels}.", field=f"{part}.channels")


def _refuse_bridge(size: int, images: _Images) -> None:
    bridge = images.bridge
    if not bridgeable(bridge, size, images.height, images.width):
        px = f"the {images.height}×{images.width} px of {images.name}"
        what = f"bridge {bridge!r} cannot bring {px} to the model's {size}×{size}."
        hint = "Use dissolve.bridge='resize', or a model of the images' size."
        raise UsageError(what, hint=hint, field="diffusion.image_size")
