"""A sweep file of one's own: one knob, its values, everything else held."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diawork.base.files import write_text
from diawork.data.documents import yaml_text

KNOBS: dict[str, dict[str, list[Any]]] = {  # method → knob → values: what notebook 10 varies
    "dia": {
        "dissolve.t_range": [[30, 130], [100, 300]],
        "loss.temperature": [0.2, 0.5],
        "loss.mask": ["naive", "shifted_removed"],
        "loss.shift_weight": [0.0, 1.0],
        "views.shift": ["rotation", "cutperm"],
    },
    "gaussian_blur": {"dissolve.sigma": [0.5, 2.0]},
}


def write_vary(
    folder: Path | str, knob: str, values: Sequence[Any], *, method: str = "dia", dataset: str = "phantom",
    seeds: Sequence[int] = (0,), toy: str = "smoke", full: str = "cpu",
) -> Path:  # fmt: skip
    """Write a sweep file that gives ``knob`` (a dotted config key) each of ``values``; return its path.

    Its sizes are ``toy`` and ``full``, presets both; `diawork sweep FILE --size cpu` runs the same as it stands.
    What is wrong with knob or values is said when the file is loaded, with its line.
    """
    name = re.sub(r"[^a-z0-9]+", "_", f"{method}_{knob}".lower())
    sweep = {
        "name": name, "title": f"{knob} varied, everything else held ({method})",
        "fixed": {"dataset": dataset, "method": method}, "seeds": list(seeds),
        "axes": [{"grid": {knob: list(values)}}], "sizes": {size: {"preset": size} for size in (toy, full)},
    }  # fmt: skip
    path = Path(folder) / f"{name}.yaml"
    write_text(path, yaml_text(sweep))
    return path
