"""The methods a table may hold, by name: a detector and what fills its slot."""

from __future__ import annotations

from typing import Any

from diawork.base.config import ExperimentConfig
from diawork.base.errors import pick
from diawork.data.manifests import Manifest
from diawork.detectors.registry import CONTROLS, DETECTORS, NOT_BUILT, entry_of
from diawork.method.operators import OPERATORS, operator_class

METHODS: dict[str, dict[str, Any]] = {name: {"detector": name} for name in DETECTORS if name not in CONTROLS}
METHODS |= {name: {"detector": "dia", "dissolve.operator": name} for name in OPERATORS if name != "ddpm"}
METHODS |= {name: {"detector": name} for name in CONTROLS}


def method_config(cfg: ExperimentConfig, method: str) -> ExperimentConfig:
    """Return ``cfg`` with a method's detector and slot, e.g. "csi" or "gaussian_blur"."""
    if method in NOT_BUILT:
        entry_of(method)  # which says what is missing
    return cfg.override(pick(METHODS, method, "method"))


def has_slot(cfg: ExperimentConfig) -> bool:
    """Say whether this config's detector has a slot for the dissolver."""
    return "dissolve" in entry_of(cfg.detector).uses


def fills_slot(cfg: ExperimentConfig) -> bool:
    """Say whether a diffusion model dissolves in this run: its own DDPM, or one through diffusers."""
    return has_slot(cfg) and operator_class(cfg.dissolve).diffusion


def slot_folder(cfg: ExperimentConfig) -> str | None:
    """Return the folder of the model of others that dissolves in this run, if one does."""
    return cfg.dissolve.model if has_slot(cfg) and cfg.dissolve.operator == "diffusers" else None


def needs_ddpm(cfg: ExperimentConfig) -> bool:
    """Say whether a run needs a pretrained DDPM: to dissolve, or to match its strength."""
    if fills_slot(cfg):
        return slot_folder(cfg) is None
    return has_slot(cfg) and cfg.dissolve.match == "ddpm"


def resolve(cfg: ExperimentConfig, facts: Any) -> ExperimentConfig:
    """Fill in the facts of a data set (``Splits``, or the manifest alone) and drop what the method does not use.

    Equal work then has one digest.
    """
    facts = facts if isinstance(facts, Manifest) else facts.manifest
    cfg = _used(cfg)
    if "encoder" in entry_of(cfg.detector).uses:
        cfg = cfg.model_copy(update={"encoder": _in_colour(cfg.encoder, facts)})
    if not has_slot(cfg):
        return cfg
    if cfg.dissolve.operator != "diffusers":
        cfg = cfg.model_copy(update={"dissolve": cfg.dissolve.model_copy(update={"model": None})})
    if slot_folder(cfg):
        return _of_others(cfg, facts)
    if not needs_ddpm(cfg):
        return cfg.model_copy(update={"diffusion": ExperimentConfig().diffusion})
    dissolve, diffusion = cfg.dissolve.filled(facts.t_range, facts.bridge), cfg.diffusion
    if fills_slot(cfg):
        dissolve = dissolve.model_copy(update={"match": "none"})  # it is its own measure
    if diffusion.dataset in (cfg.dataset, facts.name):
        diffusion = diffusion.model_copy(update={"dataset": None})
    if diffusion.per_seed:
        diffusion = diffusion.model_copy(update={"seed": cfg.seed, "per_seed": False})
    return cfg.model_copy(update={"dissolve": dissolve, "diffusion": _in_colour(diffusion, facts)})


def _of_others(cfg: ExperimentConfig, facts: Manifest) -> ExperimentConfig:
    """Return a config whose model is trained already: of ``diffusion``, the schedule that ``t`` is a step of remains.

    A bridge left open resizes: the manifest's is about a model of this data's own size.
    """
    schedule = cfg.diffusion.model_dump(include={"timesteps", "beta_schedule"})
    dissolve = cfg.dissolve.filled(facts.t_range, "resize").model_copy(update={"match": "none"})
    diffusion = ExperimentConfig().diffusion.model_copy(update=schedule)
    return cfg.model_copy(update={"dissolve": dissolve, "diffusion": diffusion})


def _in_colour(section: Any, facts: Manifest) -> Any:
    """Return a section whose network sees colour where the images have it; one that repeats grey stays as it is."""
    return section.model_copy(update={"channels": max(section.channels, facts.image.channels)})


def _used(cfg: ExperimentConfig) -> ExperimentConfig:
    """Return the config with every section that its detector does not use as it is by default."""
    entry, plain = entry_of(cfg.detector), ExperimentConfig()
    sections = {name for name in type(cfg).model_fields if hasattr(getattr(plain, name), "identity")}
    changes: dict[str, Any] = {name: getattr(plain, name) for name in sections - set(entry.uses)}
    if "score" in changes:
        changes["score"] = plain.score.model_copy(update={"evaluate": cfg.score.evaluate})
    if not entry.seeded:
        changes["seed"] = plain.seed
    if "dissolve" in changes:  # without dissolved views there is no other classifier
        changes |= {"loss": changes.get("loss", cfg.loss).model_copy(update={"classifier": plain.loss.classifier})}
    return cfg.model_copy(update=changes)


def label_of(cfg: ExperimentConfig) -> str:
    """Return the name a table gives to this config's method."""
    own = operator_class(cfg.dissolve).label(cfg.dissolve) if has_slot(cfg) else ""
    return own or entry_of(cfg.detector).label
