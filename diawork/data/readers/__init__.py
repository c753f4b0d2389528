"""The readers of data sets by kind, and of single images."""

from importlib import import_module
from pathlib import Path

from diawork.data.manifests import KINDS, Manifest
from diawork.data.store import Content


def read_content(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read a data set by ``read`` of the module that ``KINDS`` names for its kind."""
    reader = import_module(f"{__name__}.{KINDS[manifest.kind].reader}")
    return reader.read(manifest, root, download=download)
