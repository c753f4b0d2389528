"""What goes with a result: strips, worst errors beside their neighbours, anomaly maps, and checks without labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from diawork.base.config import K
from diawork.base.errors import DataError, Interrupted
from diawork.base.loop import Progress
from diawork.data.images import ImageSet, Splits
from diawork.data.pseudo import KINDS, pseudo_anomalies
from diawork.detectors.base import Detector, MapMethods
from diawork.detectors.controls import STATISTICS, image_statistics
from diawork.detectors.learned import SMOOTH
from diawork.detectors.maps import blur_map, mean_map
from diawork.evaluation.diagnostics import SelfCheck, self_check, shift_probe
from diawork.evaluation.metrics import followed
from diawork.evaluation.pixels import pixel_summary
from diawork.method.dissolve import Dissolver
from diawork.method.views import SHIFTS

MAPPED = 80  # images whose maps are measured, evenly spaced
KEPT = 6  # of them, as pictures
STRIP_STEPS = (10, 30, 50, 75, 100, 130, 160, 200, 250, 300, 400, 600)  # among them the paper's Fig. 1
STRENGTH = 1.0  # of pseudo-anomalies
LEAST = 20  # healthy validation images, below which nothing is checked
MOST = 200  # of them, evenly spaced: the check costs six passes over each
THUMBNAIL = 16  # px, of the probe of shifts


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

    def statistics() -> dict[str, np.ndarray]:
        found = np.concatenate([image_statistics(rows) for rows in images.batches()])
        return {"statistics": found[images.index.argsort()], "statistics_names": np.array(STATISTICS)}  # as scores are

    arrays = _drawn("statistics", statistics)
    if rows and "nearest_0" in rows[0]:
        arrays |= _drawn("worst errors", lambda: worst_errors(images, healthy, rows))
    ts = [t for t in STRIP_STEPS if dissolver is not None and t < dissolver.timesteps]
    if dissolver is not None and ts:
        labels = {"strip_ts": np.array(ts), "strip_label": images.class_names[strip_rows(images)]}
        arrays |= _drawn("dissolving strip", lambda: labels | {"strip": dissolving_strip(dissolver, images, ts)})
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


# --- checks without labels --------------------------------------------------------------------------------


class PseudoCheck:
    """Healthy validation images and their pseudo-anomalies, made once and scored by any detector."""

    def __init__(self, val: ImageSet) -> None:
        self.healthy = _some(val.normal())
        pixels = self.healthy.images[:].numpy()
        self.changed: dict[str, ImageSet] = {}
        for kind in KINDS:
            changed = torch.from_numpy(pseudo_anomalies(pixels, kind, strength=STRENGTH).images)
            self.changed[kind] = replace(self.healthy, images=changed, masks=None)

    def of(self, detector: Detector) -> SelfCheck:
        """Return what the detector notices, from one augmented copy an image."""
        healthy = detector.score(self.healthy, samples=1).total
        scores = {(kind, STRENGTH): detector.score(images, samples=1).total for kind, images in self.changed.items()}
        rho, _ = followed(healthy, image_statistics(self.healthy.images[:]))
        most = int(np.abs(rho).argmax())  # the image statistic that the scores follow most
        facts = replace(detector.facts(self.healthy), follows=(STATISTICS[most], float(rho[most])))
        return self_check(healthy, scores, facts)


def checkable(val: ImageSet) -> bool:
    """Say whether there are enough healthy validation images to check on."""
    return int((~val.anomalous).sum()) >= LEAST


def recorded(check: SelfCheck) -> Mapping[str, Any]:
    """Return what ``result.json`` keeps of a check."""
    return asdict(check) | {"verdict": check.verdict, "findings": check.findings(), "strength": STRENGTH}


def probe_shift(detector: Detector, splits: Splits, *, progress: Progress = True) -> dict[str, Any]:
    """Measure and print, before training, whether the detector's shift is a task on these healthy images.

    A linear probe of healthy training thumbnails names the shifts of validation images. Returns what
    ``result.json`` keeps of it; {} where there is no shift, or nothing to probe.
    """
    if not detector.shift or not checkable(splits.val):
        return {}
    shifted = []  # (K, N, P) pixels under each shift, means of areas
    for images in (splits.train, splits.val):
        x = _some(images.normal()).images[:]
        size, shift = min(THUMBNAIL, *x.shape[-2:]), SHIFTS[detector.shift]
        small = [F.interpolate(shift(x, k), (size, size), mode="area").flatten(1).numpy() for k in range(K)]
        shifted.append(np.stack(small))
    try:
        probe = shift_probe(shifted[0], shifted[1], detector.shift)
    except DataError as error:  # a run goes on without it
        warnings.warn(f"the {detector.shift} shifts were not probed: {error.what}", stacklevel=2)
        return {}
    if progress:
        tqdm.write(probe.sentence)
    return {"shift_probe": asdict(probe)}


def _some(images: ImageSet) -> ImageSet:
    """Return at most ``MOST`` of the images, evenly spaced."""
    return images.take(np.linspace(0, len(images) - 1, min(MOST, len(images))).round().astype(int))
