"""One experiment from config to result: the only room that knows everybody."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from tqdm.auto import tqdm

from diawork.base.checkpoints import has_checkpoint
from diawork.base.config import DRAWS, ExperimentConfig
from diawork.base.distributed import Group
from diawork.base.errors import UsageError
from diawork.base.loop import EpochHook
from diawork.base.registry import entry_of
from diawork.base.stopping import stop_at_once
from diawork.data.checks import check_source, check_splits
from diawork.data.datasets import load
from diawork.data.images import ImageSet, Splits
from diawork.data.readers.picture import Preprocessing
from diawork.detectors.base import Detector
from diawork.evaluation.conformal import calibrate
from diawork.evaluation.metrics import auroc, draws_noise, summary, threshold_at_specificity
from diawork.method.operators import operator_class
from diawork.runs.artifacts import Slot, as_member, diffusion_data, fill_slot, identity_with_models, train_together
from diawork.runs.context import Context, Surroundings
from diawork.runs.evidence import LEAST, PseudoCheck, checkable, evidence, probe_shift, recorded
from diawork.runs.methods import label_of, method_config, spelled_out
from diawork.runs.resolve import Resolved, resolve
from diawork.runs.run import Run, known_patients

SPECIFICITY = 0.95  # of the threshold, on healthy validation images


def select_on(split: str, splits: Splits) -> Callable[[int, Detector], float]:
    """Return what an epoch is chosen by: validation AUROC ("val") or, without labels, the self-check ("pseudo").

    It refuses ``test``.
    """
    if split not in ("val", "pseudo"):
        raise UsageError(f"selection on {split!r} is not offered; a run may be selected on 'val' or 'pseudo'.")
    images = splits.val
    if split == "pseudo":
        if not checkable(images):
            raise UsageError(
                f"{images.name} has too few healthy validation images to select on; {LEAST} are needed.",
                hint="Use train.select='last'.",
            )
        check = PseudoCheck(images)
        return lambda _, detector: check.of(detector).auroc
    if not len(images):
        raise UsageError(f"{images.name} has no validation images to select on.", hint="Use train.select='last'.")
    return lambda _, detector: auroc(detector.score(images, samples=1).total, images.anomalous)


def run_experiment(
    cfg: ExperimentConfig,
    *,
    acknowledge_leak: str = "",
    on_open: Callable[[Run], Any] | None = None,
    wait: bool = False,
    **surroundings: Unpack[Surroundings],
) -> Run:
    """Run one experiment and return its run folder; a finished one is found by digest and reused.

    ``surroundings``: out, data_root, compute, processes, progress. They are no part of a run's identity.
    ``on_open`` is called with the run before it begins. With ``wait`` another process that makes the same run
    is waited for; else it is a ``BusyError``.

    A fitted image that stands in an evaluation split, too, is a ``DataError``, unless the leaks' digest
    is given as ``acknowledge_leak``; then the report carries a banner.
    """
    context = Context.of(**surroundings)
    splits = load(cfg, context.data_root)
    cfg = resolve(cfg, splits)
    evaluated = [splits.val]
    if cfg.score.evaluate == "test":
        evaluated = [images for images in (splits.val, splits.test) if len(images)]
    source = diffusion_data(cfg, splits, context.data_root) if cfg.needs_ddpm else splits
    data = _checked_data(splits, source, context.out, acknowledge_leak)
    data["identity"] = identity_with_models(cfg, splits, context.data_root)
    run = Run.create(context.out, cfg, data=data, label=label_of(cfg), compute=context.compute.as_dict())
    if on_open:
        on_open(run)
    if run.current:
        if context.progress:
            tqdm.write(f"reused {run.folder}")
        return run
    if run.done and context.progress:
        tqdm.write(f"scoring {run.folder} anew: it was scored under draws {run.draws}, today's are {DRAWS}")
    with run.working(wait=wait), stop_at_once():
        if not run.current:  # by another process, which was waited for
            _work(run, cfg, splits, evaluated, context)
    return run


def _work(run: Run, cfg: Resolved, splits: Splits, evaluated: Sequence[ImageSet], context: Context) -> None:
    """Fit, score, keep the evidence, and commit the result."""
    kind, (slot, detector) = entry_of(cfg.detector), _built(run, cfg, splits, context)
    facts = slot.facts | probe_shift(detector, splits, progress=context.progress)
    start = time.perf_counter()
    if context.processes > 1 and detector.shareable and not has_checkpoint(run.folder / "detector"):
        facts = facts | {"processes": context.processes}
        train_together(train_share, cfg, run.folder, context)
    detector.fit(splits.train, folder=run.folder, on_epoch=_hook(cfg, splits, run), progress=context.progress)
    if detector.steps:
        run.write_metrics([{"stage": "train", **row} for row in detector.steps])
    cost = {"fit_seconds": max(time.perf_counter() - start, detector.seconds)}
    cost |= slot.cost
    metrics, rows = _evaluate(detector, evaluated, cost)
    if checkable(splits.val) and not detector.oracle:
        facts = facts | {"self_check": recorded(PseudoCheck(splits.val).of(detector))}
    run.write_scores(rows)
    if not kind.control:
        last = evaluated[-1]
        last_rows = [row for row in rows if row["split"] == last.split]
        run.write_evidence(evidence(splits, last, last_rows, detector=detector, dissolver=slot.dissolver))
    run.finish(_result(run, detector, cfg, metrics, cost) | facts)


def _built(run: Run, cfg: Resolved, splits: Splits, context: Context) -> tuple[Slot, Detector]:
    """Return what fills the slot, and the detector around it, not yet fitted."""
    slot = fill_slot(run, cfg, splits, context)
    used = cfg.override(slot.strength)
    return slot, entry_of(cfg.detector).load().build(used, dissolve=slot.training, compute=context.compute)


def train_share(share: dict[str, Any], group: Group) -> None:
    """Train a run's detector as one process of a group; its weights are then in the run's folder."""
    cfg, splits, context = as_member(share, group)
    run = Run(share["folder"])
    _, detector = _built(run, cfg, splits, replace(context, progress=False))
    detector.fit(splits.train, folder=run.folder, on_epoch=_hook(cfg, splits, run), progress=context.progress)


def _checked_data(splits: Splits, source: Splits, root: Path, acknowledge_leak: str) -> dict[str, Any]:
    """Return what a run records about its data, after the data checks; ``source``: its diffusion model's."""
    report = check_splits(splits, cache=root / "data-checks")
    if source.identity != splits.identity:
        report = check_source(report, splits, source.train)
    report = report.acknowledge(acknowledge_leak).require()
    notes = [*report.notes, *splits.notes]
    acknowledged = {"acknowledged": report.digest} if report.banner else {}
    opening = Preprocessing.of(splits.manifest)._asdict()  # for images to come
    facts = {"notes": notes, "duplicates": report.duplicates, "opening": opening}
    return {"name": splits.train.name, "identity": splits.identity} | facts | acknowledged


