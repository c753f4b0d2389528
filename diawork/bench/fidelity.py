"""Do the fast paths rank images as the plain one does? One DDPM, the same seeds, validation images alone.

``plain`` is fp32 and eager with live dissolving; ``bf16`` the same where the machine computes in it; ``bank``
takes dissolved views made once; ``few samples`` scores the bank's detectors with fewer augmented copies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig, ExperimentConfig
from diawork.base.errors import DataError, UsageError
from diawork.data.images import Splits, load
from diawork.detectors.dia import DIA
from diawork.evaluation.metrics import paired_test, summary
from diawork.method.ddpm import DDPM, pretrain_ddpm
from diawork.runs.methods import resolve
from diawork.runs.parents import run_dissolver, shared_bank, shared_ddpm
from diawork.runs.presets import preset
from diawork.runs.run import runs_root

LAST = 50  # steps whose mean loss is compared


def compare_paths(
    cfg: ExperimentConfig,
    splits: Splits,
    ddpm: DDPM,
    *,
    folder: Path | str,
    seeds: Sequence[int] = (0, 1, 2),
    bank_steps: int = 16,
    samples: int = 2,
    compute: Compute | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train and score DIA on every path; return one row a path and seed.

    Columns: path, seed, auroc with its BCa interval on ``val``, fit_seconds, and ``difference`` to ``plain`` of
    the same seed with its paired interval (DeLong). Trainings under ``folder`` are found again and continued.
    """
    if not len(splits.val) or splits.val.anomalous.all() or not splits.val.anomalous.any():
        raise DataError(f"{splits.val.name} has no healthy and anomalous validation images to compare paths on.")
    if cfg.detector != "dia" or cfg.dissolve.operator != "ddpm":
        raise UsageError("the fast paths are those of DIA with a dissolver.", hint="Use detector='dia'.")
    fast = compute or Compute.auto()
    dissolve = cfg.dissolve.model_copy(update={"bank_steps": bank_steps})
    banked = cfg.model_copy(update={"dissolve": dissolve})
    dissolver = run_dissolver(banked, ddpm, splits, compute=fast)
    bank = shared_bank(dissolver, ddpm, splits, root=folder, progress=progress)
    ways: dict[str, tuple[ExperimentConfig, Compute, Any]] = {"plain": (cfg, Compute(fast.device, compile=False), None)}
    if fast.precision != "fp32":  # elsewhere it would be the plain path once more, under a wrong name
        ways[fast.precision] = (cfg, fast, None)
    ways["bank"] = (banked, fast, bank)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        scores: dict[str, np.ndarray] = {}
        for path, (one, chosen, slot) in ways.items():
            detector = DIA(ddpm, one.override({"seed": seed}), dissolve=slot, compute=chosen)
            detector.fit(splits.train, folder=Path(folder) / f"{path}-s{seed}", progress=progress)
            scores[path] = detector.anomaly_scores(splits.val)
            rows.append(_row(path, seed, scores, splits) | {"fit_seconds": detector.history.seconds})
        scores["few samples"] = detector.score(splits.val, samples=samples).total
        rows.append(_row("few samples", seed, scores, splits) | {"fit_seconds": detector.history.seconds})
    return pd.DataFrame(rows)


def _row(path: str, seed: int, scores: dict[str, np.ndarray], splits: Splits) -> dict[str, Any]:
    truth = splits.val.anomalous
    metrics = summary(scores[path], truth)
    row = {"path": path, "seed": seed} | {name: metrics[name] for name in ("auroc", "auroc_low", "auroc_high")}
    test = paired_test(scores[path], scores["plain"], truth)
    return row | {"difference": test.difference, "difference_low": test.low, "difference_high": test.high}


def paths_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row a path: means over seeds of AUROC, its interval, the difference's, and the seconds of training."""
    table = rows.groupby("path", sort=False).mean(numeric_only=True).drop(columns="seed")
    table.insert(1, "auroc_sd", rows.groupby("path", sort=False)["auroc"].std(ddof=1))
    table["seeds"] = rows.groupby("path", sort=False)["seed"].nunique()
    return table.reset_index()


def compare_pretraining(
    splits: Splits,
    cfg: DiffusionConfig,
    *,
    bridge: str,
    folder: Path | str,
    compute: Compute | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Pretrain the same DDPM in fp32 and in the machine's fast precision; return one row a precision.

    Every draw is keyed by its step, so both see the same images, steps and noise, and their losses can be
    compared pair by pair. Columns: precision, steps, seconds_a_step, loss (mean over the last steps), and
    ``difference`` to fp32 with the standard error of the paired differences.
    """
    fast = compute or Compute.auto()
    rows, exact = [], np.empty(0)
    for one in (Compute(fast.device, compile=False), fast):
        start = time.perf_counter()
        ddpm = pretrain_ddpm(
            splits.train, cfg, bridge=bridge, compute=one, folder=Path(folder) / f"ddpm-{one.precision}",
            progress=progress,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        losses = np.array(ddpm.losses[-LAST:])
        exact = losses if one.precision == "fp32" else exact
        gap = losses - exact
        rows.append(
            {
                "precision": one.precision, "steps": cfg.steps, "seconds_a_step": seconds / max(cfg.steps, 1),
                "loss": losses.mean(), "difference": gap.mean(), "standard_error": gap.std() / np.sqrt(len(gap)),
            }
        )  # fmt: skip
    return pd.DataFrame(rows).drop_duplicates("precision", keep="last")


def accuracy(
    dataset: str, preset_name: str, *, seeds: int = 3, changes: dict[str, Any] | None = None,
    root: Path | str | None = None, data_root: Path | str | None = None, compute: Compute | None = None,
    ddpm_steps: int = 200,
) -> dict[str, Any]:  # fmt: skip
    """Compare the paths and the precisions on a data set; return rows ready for JSON."""
    splits = load(dataset, data_root)
    cfg = resolve(preset(preset_name, dataset=dataset).override(changes or {}), splits)
    ddpm = shared_ddpm(cfg, splits, root=root, data_root=data_root, compute=compute)
    folder = runs_root(root) / "fidelity"
    paths = compare_paths(cfg, splits, ddpm, folder=folder, seeds=range(seeds), compute=compute)
    short = cfg.diffusion.model_copy(update={"steps": min(ddpm_steps, cfg.diffusion.steps)})
    bridge = cfg.dissolve.bridge or splits.manifest.bridge
    pretraining = compare_pretraining(splits, short, bridge=bridge, folder=folder, compute=compute)
    asked = f"DIA on {splits.val.name}, preset {preset_name}, {cfg.train.epochs} epochs, {seeds} seeds, one DDPM."
    return {
        "asked": f"{asked} Validation split, {len(splits.val)} images; test was not touched.",
        "paths": paths_table(paths).to_dict("records"),
        "runs": paths.to_dict("records"),
        "pretraining": pretraining.to_dict("records"),
        "last": LAST,
    }
