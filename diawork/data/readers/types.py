"""What a reader delivers, whatever the kind of data set."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from diawork.data.readers.store import StoredImages, StoredMasks


class Part(NamedTuple):
    """One split: images (N, C, H, W) in [0, 1], float32 or stored, and what is known of each."""

    images: np.ndarray | StoredImages
    class_names: np.ndarray  # str (N,)
    masks: np.ndarray | StoredMasks | None = None  # bool (N, 1, H, W) of lesions
    files: np.ndarray | None = None  # str (N,), where an image is a file of its own
    patients: np.ndarray | None = None  # str (N,), "" where not known


class Content(NamedTuple):
    """The splits of a data set and where they came from."""

    parts: dict[str, Part]  # by split
    source: str  # where it came from, without machine paths
    notes: tuple[str, ...] = ()  # what a report must show
    path: Path | None = None  # of the file or folder
    md5: str | None = None  # of the file