def _hook(cfg: Resolved, splits: Splits, run: Run) -> EpochHook | None:
    """Return what is called after an epoch: the rule of selection, where there is one.

    With ``train.track_test`` it also notes what each possible rule gives and the AUROC on test.
    """
    rule = cfg.train.select
    if not cfg.train.track_test or "train" not in cfg.uses:  # a sweep sets it for all kinds of detectors
        return None if rule == "last" else select_on(rule, splits)
    val, test = splits.val, splits.test
    possible = {"val": val.anomalous.any() and not val.anomalous.all(), "pseudo": checkable(val)}
    rules = {name: select_on(name, splits) for name, offered in possible.items() if offered or name == rule}

    def track(epoch: int, detector: Detector) -> float | None:
        values = {name: value_of(epoch, detector) for name, value_of in rules.items()}
        run.track(epoch, values | {"test": auroc(detector.score(test, samples=1).total, test.anomalous)})
        return values.get(rule)

    return track


def _evaluate(
    detector: Detector, evaluated: Sequence[ImageSet], cost: dict[str, float]
) -> tuple[dict[str, dict], list[dict]]:
    """Score each split once; the threshold comes from healthy validation images alone."""
    start = time.perf_counter()
    scores = [detector.score(images) for images in evaluated]
    cost["score_seconds"] = time.perf_counter() - start
    threshold, healthy, rows = None, None, list[dict]()
    metrics: dict[str, dict] = {}
    for images, one in zip(evaluated, scores, strict=True):
        if images.split == "val" and not detector.oracle:  # an oracle has no rule to carry over
            threshold = threshold_at_specificity(one.total[~images.anomalous], SPECIFICITY)
            healthy = calibrate(one.total[~images.anomalous], known_patients(images.normal().patients))
        metrics[images.split] = summary(one.total, images.anomalous, threshold=threshold)
        if one.noise is not None:
            metrics[images.split] |= draws_noise(one.total, one.noise, images.anomalous)
        p_values = healthy.p_values(one.total) if healthy is not None and images.split != "val" else None
        rows += _score_rows(images, one.total, one.parts, p_values)
    return metrics, rows


