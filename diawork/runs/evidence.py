"""The pictures that go with a result: dissolving strips, worst errors beside their neighbours, anomaly maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diawork.base.errors import Interrupted
from diawork.data.images import ImageSet, Splits
from diawork.detectors.base import Detector, MapMethods
from diawork.detectors.controls import STATISTICS, image_statistics
from diawork.detectors.learned import SMOOTH
from diawork.detectors.maps import blur_map, mean_map
from diawork.evaluation.pixels import pixel_summary
from diawork.method.dissolve import Dissolver

MAPPED = 80  # images whose maps are measured, evenly spaced
KEPT = 6  # of them, as pictures
STRIP_STEPS = (10, 30, 50, 75, 100, 130, 160, 200, 250, 300, 400, 600)  # among them the paper's Fig. 1


def evidence(
    splits: Splits,
    images: ImageSet,
    rows: Sequence[Mapping[str, Any]],
    *,
    detector: Detector,
    dissolver: Dissolver | None = None,
) -> dict[str, np.ndarray]:
    """Return the arrays a report shows for a detector; ``rows`` are those of ``scores.csv`` for ``images``.

    A run whose slot the DDPM fills adds its strip and, where the images have masks, the anomaly maps; so does a
    detector that makes maps of its own. What cannot be drawn is left out with a warning: a picture costs no result.
    """
    healthy = splits.train.normal()
    arrays = _drawn("statistics", lambda: _statistics(images))
    if rows and "nearest_0" in rows[0]:
        arrays |= _drawn("worst errors", lambda: worst_errors(images, healthy, rows))
    if dissolver is not None:
        arrays |= _drawn("dissolving strip", lambda: _strip(dissolver, images))
    if images.masks is not None and (dissolver is not None or detector.has_map):
        arrays |= _drawn("anomaly maps", lambda: mapped(images, healthy, detector.map_methods(dissolver, splits.train)))
    return arrays


def _drawn(what: str, draw: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    try:
        return draw()
    except Interrupted:
        raise
    except Exception as error:
        warnings.warn(f"this run has no {what} ({type(error).__name__}: {error})", stacklevel=2)
        return {}


def _statistics(images: ImageSet) -> dict[str, np.ndarray]:
    order = images.index.argsort()  # as the scores are read
    statistics = np.concatenate([image_statistics(rows) for rows in images.batches()])
    return {"statistics": statistics[order], "statistics_names": np.array(STATISTICS)}


def _strip(dissolver: Dissolver, images: ImageSet) -> dict[str, np.ndarray]:
    ts = [t for t in STRIP_STEPS if t < dissolver.timesteps]
    if not ts:
        return {}
    strip, labels = dissolving_strip(dissolver, images, ts), images.class_names[strip_rows(images)]
    return {"strip_ts": np.array(ts), "strip": strip, "strip_label": labels}


def mapped(images: ImageSet, healthy: ImageSet, methods: MapMethods) -> dict[str, np.ndarray]:
    """Return anomaly maps of a few images, and what every map measures against the masks.

    ``maps_table`` (M, 6) holds pixel AUROC and AUPRO, each with its interval; the last rows are the controls.
    """
    rows = np.linspace(0, len(images) - 1, min(MAPPED, len(images))).round().astype(int)
    some = images.take(rows).loaded()
    masks = np.zeros(0, bool) if some.masks is None else some.masks[:, 0].numpy()
    if masks.all() or not masks.any():
        return {}
    maps = {name: method(some) for name, method in methods.items()}
    maps |= {f"|x − blur(x)|{word}": blur_map(some, smooth=s) for word, s in ((", smoothed", SMOOTH), ("", 0.0))}
    maps["|x − mean healthy image|, smoothed"] = mean_map(some, healthy, smooth=SMOOTH)
    table = [pixel_summary(values, masks) for values in maps.values()]
    columns = [f"{metric}{end}" for metric in ("pixel_auroc", "aupro") for end in ("", "_low", "_high")]
    lesioned = np.flatnonzero(masks.any((1, 2)))
    spread = lesioned[:: max(1, len(lesioned) // (KEPT - 1))][: KEPT - 1]
    kept = np.append(spread, np.flatnonzero(~some.anomalous)[:1])
    return {
        "maps": np.stack([values[kept] for values in maps.values()]).astype(np.float16),
        "maps_images": some.images[kept].mean(1).numpy(),
        "maps_masks": masks[kept],
        "maps_label": some.class_names[kept],
        "maps_names": np.array(list(maps)),
        "maps_table": np.array([[row[c] for c in columns] for row in table]),
        "maps_counts": np.array([table[0]["n_images"], table[0]["n_anomalous"], table[0]["n_regions"]]),
    }


def strip_rows(images: ImageSet, n: int = 2) -> np.ndarray:
    """Return the positions of the first n healthy and the first n anomalous images."""
    return np.concatenate([np.flatnonzero(images.anomalous == anomalous)[:n] for anomalous in (False, True)])


def dissolving_strip(dissolver: Dissolver, images: ImageSet, ts: Sequence[int], n: int = 2) -> np.ndarray:
    """Return (2n, 1 + T, H, W): n healthy and n anomalous images, first as they are, then dissolved at ``ts``."""
    x = images.take(strip_rows(images, n)).images[:]
    stack = dissolver.stack(x, ts)
    steps = np.concatenate([x[None].numpy(), stack.float().numpy()])
    return steps.mean(2).swapaxes(0, 1).clip(0, 1)


def worst_errors(
    images: ImageSet, healthy: ImageSet, rows: Sequence[Mapping[str, Any]], n: int = 4
) -> dict[str, np.ndarray]:
    """Return the healthy images scored highest and the anomalous scored lowest, with their neighbours.

    A neighbour is the healthy training image with the largest product at the unshifted view.
    """
    total = np.array([float(row["score"]) for row in rows])
    anomalous = images.anomalous
    highest = sorted(np.flatnonzero(~anomalous), key=lambda i: -total[i])[:n]
    worst = np.array([*highest, *sorted(np.flatnonzero(anomalous), key=lambda i: total[i])[:n]])
    nearest = np.array([int(rows[i]["nearest_0"]) for i in worst])
    return {
        "errors_images": images.images[worst].mean(1).numpy(),
        "errors_nearest": healthy.images[nearest].mean(1).numpy(),
        "errors_score": total[worst],
        "errors_label": anomalous[worst],
    }
