"""The readers of files that nobody vouches for: a room for each kind of data set, and one for a single image."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diawork.data.manifests import Manifest
from diawork.data.readers.picture import Picture, read_image

__all__ = ["Content", "Part", "Picture", "read_content", "read_image"]


class Part(NamedTuple):
    """One split: float32 images (N, C, H, W) in [0, 1], class names (N,) and bool masks (N, 1, H, W) of lesions."""

    images: np.ndarray
    class_names: np.ndarray
    masks: np.ndarray | None = None


class Content(NamedTuple):
    """What a reader delivers, whatever the kind of data set."""

    parts: dict[str, Part]  # by split
    source: str  # where it came from, without machine paths
    notes: tuple[str, ...] = ()  # what a report must show
    path: Path | None = None  # of the file
    md5: str | None = None  # of the file


def read_content(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read a data set by the reader of its kind: ``read`` in the room of that name."""
    reader = import_module(f"{__name__}.{manifest.kind}")
    return reader.read(manifest, root, download=download)
