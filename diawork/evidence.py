"""The pictures that go with a result: dissolving strips, and the worst errors beside their neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diawork.config import ExperimentConfig
from diawork.diffusion import DDPM
from diawork.dissolve import Dissolver
from diawork.images import ImageSet, Splits

STRIP_STEPS = (10, 30, 50, 75, 100, 130, 160, 200, 250, 300, 400, 600)  # among them the paper's Fig. 1


def evidence(
    splits: Splits, rows: Sequence[Mapping[str, Any]], ddpm: DDPM | None, cfg: ExperimentConfig
) -> dict[str, np.ndarray]:
    """Return the arrays a report shows for a contrastive detector; ``rows`` are those of ``scores.csv``."""
    arrays = worst_errors(splits, [row for row in rows if row["split"] == "test"])
    if ddpm is None:
        return arrays
    ts = [t for t in STRIP_STEPS if t < cfg.diffusion.timesteps]
    strip = {"strip_ts": np.array(ts), "strip": dissolving_strip(ddpm, cfg, splits.test, ts)}
    return arrays | strip | {"strip_label": splits.test.class_names[strip_rows(splits.test)]}


def strip_rows(images: ImageSet, n: int = 2) -> np.ndarray:
    """Return the positions of the first n healthy and the first n anomalous images."""
    return np.concatenate([np.flatnonzero(images.anomalous == anomalous)[:n] for anomalous in (False, True)])


def dissolving_strip(ddpm: DDPM, cfg: ExperimentConfig, images: ImageSet, ts: Sequence[int], n: int = 2) -> np.ndarray:
    """Return (2n, 1 + T, H, W): n healthy and n anomalous images, first as they are, then dissolved at ``ts``."""
    x = images.take(strip_rows(images, n)).images
    dissolver = Dissolver(ddpm.weights(cfg.dissolve.weights), cfg.dissolve)
    stack = dissolver.stack(x, ts)
    return np.concatenate([x[None].numpy(), stack.numpy()])[:, :, 0].swapaxes(0, 1).clip(0, 1).astype(np.float32)


def worst_errors(splits: Splits, rows: Sequence[Mapping[str, Any]], n: int = 4) -> dict[str, np.ndarray]:
    """Return the healthy test images scored highest and the anomalous scored lowest, with their neighbours.

    A neighbour is the healthy training image with the largest product at the unshifted view.
    """
    total = np.array([float(row["score"]) for row in rows])
    anomalous = splits.test.anomalous
    highest = sorted(np.flatnonzero(~anomalous), key=lambda i: -total[i])[:n]
    worst = np.array([*highest, *sorted(np.flatnonzero(anomalous), key=lambda i: total[i])[:n]])
    nearest = np.array([int(rows[i]["nearest_0"]) for i in worst])
    return {
        "errors_images": splits.test.images[worst].mean(1).numpy(),
        "errors_nearest": splits.train.normal().images[nearest].mean(1).numpy(),
        "errors_score": total[worst],
        "errors_label": anomalous[worst],
    }
