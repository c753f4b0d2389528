"""One experiment from config to result: the only room that knows everybody."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from diawork.base.compute import Compute
from diawork.base.config import ExperimentConfig
from diawork.base.errors import UsageError
from diawork.base.files import digest, read_json, write_json
from diawork.base.stopping import stop_at_once
from diawork.data.checks import check_splits
from diawork.data.images import ImageSet, Splits
from diawork.data.variants import open_data
from diawork.detectors import DETECTORS, DIA
from diawork.evaluation.metrics import auroc, summary, threshold_at_specificity
from diawork.method.ddpm import DDPM
from diawork.method.dissolve import Dissolve, Dissolver
from diawork.method.matching import matched
from diawork.runs.evidence import evidence
from diawork.runs.methods import CONTROLS, METHODS, fills_slot, label_of, method_config, needs_ddpm, resolve
from diawork.runs.parents import diffusion_data, shared_bank, shared_ddpm
from diawork.runs.run import Run, runs_root

__all__ = [
    "CONTROLS", "METHODS", "build_detector", "label_of", "method_config", "resolve", "run_experiment", "run_suite",
    "select_on", "shared_bank", "shared_ddpm",
]  # fmt: skip
EpochHook = Callable[[int, DIA], float | None]
SPECIFICITY = 0.95  # of the threshold, on healthy validation images


def select_on(split: str, splits: Splits) -> EpochHook:
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
    splits = open_data(cfg, data_root)
    cfg, evaluated = resolve(cfg, splits), _evaluated(splits, cfg)
    data = _checked_data(splits, runs_root(root), acknowledge_leak)
    if needs_ddpm(cfg) and cfg.diffusion.dataset:
        data["identity"] = digest([data["identity"], diffusion_data(cfg, splits, data_root).train.identity])
    run = Run.create(runs_root(root), cfg, data=data, label=label_of(cfg), compute=compute.as_dict())
    if run.done:
        if progress:
            tqdm.write(f"reused {run.folder}")
        return run
    with run.working(), stop_at_once():
        if run.done:  # by another cell, which was waited for
            return run
        where = {"root": root, "compute": compute, "progress": progress}
        ddpm = shared_ddpm(cfg, splits, data_root=data_root, **where) if needs_ddpm(cfg) else None
        slot = ddpm if fills_slot(cfg) else None
        bank = shared_bank(cfg, splits, slot, **where) if slot and cfg.dissolve.bank_steps else None
        strength = {} if ddpm is slot else _matched(cfg, ddpm, splits, run, compute)
        used = cfg.override({f"dissolve.{name}": value for name, value in strength.get("settings", {}).items()})
        detector = build_detector(used, slot, dissolve=bank, compute=compute)
        start = time.perf_counter()
        _fit(detector, cfg, splits, run, progress=progress)
        cost = {"fit_seconds": max(time.perf_counter() - start, _trained_before(detector))}
        metrics, rows = _evaluate(detector, evaluated, cost)
        run.write_scores(rows)
        if isinstance(detector, DIA):
            run.write_evidence(evidence(splits, rows, slot, cfg, detector))
        learnt = {"diffusion_images": ddpm.data["images"]} if ddpm else {}  # the count behind a data ratio
        run.finish(_result(run, detector, cfg, metrics, cost) | learnt | ({"matched": strength} if strength else {}))
    return run


def _matched(cfg: ExperimentConfig, ddpm: DDPM, splits: Splits, run: Run, compute: Compute) -> dict[str, Any]:
    """Return the strength that equals the dissolver's; settled once a run, so that a resumed one keeps it."""
    path = run.folder / "matched.json"
    if not path.exists():
        dissolver = Dissolver(ddpm.weights(cfg.dissolve.weights), cfg.dissolve, compute=compute)
        write_json(path, matched(cfg.dissolve, dissolver, splits.train.normal().images))
    return read_json(path)


def _checked_data(splits: Splits, root: Path, acknowledge_leak: str) -> dict[str, Any]:
    """Return what a run records about its data, after the data checks."""
    report = check_splits(splits, acknowledged=acknowledge_leak, cache=root / "data-checks").require()
    notes = [*report.notes, *splits.notes]
    acknowledged = {"acknowledged": report.digest} if report.banner else {}
    return {"name": splits.train.name, "identity": splits.identity, "notes": notes} | acknowledged


def _trained_before(detector: Any) -> float:
    """Return the seconds that a training took over all its interruptions."""
    return detector.history.seconds if isinstance(detector, DIA) else 0.0


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
    choose = select_on("val", splits) if cfg.train.select == "val" else None
    hook = _tracked(choose, splits.test, run) if cfg.train.track_test else choose
    detector.fit(splits.train, folder=run.folder, on_epoch=hook, progress=progress)
    run.write_metrics([{"stage": "train", **row} for row in detector.history.steps])


def _tracked(choose: EpochHook | None, test: ImageSet, run: Run) -> EpochHook:
    """Return a hook that notes the test AUROC of each epoch, and hands on what ``choose`` says, untouched by it."""

    def ask(epoch: int, detector: DIA) -> float | None:
        run.track_test(epoch, auroc(detector.score(test, samples=1).total.numpy(), test.anomalous))
        return choose(epoch, detector) if choose else None

    return ask


def _evaluated(splits: Splits, cfg: ExperimentConfig) -> list[ImageSet]:
    """Return what a run scores: val, where there is one, and test, unless the config stops at val."""
    if cfg.score.evaluate == "test":
        return [images for images in (splits.val, splits.test) if len(images)]
    if not len(splits.val):
        raise UsageError(f"{splits.val.name} has no validation images to score.", hint="Use score.evaluate='test'.")
    return [splits.val]


def _evaluate(
    detector: Any, evaluated: Sequence[ImageSet], cost: dict[str, float]
) -> tuple[dict[str, dict], list[dict]]:
    """Score each split once; the threshold comes from healthy validation images alone."""
    start = time.perf_counter()
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
