"""The readers of files that nobody vouches for: a room for each kind of data set, and one for a single image."""

from importlib import import_module
from pathlib import Path

from diawork.data.manifests import Manifest
from diawork.data.readers.picture import Picture, read_image
from diawork.data.readers.types import Content, Part

__all__ = ["Content", "Part", "Picture", "read_content", "read_image"]


def read_content(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read a data set by the reader of its kind: ``read`` in the room of that name."""
    reader = import_module(f"{__name__}.{manifest.kind}")
    return reader.read(manifest, root, download=download)
