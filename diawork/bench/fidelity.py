"""Do the fast paths rank images as the plain one does? One DDPM, the same seeds, validation images alone.

``plain`` is fp32 and eager with live dissolving; ``bf16`` the same where the machine computes in it; ``bank``
takes dissolved views made once; ``few samples`` scores the bank's detectors with fewer augmented copies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig, ExperimentConfig
from diawork.base.errors import DataError, UsageError
from diawork.data.images import Splits
from diawork.detectors.dia import DIA
from diawork.evaluation.comparison import Comparison, adjust, compare_detectors
from diawork.evaluation.metrics import summary
from diawork.method.ddpm import DDPM, pretrain_ddpm
from diawork.runs.artifacts import run_dissolver, shared_bank, shared_ddpm
from diawork.runs.resolve import Resolved
from diawork.runs.run import runs_root

LAST = 50  # steps whose mean loss is compared


class Paths(NamedTuple):
    """What ``compare_paths`` returns: a row a path and seed, and each path's scores (S, N) of images anomalous (N,)."""

    rows: pd.DataFrame
    scores: dict[str, np.ndarray]
    anomalous: np.ndarray


def require_paths(cfg: ExperimentConfig, splits: Splits) -> None:
    """Refuse what no paths can be compared on."""
    if not len(splits.val) or splits.val.anomalous.all() or not splits.val.anomalous.any():
        raise DataError(f"{splits.val.name} has no healthy and anomalous validation images to compare paths on.")
    if cfg.detector != "dia" or cfg.dissolve.operator != "ddpm":
        raise UsageError("the fast paths are those of DIA with a dissolver.", hint="Use detector='dia'.")


def compare_paths(
    cfg: ExperimentConfig, splits: Splits, ddpm: DDPM, *, folder: Path | str, seeds: Sequence[int] = (0, 1, 2),
    bank_steps: int = 16, samples: int = 2, compute: Compute | None = None, progress: bool = True,
) -> Paths:  # fmt: skip
    """Train and score DIA on every path.

    Columns of the rows: path, seed, auroc with its BCa interval on ``val``, fit_seconds. Trainings under ``folder``
    are found again and continued.
    """
    require_paths(cfg, splits)
    fast = compute or Compute.auto()
    banked = cfg.but(dissolve=cfg.dissolve.but(bank_steps=bank_steps))
    dissolver = run_dissolver(banked, ddpm, splits, compute=fast)
    bank = shared_bank(dissolver, ddpm, splits, out=folder, progress=progress)
    ways: dict[str, tuple[ExperimentConfig, Compute, Any]] = {"plain": (cfg, Compute(fast.device, compile=False), None)}
    if fast.precision != "fp32":  # elsewhere it would be the plain path once more, under a wrong name
        ways[fast.precision] = (cfg, fast, None)
    ways["bank"] = (banked, fast, bank)
    rows: list[dict[str, Any]] = []
    scores: dict[str, list[np.ndarray]] = {path: [] for path in (*ways, "few samples")}
    for seed in seeds:
        for path, (one, chosen, views) in ways.items():
            detector = DIA(ddpm, one.override({"seed": seed}), dissolve=views, compute=chosen)
            detector.fit(splits.train, folder=Path(folder) / f"{path}-s{seed}", progress=progress)
            scored = {path: detector.anomaly_scores(splits.val)}
            if path == "bank":
                scored["few samples"] = detector.score(splits.val, samples=samples).total
            for name, values in scored.items():
                metrics = summary(values, splits.val.anomalous)
                kept = {key: metrics[key] for key in ("auroc", "auroc_low", "auroc_high")}
                rows.append({"path": name, "seed": seed, **kept, "fit_seconds": detector.history.seconds})
                scores[name].append(values)
    stacked = {path: np.stack(of_seeds) for path, of_seeds in scores.items()}
    return Paths(pd.DataFrame(rows), stacked, splits.val.anomalous)


def paths_table(paths: Paths) -> pd.DataFrame:
    """Return one row a path: means over seeds, and its comparison with ``plain`` over images and seeds as one family.

    Columns: path, auroc with its interval and ``auroc_sd``, fit_seconds, seeds, and of the comparison ``difference``
    with its interval, ``p`` and ``reading``; for ``plain`` itself, and where no test can be made, they are empty.
    """
    by_path = paths.rows.groupby("path", sort=False)
    table = by_path.mean(numeric_only=True).drop(columns="seed")
    table.insert(1, "auroc_sd", by_path["auroc"].std(ddof=1))
    table["seeds"] = by_path["seed"].nunique()
    tests: dict[str, Comparison] = {}
    readings: dict[str, dict[str, Any]] = {}  # path → what the columns of the comparison say
    for path in (path for path in paths.scores if path != "plain"):
        try:
            tests[path] = compare_detectors(
                paths.scores[path], paths.scores["plain"], paths.anomalous, paired_seeds=True
            )  # fmt: skip
        except DataError as error:
            readings[path] = {"reading": f"not compared: {error.what}"}
    for path, c in zip(tests, adjust(list(tests.values())), strict=True):
        ends = {"difference": c.difference, "difference_low": c.low, "difference_high": c.high, "p": c.p}
        readings[path] = ends | {"reading": c.reading(path, "plain")}
    columns = ["difference", "difference_low", "difference_high", "p", "reading"]
    compared = pd.DataFrame.from_dict(readings, orient="index").reindex(columns=columns)
    return table.join(compared).reset_index(names="path")


def compare_pretraining(
    splits: Splits, cfg: DiffusionConfig, *, bridge: str, folder: Path | str, compute: Compute | None = None,
    progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
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
    cfg: Resolved, splits: Splits, *, seeds: int = 3, out: Path | str | None = None,
    data_root: Path | str | None = None, compute: Compute | None = None, ddpm_steps: int = 200,
) -> dict[str, Any]:  # fmt: skip
    """Compare the paths and the precisions on a data set; return rows ready for JSON."""
    ddpm = shared_ddpm(cfg, splits, out=out, data_root=data_root, compute=compute)
    folder = runs_root(out) / "fidelity"
    paths = compare_paths(cfg, splits, ddpm, folder=folder, seeds=range(seeds), compute=compute)
    short = cfg.diffusion.but(steps=min(ddpm_steps, cfg.diffusion.steps))
    bridge = cfg.dissolve.bridge or splits.manifest.bridge
    pretraining = compare_pretraining(splits, short, bridge=bridge, folder=folder, compute=compute)
    asked = f"DIA on {splits.val.name}, preset {cfg.preset}, {cfg.train.epochs} epochs, {seeds} seeds, one DDPM."
    return {
        "asked": f"{asked} Validation split, {len(splits.val)} images; test was not touched.",
        "paths": paths_table(paths).to_dict("records"),
        "runs": paths.rows.to_dict("records"),
        "pretraining": pretraining.to_dict("records"),
        "last": LAST,
    }
