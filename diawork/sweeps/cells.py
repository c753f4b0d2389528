"""One cell of a sweep: a run of a notebook, what differs from its defaults, and the config that follows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diawork.base.config import ExperimentConfig
from diawork.base.files import digest
from diawork.data.manifests import load_manifest
from diawork.runs.methods import label_of, resolve


@dataclass(frozen=True)
class Cell:
    """One run of a notebook: what differs from its defaults, and the config that follows."""

    label: str  # the row's name in tables: the parts, joined; without data set and seed
    parts: tuple[str, ...]  # one an axis
    point: dict[str, Any]  # what the axes set here
    notebook: str
    parameters: dict[str, Any]  # of the notebook, the launcher's own left out
    overrides: dict[str, Any]  # dotted config keys
    config: ExperimentConfig | None  # None: this notebook takes no preset and data set
    line: int  # in the sweep file
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", digest(self._identity()))

    def _identity(self) -> list[Any]:
        """Return what makes two cells the same work: the config, and parameters that are no part of it."""
        stem = Path(self.notebook).stem
        if self.config is None or "method" not in self.parameters:
            return [stem, self.parameters, self.overrides]
        cfg = resolve(self.config, load_manifest(self.config.dataset))
        others = {k: v for k, v in self.parameters.items() if k not in ("preset", "dataset", "method", "seed")}
        return [stem, others, cfg.identity()]

    def datasets(self) -> list[str]:
        """Return the data sets that this cell opens."""
        if self.config is None:
            return [self.parameters["dataset"]] if "dataset" in self.parameters else []
        return list(dict.fromkeys(filter(None, (self.config.dataset, self.config.diffusion.dataset))))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as ``sweep.json`` and ``cell.json`` hold them."""
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "config"}
        return shown | {"config": self.config and self.config.model_dump(mode="json")}


def merged(first: Cell, again: Cell) -> Cell:
    """Return one cell for equal work at two points: what names and what is set is what they have in common."""
    parts = tuple(part for part in first.parts if part in again.parts)
    point = {key: value for key, value in first.point.items() if again.point.get(key, value) == value}
    named = ", ".join(parts) or (label_of(first.config) if first.config else first.label)
    label = first.label if first.label == again.label else named
    return dataclasses.replace(first, label=label, parts=parts, point=point)
