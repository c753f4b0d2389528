"""What a few images of a set say of all: size, channels, depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diawork.base.errors import DataError, DiaworkError, UsageError, printable
from diawork.data.readers.picture import read_image
from diawork.data.readers.resizing import TINT

LOOKED_AT = 25  # images of a class that are opened
WINDOW = (0.0, 65_535.0)


def spread(paths: Sequence[str]) -> list[str]:
    rows = np.linspace(0, len(paths) - 1, min(LOOKED_AT, len(paths))).round().astype(int)
    return [paths[row] for row in rows]


def look_at(
    folder: Path, examples: dict[str, list[str]], assumed: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the examples as images, and size, channels, window, steps and bridge for all."""
    opened, deep, reasons = {}, dict[str, np.ndarray](), list[str]()
    for path in (path for paths in examples.values() for path in paths):
        try:
            opened[path] = read_image(folder / path).image
        except DiaworkError as error:
            if "intensity window" not in error.what:
                reasons.append(f"{printable(path)}: {error.what}")
                continue
            opened[path] = deep[path] = read_image(folder / path, window=WINDOW).image
    if not opened:
        raise DataError(f"none of the images can be read, first {reasons[0]}", path=folder)
    if reasons:
        assumed.append(
            f"{len(reasons)} of {len(opened) + len(reasons)} opened images cannot be read, first {reasons[0]}"
        )
    window = _window(deep, opened, folder, assumed)
    if window:
        opened = {path: (image * WINDOW[1] / window[1]).clip(0, 1) for path, image in opened.items()}
    shapes = Counter(image.shape[1:] for image in opened.values())
    colour = sum(bool(np.ptp(image, axis=0).max() > TINT) for image in opened.values())
    size = int(np.clip(np.median([min(shape) for shape in shapes.elements()]), 8, 4096))
    stretched = any(max(shape) > 1.1 * min(shape) for shape in shapes)
    sizes = " · ".join(f"{h}×{w}" for (h, w), _ in shapes.most_common(3)) + (" …" if len(shapes) > 3 else "")
    how = "" if set(shapes) == {(size, size)} else f", brought to {size} px ({'pad' if stretched else 'squash'})"
    assumed.append(f"{'colour' if colour else 'grey'}, {sizes} px in {len(opened)} opened images{how}")
    image = {"size": size, "channels": 3 if colour else 1}
    facts = {"image": image, "resize": "pad" if stretched else "squash", "t_range": [30, 130]}
    assumed.append("dissolving steps 30 to 130, as the paper has them for chest X-rays of 28 px")
    return opened, facts | {"bridge": "pad" if size <= 32 else "resize"} | ({"intensity": window} if window else {})


def _window(deep: dict[str, np.ndarray], opened: dict, folder: Path, assumed: list[str]) -> list[float] | None:
    """Return the window of images deeper than 8 bits: from 0 to the least 2ᵇ − 1 above all values seen."""
    if not deep:
        return None
    if len(deep) < len(opened):
        what = f"{len(deep)} of {len(opened)} opened images need a window, the others have 8 bits."
        raise UsageError(what, path=folder, hint="Save all with one depth; a set has one window.")
    highest = max(float(image.max()) for image in deep.values()) * WINDOW[1]
    bits = next(bits for bits in (8, 10, 12, 14, 16) if round(highest) < 2**bits)
    assumed.append(f"{bits} bits: the highest value seen is {highest:.0f}, so white is {2**bits - 1}")
    return [0.0, float(2**bits - 1)]
