"""How a loose file becomes the pixels that a detector was fitted on, and which files are meant by a path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diawork.base.errors import CheckpointError, DataError, UsageError, printable
from diawork.data.manifests import UNCOUNTED, Manifest
from diawork.data.readers.folder import walk
from diawork.data.readers.medical import Frame
from diawork.data.readers.picture import read_image
from diawork.data.readers.pixels import Window, decoding
from diawork.data.readers.resizing import TINT, resized, with_channels
from diawork.data.readers.store import FULL
from diawork.data.readers.table import read_rows

TABLES = (".csv", ".parquet")
IMAGE_COLUMNS = ("image_path", "image", "path", "file", "filename")


class Opening(NamedTuple):
    """Size, channels, resize rule, window and frame of a set's images, as a run records them."""

    size: int
    channels: int
    resize: str
    intensity: Window | None = None
    frame: Frame = None
    levels: int = 0  # the whole number of white in a store of decoded files; 0: not rounded

    @classmethod
    def of(cls, manifest: Manifest) -> Opening:
        """Return how the images of a manifest are opened."""
        stored = FULL["uint16" if manifest.intensity else "uint8"] if manifest.kind in UNCOUNTED else 0
        image = manifest.image
        return cls(image.size, image.channels, manifest.resize, manifest.intensity, manifest.frame, stored)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Opening:
        """Undo ``_asdict``, after a journey through JSON."""
        try:
            window = record["intensity"]
            return cls(**record | {"intensity": tuple(window) if window else None})
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"says in no known way how its images were opened ({error}).") from None

    def read(self, path: Path | str) -> np.ndarray:
        """Return the image float32 (C, H, W) in a file as the run would have seen it; else ``DataError``."""
        picture = read_image(Path(path), window=self.intensity, frame=self.frame)
        unit = resized(picture.image, self.size, self.resize)
        if self.channels < len(unit) and np.ptp(unit, axis=0).max() > TINT:
            raise DataError("is a colour picture; this run was fitted on grey ones.")
        unit = with_channels(unit, self.channels)
        if not self.levels:
            return unit
        return np.divide(np.rint(unit.astype(np.float64) * self.levels), self.levels, dtype=np.float32)


def write_pngs(images: Iterable[np.ndarray], folder: Path | str) -> Path:
    """Write images (C, H, W) in [0, 1] as 8-bit PNG files, named by their place, and return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for place, image in enumerate(images):
        values = np.rint(np.moveaxis(np.asarray(image), 0, -1) * 255).astype(np.uint8)
        Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values).save(folder / f"{place:05d}.png")
    return folder


def image_files(sources: Iterable[Path | str]) -> list[str]:
    """Return the files meant by files, folders (all images below) and tables (a column of paths), each once."""
    return list(dict.fromkeys(path for source in sources for path in _files(Path(source))))


def _files(source: Path) -> Iterator[str]:
    if source.is_dir():
        yield from (str(source / file.path) for file in walk(source))
    elif source.suffix.lower() in TABLES:
        yield from _listed(source)
    else:
        yield str(source)


def _listed(table: Path) -> Iterator[str]:
    """Yield the paths in a table's column of images, which begin at the table's folder."""
    if not table.is_file():
        raise UsageError("this table does not exist.", path=table)
    with decoding(table, "this table is damaged"):
        rows = list(read_rows(table))
    column = ""
    for row in rows:
        column = column or next((name for name in IMAGE_COLUMNS if name in row), "")
        if not column:
            names = ", ".join(map(printable, row))
            what = f"no column is called {', '.join(IMAGE_COLUMNS[:-1])} or {IMAGE_COLUMNS[-1]}; there are {names}."
            raise UsageError(what, path=table, hint="Rename the one with the images' paths to image_path.")
        yield str(table.parent / row[column])
