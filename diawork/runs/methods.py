"""The methods a table may hold, by name: a detector and what fills its slot."""

from __future__ import annotations

from typing import Any

from diawork.base.config import DiffusionConfig, DissolveConfig, ExperimentConfig, ScoreConfig
from diawork.base.errors import UsageError, did_you_mean
from diawork.data.images import Splits
from diawork.data.manifests import Manifest
from diawork.detectors import DETECTORS

METHODS: dict[str, dict[str, Any]] = {
    "dia": {"detector": "dia"},
    "csi": {"detector": "csi"},
    "gaussian_blur": {"detector": "dia", "dissolve.operator": "gaussian_blur"},
    "median_blur": {"detector": "dia", "dissolve.operator": "median_blur"},
    "resize": {"detector": "dia", "dissolve.operator": "resize"},
    "noise": {"detector": "dia", "dissolve.operator": "noise"},
    "identity": {"detector": "dia", "dissolve.operator": "identity"},
}
CONTROLS = ("stats_knn", "stats_mahalanobis", "pixel_knn", "oracle_statistic")
METHODS |= {name: {"detector": name} for name in CONTROLS}


def method_config(cfg: ExperimentConfig, method: str) -> ExperimentConfig:
    """Return ``cfg`` with a method's detector and slot, e.g. "csi" or "gaussian_blur"."""
    if method not in METHODS:
        raise UsageError(f"{method!r} is not a method.", hint=did_you_mean(method, METHODS))
    return cfg.override(METHODS[method])


def fills_slot(cfg: ExperimentConfig) -> bool:
    """Say whether the DDPM itself dissolves in this run."""
    return cfg.detector == "dia" and cfg.dissolve.operator == "ddpm"


def needs_ddpm(cfg: ExperimentConfig) -> bool:
    """Say whether a run needs a pretrained DDPM: to dissolve, or to match its strength."""
    return fills_slot(cfg) or (cfg.detector == "dia" and cfg.dissolve.match == "ddpm")


def resolve(cfg: ExperimentConfig, splits: Splits) -> ExperimentConfig:
    """Fill in the data set's facts and drop what the method does not use, so that equal work has one digest."""
    return with_facts(cfg, splits.manifest)


def with_facts(cfg: ExperimentConfig, facts: Manifest) -> ExperimentConfig:
    """Return what ``resolve`` does, from the manifest alone."""
    if cfg.detector in CONTROLS:
        score = ScoreConfig(evaluate=cfg.score.evaluate)
        return ExperimentConfig(dataset=cfg.dataset, detector=cfg.detector, data=cfg.data, score=score)
    if cfg.detector != "dia":
        loss = cfg.loss.model_copy(update={"classifier": "shift"})  # without dissolved views there is no other
        return cfg.model_copy(update={"diffusion": DiffusionConfig(), "dissolve": DissolveConfig(), "loss": loss})
    if not needs_ddpm(cfg):
        return cfg.model_copy(update={"diffusion": DiffusionConfig()})
    dissolve, diffusion = cfg.dissolve, cfg.diffusion
    filled = {"t_range": dissolve.t_range or facts.t_range, "bridge": dissolve.bridge or facts.bridge}
    if fills_slot(cfg):
        filled["match"] = "none"  # it is its own measure
    if diffusion.dataset in (cfg.dataset, facts.name):
        diffusion = diffusion.model_copy(update={"dataset": None})
    return cfg.model_copy(update={"dissolve": dissolve.model_copy(update=filled), "diffusion": diffusion})


def label_of(cfg: ExperimentConfig) -> str:
    """Return the name a table gives to this config's method."""
    if cfg.detector == "dia" and cfg.dissolve.operator != "ddpm":
        return f"{cfg.dissolve.operator.replace('_', ' ')} in the slot"
    return DETECTORS[cfg.detector].name
