"""A report's part about anomaly maps: the maps beside the masks, and what each measures at the pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from diawork import figures
from diawork.base.errors import DataError

MOST_ROWS = 4  # maps drawn; the table has them all
COLUMNS = ("pixel_auroc", "pixel_auroc_low", "pixel_auroc_high", "aupro", "aupro_low", "aupro_high")


def pixel_table(arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return a row a map with pixel AUROC, AUPRO and their intervals, from a run's evidence; without maps, none."""
    if "maps_table" not in arrays:
        return pd.DataFrame(columns=["map", *COLUMNS])
    table = pd.DataFrame(arrays["maps_table"], columns=list(COLUMNS))
    table.insert(0, "map", [str(name) for name in arrays["maps_names"]])
    return table


def localisation(label: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the picture, its caption and the rows of the pixel table from a run's evidence."""
    try:
        table = pixel_table(arrays)
        n, anomalous, regions = map(int, arrays["maps_counts"])
        drawn = dict(zip(table["map"][:MOST_ROWS], arrays["maps"], strict=False))
        labels = [str(name) for name in arrays["maps_label"]]
        figure = figures.maps_grid(arrays["maps_images"], arrays["maps_masks"], drawn, labels)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the maps of {label} are incomplete ({type(error).__name__}: {error}).") from None
    caption = (
        f"Anomaly maps of {label} on images it never saw, trained on healthy images alone; outlined: the mask. "
        "Brighter is more anomalous, one scale a row."
    )
    counts = f"{n} images, {anomalous} of them with {regions} lesions"
    rows = table.to_dict("records")
    return {"maps": {"image": figures.png_bytes(figure, 90), "caption": caption, "rows": rows, "counts": counts}}
