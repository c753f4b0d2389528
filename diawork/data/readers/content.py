"""What a reader delivers, whatever the kind of data set: images, a class name for each, masks where known."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diawork.data.manifests import Manifest


class Part(NamedTuple):
    """One split: float32 images (N, C, H, W) in [0, 1], class names (N,) and bool masks (N, 1, H, W) of lesions."""

    images: np.ndarray
    class_names: np.ndarray
    masks: np.ndarray | None = None


class Content(NamedTuple):
    """The splits of a data set with where they came from."""

    parts: dict[str, Part]
    source: str  # in words, without machine paths
    notes: tuple[str, ...] = ()  # what a report must show
    path: Path | None = None  # of the file
    md5: str | None = None  # of the file


def read_content(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read a data set by the reader of its kind: ``read`` in the room of that name beside this one."""
    reader = import_module(f"diawork.data.readers.{manifest.kind}")
    return reader.read(manifest, root, download=download)
