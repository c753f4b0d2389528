"""Trivial controls: what can be told from global statistics and pixels alone.

They are uncomfortably strong on some sets. A method that does not clear them has not shown that it
sees anomalies. None learns anything beyond a mean, a spread or a list of healthy images.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch.nn.functional as F
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from diawork.base.errors import CheckpointError, DataError, UsageError
from diawork.base.files import read_arrays, write_arrays
from diawork.base.registry import name_of
from diawork.data.images import ImageSet
from diawork.detectors.base import Detector, Scores, refuse_other_shapes

BANDS = ((1, 2), (2, 4), (4, 7), (7, 10), (10, 14))  # cycles an image, lower end included
STATISTICS = ("mean", "sd", "gradient x", "gradient y", *(f"energy {lo}-{hi}" for lo, hi in BANDS))
NEIGHBOURS = 5
MOST_PX = 32  # of the pixels compared
FILE = "detector.npz"
_TINY = 1e-12  # keeps the logarithm of a flat image finite


def image_statistics(images: Any) -> np.ndarray:
    """Return the nine ``STATISTICS`` (N, 9) of images (N, C, H, W) in [0, 1], channels averaged.

    Gradients are mean absolute differences of neighbouring pixels; an energy is the log of the mean
    Fourier power of a band, the image's mean removed.
    """
    grey = np.asarray(images, np.float64).mean(1)
    mean = grey.mean((1, 2))
    columns = [mean, grey.std((1, 2)), *(np.abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (2, 1))]
    power = np.abs(np.fft.fft2(grey - mean[:, None, None])) ** 2
    cycles = [np.rint(np.fft.fftfreq(n) * n).astype(int) for n in grey.shape[1:]]
    squared = cycles[0][:, None] ** 2 + cycles[1] ** 2  # whole numbers: a radius of exactly 2 belongs to 2-4
    for lo, hi in BANDS:
        band = (squared >= lo**2) & (squared < hi**2)
        columns.append(np.log(power[:, band].sum(1) / max(1, band.sum()) + _TINY))
    return np.stack(columns, axis=1)


class _Control(Detector):
    """What all controls share; a subclass says what it looks at, learns, and how it scores."""

    control = True
    seeded = False

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.image_shape: Sequence[int] = ()  # (C, H, W) of the images fitted on, where known

    def fit(self, train: ImageSet, *, folder: Path | str | None = None, **_: Any) -> Self:
        """Learn from the healthy images of ``train`` alone; saved in ``folder``, so that a run can be applied."""
        healthy = train.normal()
        if not len(healthy):
            raise DataError(f"no normal images in the split {train.split!r} of {train.name!r} to learn from.")
        self.arrays, self.image_shape = self._learn(self._features(healthy)), healthy.images.shape[1:]
        if folder is not None:
            self.save(folder)
        return self

    def score(self, images: ImageSet, **_: Any) -> Scores:
        """Return one score an image (N,); higher = more anomalous."""
        if not self.arrays:
            raise UsageError(
                f"this {self.label} has not been fitted yet.", hint="Call fit(train) or load(folder) first."
            )
        refuse_other_shapes(images, self.image_shape)
        features = self._features(images)
        known = next(iter(self.arrays.values())).shape[-1]
        if features.shape[1] != known:  # of a file that does not hold the shape
            raise DataError(f"{features.shape[1]} values an image do not fit the {known} of the training images.")
        return Scores(self._score(features, images))

    def _features(self, images: ImageSet) -> np.ndarray:
        return np.concatenate([image_statistics(rows) for rows in images.batches()])

    @abstractmethod
    def _learn(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Return what is kept of healthy features (N, F), each array (…, F)."""

    @abstractmethod
    def _score(self, features: np.ndarray, images: ImageSet) -> np.ndarray:
        """Return one score an image (N,) from features (N, F)."""

    def save(self, folder: Path | str) -> None:
        """Save what was learnt as plain arrays in ``detector.npz``."""
        facts = {"kind": np.array(self.name), "shape": np.array(self.image_shape)}
        write_arrays(Path(folder) / FILE, facts | self.arrays)

    @classmethod
    def load(cls, folder: Path | str, *, compute: Any = None) -> Self:
        """Load what ``save`` wrote, ready to score."""
        path = Path(folder) / FILE
        arrays = read_arrays(path)
        kind = name_of(str(arrays.pop("kind", "something else")))
        if kind != cls.name:
            raise CheckpointError(f"this is {kind!r}, not {cls.name!r}.", path=path)
        detector = cls()
        detector.image_shape = tuple(int(n) for n in arrays.pop("shape", ()))
        detector.arrays = arrays
        return detector


