"""One experiment from config to result: the only room that knows everybody."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from diawork.bank import DissolvedBank
from diawork.compute import Compute
from diawork.config import DiffusionConfig, DissolveConfig, ExperimentConfig
from diawork.datachecks import check_splits
from diawork.detectors import DETECTORS, DIA
from diawork.diffusion import DDPM, pretrain_ddpm
from diawork.dissolve import Dissolve, Dissolver
from diawork.errors import UsageError, did_you_mean
from diawork.evidence import evidence
from diawork.files import digest, sha256_file
from diawork.images import ImageSet, Splits, load
from diawork.metrics import auroc, summary, threshold_at_specificity
from diawork.runs import Run, locked, runs_root, slug
from diawork.stopping import stop_at_once

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
SPECIFICITY = 0.95  # of the threshold, on healthy validation images


def method_config(cfg: ExperimentConfig, method: str) -> ExperimentConfig:
    """Return ``cfg`` with a method's detector and slot, e.g. "csi" or "gaussian_blur"."""
    if method not in METHODS:
        raise UsageError(f"{method!r} is not a method.", hint=did_you_mean(method, METHODS))
    return cfg.override(METHODS[method])


def resolve(cfg: ExperimentConfig, splits: Splits) -> ExperimentConfig:
    """Fill in the data set's facts and drop what the method does not use, so that equal work has one digest."""
    changes: dict[str, Any] = {}
    if cfg.detector != "dia":
        changes = {"diffusion": DiffusionConfig(), "dissolve": DissolveConfig()}
    elif cfg.dissolve.operator != "ddpm":
        changes = {"diffusion": DiffusionConfig()}
    else:
        facts = splits.manifest
        filled = {"t_range": cfg.dissolve.t_range or facts.t_range, "bridge": cfg.dissolve.bridge or facts.bridge}
        changes = {"dissolve": cfg.dissolve.model_copy(update=filled)}
    if cfg.detector in CONTROLS:
        return ExperimentConfig(dataset=cfg.dataset, detector=cfg.detector)
    return cfg.model_copy(update=changes)


def label_of(cfg: ExperimentConfig) -> str:
    """Return the name a table gives to this config's method."""
    if cfg.detector == "dia" and cfg.dissolve.operator != "ddpm":
        return f"{cfg.dissolve.operator.replace('_', ' ')} in the slot"
    return DETECTORS[cfg.detector].name


def shared_ddpm(
    cfg: ExperimentConfig,
    splits: Splits,
    *,
    root: Path | str | None = None,
    compute: Compute | None = None,
    progress: bool = True,
) -> DDPM:
    """Return the DDPM of this config on this data: found by digest, continued, or pretrained."""
    cfg = resolve(cfg, splits)
    bridge = cfg.dissolve.bridge
    identity = digest([cfg.diffusion.model_dump(mode="json"), bridge, splits.train.identity])
    folder = runs_root(root) / f"ddpm-{slug(splits.train.name)}-{identity}"
    with contextlib.nullcontext() if (folder / "ddpm.json").exists() else locked(folder):
        return pretrain_ddpm(
            splits.train, cfg.diffusion, bridge=bridge, compute=compute, folder=folder, progress=progress
        )


def select_on(split: str, splits: Splits) -> Callable[[int, DIA], float]:
    """Return the only selector there is: validation AUROC after an epoch. It refuses ``test``."""
    if split != "val":
        raise UsageError(f"selection on {split!r} is not offered; a run may be selected on 'val' only.")
    images = splits.val
    if not len(images):
        raise UsageError(f"{images.name} has no validation images to select on.", hint="Use train.select='last'.")
    return lambda _, detector: auroc(detector.score(images, samples=1).total.numpy(), images.anomalous)


def run_experiment(
    cfg: ExperimentConfig,
    *,
    root: Path | str | None = None,
    data_root: Path | str | None = None,
    acknowledge_leak: str = "",
    compute: Compute | None = None,
    progress: bool = True,
) -> Run:
    """Run one experiment and return its run folder; a finished one is found by digest and reused.

    A fitted image that stands in an evaluation split, too, is a ``DataError``, unless the leaks' digest
    is given as ``acknowledge_leak``; then the report carries a banner.
    """
    compute = compute or Compute.auto()
    splits = load(cfg.dataset, data_root)
    cfg, data = resolve(cfg, splits), _checked_data(splits, runs_root(root), acknowledge_leak)
    run = Run.create(runs_root(root), cfg, data=data, label=label_of(cfg), compute=compute.as_dict())
    if run.done:
        if progress:
            tqdm.write(f"reused {run.folder}")
        return run
    with run.working(), stop_at_once():
        where = {"root": root, "compute": compute, "progress": progress}
        ddpm = shared_ddpm(cfg, splits, **where) if _needs_ddpm(cfg) else None
        bank = shared_bank(cfg, splits, ddpm, **where) if ddpm and cfg.dissolve.bank_steps else None
        detector = build_detector(cfg, ddpm, dissolve=bank, compute=compute)
        start = time.perf_counter()
        _fit(detector, cfg, splits, run, progress=progress)
        cost = {"fit_seconds": max(time.perf_counter() - start, _trained_before(detector))}
        metrics, rows = _evaluate(detector, splits, cost)
        run.write_scores(rows)
        if isinstance(detector, DIA):
            run.write_evidence(evidence(splits, rows, ddpm, cfg))
        run.finish(_result(run, detector, cfg, metrics, cost))
    return run