def _score_rows(
    images: ImageSet, total: np.ndarray, parts: Mapping[str, np.ndarray], p_values: np.ndarray | None
) -> list[dict[str, Any]]:
    """Return the rows of ``scores.csv``; the images that calibrate have no p value of their own."""
    rows = []
    for i, value in enumerate(total):
        row = {"split": images.split, "index": int(images.index[i]), "class_name": str(images.class_names[i])}
        row |= {"anomalous": int(images.anomalous[i]), "score": f"{value:.6g}"}
        for name, array in parts.items():
            row |= {f"{name}_{k}": f"{v:.6g}" for k, v in enumerate(array[i])}
        if images.patients is not None:
            row["patient"] = str(images.patients[i])
        row["p_value"] = "" if p_values is None else f"{p_values[i]:.6g}"
        rows.append(row)
    return rows


def _result(run: Run, detector: Detector, cfg: Resolved, metrics: dict, cost: dict) -> dict[str, Any]:
    if detector.parameters is not None:
        cost["parameters"] = detector.parameters
    kind, alternative = entry_of(cfg.detector), cfg.has_slot and cfg.dissolve.operator != "ddpm"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    cost["peak_memory_mb"] = round(peak)
    return {
        "dataset": cfg.dataset,
        "detector": label_of(cfg),
        "name": cfg.detector,
        "preset": cfg.preset,
        "color": operator_class(cfg.dissolve).color if alternative else kind.color,
        "paper_rule": kind.paper_rule,
        "control": detector.control,
        "oracle": detector.oracle,
        "seed": cfg.seed,
        "digest": run.config()["digest"],
        "selection": detector.selection,
        "pretrained_weights": detector.pretrained,
        "weights": detector.weights,
        "draws": None if detector.control else DRAWS,
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
    overall: bool = False,
    **rest: Any,
) -> list[Run]:
    """Run every method for every seed (controls, which have none, once) and return the runs.

    ``methods`` are names; "controls" stands for all controls, "all" for every detector. ``rest`` are keywords of
    ``run_experiment``. ``overall`` shows a bar over all runs, above those of their stages.
    """
    configs = [method_config(cfg, method) for method in spelled_out(methods)]
    planned = [(one, seed) for one in configs for seed in (seeds if entry_of(one.detector).seeded else seeds[:1])]
    runs = []
    with tqdm(total=len(planned), desc="runs", unit="run", disable=not overall) as bar:
        for one, seed in planned:
            bar.set_postfix_str(f"{label_of(one)}, seed {seed}")
            runs.append(run_experiment(one.override({"seed": seed}), **rest))
            bar.update()
            if on_run:
                on_run(runs[-1])
    return runs