def _neighbour_distance(known: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the mean distance (N,) to the nearest five healthy images."""
    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(known))).fit(known)
    return search.kneighbors(features)[0].mean(1)


def _spread(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and sd (9,) of healthy statistics; one that never varies is left as it is."""
    sd = features.std(0)
    return features.mean(0), np.where(sd > _TINY, sd, 1.0)


class StatsKNN(_Control):
    """Distance to the five nearest healthy images in the nine standardised statistics."""

    name = "stats_knn"
    label = "5-NN on statistics"

    def _learn(self, features: np.ndarray) -> dict[str, np.ndarray]:
        mean, sd = _spread(features)
        return {"mean": mean, "sd": sd, "healthy": (features - mean) / sd}

    def _score(self, features: np.ndarray, images: ImageSet) -> np.ndarray:
        return _neighbour_distance(self.arrays["healthy"], (features - self.arrays["mean"]) / self.arrays["sd"])


class StatsMahalanobis(_Control):
    """Mahalanobis distance to the healthy images in the nine standardised statistics."""

    name = "stats_mahalanobis"
    label = "Mahalanobis on statistics"

    def _learn(self, features: np.ndarray) -> dict[str, np.ndarray]:
        mean, sd = _spread(features)
        model = EmpiricalCovariance(assume_centered=True).fit((features - mean) / sd)
        return {"mean": mean, "sd": sd, "precision": model.get_precision()}

    def _score(self, features: np.ndarray, images: ImageSet) -> np.ndarray:
        z = (features - self.arrays["mean"]) / self.arrays["sd"]
        return np.sqrt(np.einsum("ni,ij,nj->n", z, self.arrays["precision"], z).clip(min=0))


class PixelKNN(_Control):
    """Distance to the five nearest healthy images in the pixels themselves, of at most 32 × 32."""

    name = "pixel_knn"
    label = "5-NN on pixels"

    def _features(self, images: ImageSet) -> np.ndarray:
        large = max(images.images.shape[-2:]) > MOST_PX  # means of areas, then
        small = (F.interpolate(x, (MOST_PX, MOST_PX), mode="area") if large else x for x in images.batches())
        return np.concatenate([x.flatten(1).numpy() for x in small])

    def _learn(self, features: np.ndarray) -> dict[str, np.ndarray]:
        return {"healthy": features}

    def _score(self, features: np.ndarray, images: ImageSet) -> np.ndarray:
        return _neighbour_distance(self.arrays["healthy"], features)


class OracleStatistic(_Control):
    """The best of the nine statistics, with its sign, chosen by looking at the labels it is evaluated on.

    Not a detector: a mark of what one number could do. ``chosen`` names the last choice.
    """

    name = "oracle_statistic"
    label = "best single statistic (oracle)"
    oracle = True

    def __init__(self) -> None:
        super().__init__()
        self.chosen = ""

    def _learn(self, features: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": features.mean(0)}

    def _score(self, features: np.ndarray, images: ImageSet) -> np.ndarray:
        anomalous = np.asarray(images.anomalous, bool)
        if anomalous.all() or not anomalous.any():
            raise DataError("the oracle needs both classes to choose by.")
        lean = np.array([roc_auc_score(anomalous, column) for column in features.T]) - 0.5
        best = int(np.abs(lean).argmax())
        sign = -1.0 if lean[best] < 0 else 1.0
        self.chosen = f"{'low' if sign < 0 else 'high'} {STATISTICS[best]}"
        return sign * features[:, best]