def _checked_data(splits: Splits, root: Path, acknowledge_leak: str) -> dict[str, Any]:
    """Return what a run records about its data, after the data checks."""
    report = check_splits(splits, acknowledged=acknowledge_leak, cache=root / "data-checks").require()
    notes = [*report.notes, *splits.notes]
    acknowledged = {"acknowledged": report.digest} if report.banner else {}
    return {"name": splits.train.name, "identity": splits.identity, "notes": notes} | acknowledged


def _trained_before(detector: Any) -> float:
    """Return the seconds that a training took over all its interruptions."""
    return detector.history.seconds if isinstance(detector, DIA) else 0.0


def _needs_ddpm(cfg: ExperimentConfig) -> bool:
    return cfg.detector == "dia" and cfg.dissolve.operator == "ddpm"


def shared_bank(
    cfg: ExperimentConfig,
    splits: Splits,
    ddpm: DDPM,
    *,
    root: Path | str | None = None,
    compute: Compute | None = None,
    progress: bool = True,
) -> DissolvedBank:
    """Return the bank of dissolved healthy images, made once for all seeds and cells that share its settings."""
    dissolver = Dissolver(ddpm.weights(cfg.dissolve.weights), cfg.dissolve, compute=compute)
    weights = sha256_file(ddpm.folder / "ddpm.safetensors")
    origin = {"ddpm": weights, "images": splits.train.identity}
    folder, steps = runs_root(root) / "banks", cfg.dissolve.bank_steps
    x = splits.train.normal().images
    return DissolvedBank(dissolver, x, folder, steps=steps, origin=origin, progress=progress)


def build_detector(
    cfg: ExperimentConfig,
    ddpm: DDPM | None = None,
    *,
    dissolve: Dissolve | None = None,
    compute: Compute | None = None,
) -> Any:
    """Return the detector that ``cfg.detector`` names, not yet fitted."""
    kind = DETECTORS[cfg.detector]
    return kind() if cfg.detector in CONTROLS else kind(ddpm, cfg, dissolve=dissolve, compute=compute)


def _fit(detector: Any, cfg: ExperimentConfig, splits: Splits, run: Run, *, progress: bool) -> None:
    if cfg.detector in CONTROLS:
        detector.fit(splits.train)
        return
    hook = select_on("val", splits) if cfg.train.select == "val" else None
    detector.fit(splits.train, folder=run.folder, on_epoch=hook, progress=progress)
    run.write_metrics([{"stage": "train", **row} for row in detector.history.steps])


def _evaluate(detector: Any, splits: Splits, cost: dict[str, float]) -> tuple[dict[str, dict], list[dict]]:
    """Score val and then, once, test; the threshold comes from healthy validation images alone."""
    start = time.perf_counter()
    evaluated = [images for images in (splits.val, splits.test) if len(images)]
    parts = [_score(detector, images) for images in evaluated]
    cost["score_seconds"] = time.perf_counter() - start
    threshold, metrics, rows = None, {}, []
    for images, (total, more) in zip(evaluated, parts, strict=True):
        if images.split == "val" and not detector.oracle:  # an oracle has no rule to carry over
            threshold = threshold_at_specificity(total[~images.anomalous], SPECIFICITY)
        metrics[images.split] = summary(total, images.anomalous, threshold=threshold)
        rows += _score_rows(images, total, more)
    return metrics, rows


def _score(detector: Any, images: ImageSet) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the scores (N,) and, for a contrastive detector, the parts (N, K) by name."""
    if not isinstance(detector, DIA):
        return np.asarray(detector.anomaly_scores(images)), {}
    scores = detector.score(images)
    parts = ("similarity", "shift", "nearest")
    return scores.total.numpy(), {name: getattr(scores, name).numpy() for name in parts}


def _score_rows(images: ImageSet, total: np.ndarray, parts: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    rows = []
    for i, value in enumerate(total):
        row = {"split": images.split, "index": int(images.index[i]), "class_name": str(images.class_names[i])}
        row |= {"anomalous": int(images.anomalous[i]), "score": f"{value:.6g}"}
        for name, array in parts.items():
            row |= {f"{name}_{k}": f"{v:.6g}" for k, v in enumerate(array[i])}
        rows.append(row)
    return rows


def _result(run: Run, detector: Any, cfg: ExperimentConfig, metrics: dict, cost: dict) -> dict[str, Any]:
    selection = "no training"
    if isinstance(detector, DIA):
        rule = "best validation AUROC, epoch" if cfg.train.select == "val" else "fixed epoch"
        selection = f"{rule} {detector.history.selected}"
        cost["parameters"] = sum(p.numel() for p in detector.encoder.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    cost["peak_memory_mb"] = round(peak)
    return {
        "dataset": cfg.dataset,
        "detector": label_of(cfg),
        "oracle": detector.oracle,
        "seed": cfg.seed,
        "digest": run.config()["digest"],
        "selection": selection,
        "pretrained_weights": detector.requires_weights,
        "metrics": metrics,
        "cost": cost,
        "settings": cfg.flat(),
    }


def run_suite(
    cfg: ExperimentConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    on_run: Callable[[Run], None] | None = None,
    **where: Any,
) -> list[Run]:
    """Run every method for every seed (controls, which have none, once) and return the runs."""
    configs = [method_config(cfg, method) for method in methods]
    runs = []
    for one in configs:
        for seed in seeds if one.detector not in CONTROLS else seeds[:1]:
            runs.append(run_experiment(one.override({"seed": seed}), **where))
            if on_run:
                on_run(runs[-1])
    return runs
