"""The methods a table may hold, by name: a detector and what fills its slot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diawork.base.config import ExperimentConfig
from diawork.base.errors import pick
from diawork.base.registry import CONTROLS, DETECTORS, NOT_BUILT, entry_of
from diawork.data.manifests import load_manifest
from diawork.method.operators import OPERATORS, operator_class
from diawork.runs.presets import MOST_PX
from diawork.runs.resolve import resolve

METHODS: dict[str, dict[str, Any]] = {name: {"detector": name} for name in DETECTORS if name not in CONTROLS}
METHODS |= {name: {"detector": "dia", "dissolve.operator": name} for name in OPERATORS if name != "ddpm"}
METHODS |= {name: {"detector": name} for name in CONTROLS}


def method_config(cfg: ExperimentConfig, method: str) -> ExperimentConfig:
    """Return ``cfg`` with a method's detector and slot, e.g. "csi", "gaussian_blur" or "anomalib_fastflow".

    A preset's ``data.size`` is for what learns from scratch: a pretrained network gets the set's own pixels, and
    ``backbone.image_size`` decides.
    """
    if method in NOT_BUILT:
        entry_of(method)  # which says what is missing
    if method.startswith("anomalib_"):
        changes: dict[str, Any] = {"detector": "anomalib", "anomalib.model": method.removeprefix("anomalib_")}
    else:
        changes = pick(METHODS, method, "method")
    if "backbone" in entry_of(changes["detector"]).uses and cfg.data.size == MOST_PX.get(str(cfg.preset)):
        changes = changes | {"data.size": None}
    return cfg.override(changes)


def runnable(cfg: ExperimentConfig, method: str) -> ExperimentConfig:
    """Return the config of a method, refused where it cannot run on the data set that it names."""
    cfg = method_config(cfg, method)
    resolve(cfg, load_manifest(cfg.dataset))
    return cfg


def spelled_out(words: Iterable[str]) -> list[str]:
    """Return names of methods, with "controls" for all controls and "all" for every detector."""
    groups = {"controls": list(CONTROLS), "all": list(DETECTORS)}
    return list(dict.fromkeys(name for word in words for name in groups.get(word, [word])))


def planned(cfg: ExperimentConfig, methods: str) -> list[str]:
    """Return the methods of a list such as "dia, csi, controls", each refused here where it cannot run."""
    names = spelled_out(word.strip() for word in methods.split(","))
    for name in names:
        runnable(cfg, name)
    return names


def label_of(cfg: ExperimentConfig) -> str:
    """Return the name a table gives to this config's method."""
    if cfg.detector == "anomalib":
        return f"{cfg.anomalib.model} of anomalib"
    own = operator_class(cfg.dissolve).label(cfg.dissolve) if cfg.has_slot else ""
    return own or entry_of(cfg.detector).label
