"""A sweep: one table, figure or ablation as a file, expanded into cells, one run of a notebook each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, field_validator

from diawork.base.config import ExperimentConfig
from diawork.base.errors import CheckpointError, UsageError, did_you_mean
from diawork.base.files import digest, read_json, shipped, write_json
from diawork.data.documents import Source
from diawork.data.manifests import load_manifest
from diawork.runs.methods import METHODS, label_of, runnable
from diawork.runs.notebooks import defaults, notebook_parameters, require_type
from diawork.runs.presets import PRESETS, preset
from diawork.runs.resolve import resolve
from diawork.sweeps.file import (
    NOTEBOOKS,
    SHIPPED,
    Heading,
    Size,
    SweepFile,
    notebook_path,
    placed_settings,
    read_sweep_file,
)

ELSEWHERE = {  # notebook parameters that a sweep file does not set, and what to do instead
    "seed": "Use seeds: [0, 1, 2].",
    "overrides": "Write the dotted keys themselves.",
    **dict.fromkeys(("out", "data_root", "device", "processes"), "Give it on the command line."),
    "cell": "Every cell has its own.",
}


class Cell(BaseModel):
    """One run of a notebook: what differs from its defaults, and the config that follows."""

    model_config = ConfigDict(frozen=True)

    digest: str  # of the work
    label: str  # the row's name in tables: the parts, joined; without data set and seed
    parts: tuple[str, ...]  # one an axis
    point: dict[str, Any]  # what the axes set here
    notebook: str
    parameters: dict[str, Any]  # of the notebook, the launcher's own left out
    overrides: dict[str, Any]  # dotted config keys
    config: ExperimentConfig | None  # None: the notebook takes no preset and data set, or another version wrote it

    @field_validator("config", mode="wrap")
    @classmethod
    def _of_this_version(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> ExperimentConfig | None:
        try:
            return validate(value)
        except ValidationError:
            return None

    def opened(self) -> list[ExperimentConfig]:
        """Return one config for each data set that the cell opens: the run's own, and the DDPM's."""
        own = [self.config] if self.config else []
        other = self.config.diffusion.dataset if self.config else self.parameters.get("dataset")
        if other is None or other in (cfg.dataset for cfg in own):
            return own
        return [*own, ExperimentConfig(dataset=other)]

    def merged(self, again: Cell) -> Cell:
        """Return one cell for equal work at two points: its names and settings are those in common."""
        parts = tuple(part for part in self.parts if part in again.parts)
        point = {key: value for key, value in self.point.items() if again.point.get(key, value) == value}
        label = self.label
        if label != again.label:
            label = ", ".join(parts) or (label_of(self.config) if self.config else label)
        return self.model_copy(update={"label": label, "parts": parts, "point": point})


class Sweep(Heading, extra="ignore", strict=False):
    """A validated, expanded sweep file at one size; its folder keeps it as ``sweep.json``."""

    size: str
    notebook: str
    cells: tuple[Cell, ...]
    source: str = ""  # the file
    lines: dict[str, int] = {}  # of the data sets in it
    changes: dict[str, Any] = {}  # settings of every cell, over those of the file

    @classmethod
    def load(cls, name_or_path: str | Path, size: str | None = None, changes: dict[str, Any] | None = None) -> Sweep:
        """Read a shipped sweep by name, or a file of your own; ``size`` is one that the file names [cpu].

        ``changes`` are settings that hold in every cell, such as another data set, over those below fixed: and sizes:.

        Raises ``UsageError``: one sentence with file and line, for an unknown name, a wrong type, an
        illegal value, a selection on test, anywhere in the file.
        """
        file, source = read_sweep_file(name_or_path)
        plan = Plan(file, source, size, changes or {})
        heading = file.model_dump(include=set(Heading.model_fields)) | {"title": file.title or file.name}
        facts = {"size": plan.size, "notebook": plan.notebook, "source": source.name, "lines": plan.dataset_lines()}
        heading["needs"] = [name for name in file.needs if name not in plan.changes.values()]
        return cls.model_validate(heading | facts | {"changes": plan.changes, "cells": plan.cells})

    @classmethod
    def read(cls, folder: Path | str) -> Sweep:
        """Return the sweep that ``write`` left in ``folder``, in this version or an older one."""
        path = Path(folder) / "sweep.json"
        if not path.exists():
            raise UsageError("this is not the folder of a sweep.", path=folder, hint="It holds a sweep.json.")
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise CheckpointError(f"not a sweep as this version knows it ({place}).", path=path) from None

    def write(self, folder: Path | str) -> None:
        """Write ``sweep.json``."""
        write_json(Path(folder) / "sweep.json", self.model_dump(mode="json"))

    @property
    def folder_name(self) -> str:
        """Return the name of the sweep's folder below ``<out>/sweeps``."""
        changes = ",".join(f"{key}={value}" for key, value in self.changes.items())
        if not re.fullmatch(r"[\w.,=-]{0,80}", changes):
            changes = digest(changes)[:12]
        return "-".join(filter(None, (self.name, self.size, changes)))


class Plan:
    """A sweep file at one size: every setting in it is looked at, then its cells are made."""

    def __init__(self, file: SweepFile, source: Source, size: str | None, changes: dict[str, Any]) -> None:
        self.file, self.source, self.changes = file, source, changes
        self.size = next((name for name in ("cpu", *file.sizes) if name in file.sizes), "") if size is None else size
        with source.at("sizes"):
            _require(size or "", file.sizes, f"{size!r} is not a size of this sweep.")
        with source.at("notebook"):
            self.path = notebook_path(file.notebook, Path(source.name).parent)
        ours = self.path.parent in (SHIPPED, shipped("notebooks"))
        self.notebook = self.path.stem if ours else str(self.path.absolute())
        self.known = notebook_parameters(self.path)
        self.config_keys = ExperimentConfig().keys() if "overrides" in self.known else []
        self.settings = list(placed_settings(source))
        self._check_settings()
        self.cells = self._cells()
        with source.at("sizes", self.size):
            if not self.cells:
                raise UsageError(f"size {self.size} leaves no point of the axes.")
        self._check_rows()

    def dataset_lines(self) -> dict[str, int]:
        """Return the line that names each data set."""
        named = [(value, place) for key, value, place in self.settings if key.endswith("dataset")]
        return {value: self.source.line(place) for value, place in reversed(named) if isinstance(value, str)}

    def _check_settings(self) -> None:
        for key, value, place in self.settings:
            with self.source.at(*place):
                self._check(key, value)
        varied = {key for key, _, place in self.settings if place[0] == "axes"}
        for key, value in self.changes.items():
            self._check(key, value)
            if key in varied:
                what = f"{key!r} is what an axis of {self.file.name} varies."
                raise UsageError(what, hint="Set it in a file of your own.")
        if "seeds" in self.file.model_fields_set and "seed" not in self.known:
            with self.source.at("seeds"):
                raise UsageError(f"{self.path.name} has no seed, so that seeds have no meaning.")

    def _check_rows(self) -> None:
        """Refuse a baseline that no row is called, and an x that no axis sets."""
        labels = {label for cell in self.cells for label in (cell.label, *cell.parts)}
        with self.source.at("baseline"):
            _require(self.file.baseline, labels, f"baseline {self.file.baseline!r} is not a row.")
        varied = {key for cell in self.cells for key in cell.point}
        for row in self.file.repeats:
            with self.source.at("repeats", row):
                _require(row, {cell.label for cell in self.cells}, f"repeats names {row!r}, which is not a row.")
        with self.source.at("x"):
            _require(self.file.x, varied, f"x: {self.file.x!r} is not on an axis.")

    def _check(self, key: str, value: Any) -> None:
        """Refuse what is no parameter or config key, or has another type, or an unknown name as its value."""
        if key in ELSEWHERE:
            raise UsageError(f"{key!r} is not set in a sweep file.", hint=ELSEWHERE[key])
        offered = {*self.known, *self.config_keys} - set(ELSEWHERE)
        _require(key, offered, f"{key!r} is not a parameter of {self.path.name}.")
        if key in self.known:
            require_type(key, value, self.known[key]["inferred_type_name"])
        else:
            _check_override(key, value)
        if key == "preset":
            _require(value, PRESETS, f"{value!r} is not a preset.")
        if key == "method":
            _require(value, METHODS, f"{value!r} is not a method.")
        if key in ("dataset", "diffusion.dataset") and value is not None:
            load_manifest(value)

    def _cells(self) -> tuple[Cell, ...]:
        """Return the product of the axes times the seeds; equal work (a control over seeds) stands once."""
        size = self.file.sizes.get(self.size, Size())
        seeds = [{"seed": n} for n in size.seeds or self.file.seeds] if "seed" in self.known else [{}]
        fixed = self.file.fixed | size.settings | self.changes
        cells: dict[str, Cell] = {}
        for point in itertools.product(*(axis.labelled() for axis in self.file.axes)):
            varied = {key: value for _, settings in point for key, value in settings.items()}
            parts = tuple(label for label, _ in point if label)
            for seed in seeds if size.keeps(varied) else []:
                cell = self._cell(seed | fixed, varied, parts)
                cells[cell.digest] = cells[cell.digest].merged(cell) if cell.digest in cells else cell
        return tuple(cells.values())

    def _cell(self, fixed: dict[str, Any], varied: dict[str, Any], parts: tuple[str, ...]) -> Cell:
        """Return the cell at one point: what the axes set there, which wins over ``fixed``, and a label from each."""
        settings = fixed | varied
        parameters = {key: value for key, value in settings.items() if key in self.known}
        overrides = {key: value for key, value in settings.items() if key not in self.known}
        work: dict[str, Any] = {"notebook": self.notebook, "parameters": parameters, "overrides": overrides}
        work["config"] = config = self._config(parameters, overrides)
        label = ", ".join(parts) or (label_of(config) if config else self.file.title or self.file.name)
        return Cell(digest=cell_digest(**work), label=label, parts=parts, point=varied, **work)

    def _config(self, parameters: dict[str, Any], overrides: dict[str, Any]) -> ExperimentConfig | None:
        """Return the config that the notebook will run; the line of a refusal is that of the key at fault."""
        values = defaults(self.known) | parameters
        if not {"preset", "dataset"} <= set(values):
            return None
        try:
            cfg = preset(values["preset"], dataset=values["dataset"], seed=values.get("seed", 0)).override(overrides)
            return runnable(cfg, values["method"]) if "method" in values else cfg
        except UsageError as error:
            at_fault = [item for item in overrides.items() if item[0] in f"{error.field} {error.what}"]
            last = (at_fault or list((parameters | overrides).items()))[-1:]
            if any(item in self.changes.items() for item in last):
                raise
            places = [place for key, value, place in self.settings if (key, value) in last]
            with self.source.at(*next(iter(places), ("name",))):
                raise


def cell_digest(notebook: str, parameters: dict, overrides: dict, config: ExperimentConfig | None) -> str:
    """Return what makes two cells the same work: the config, and the parameters that are no part of it."""
    stem = NOTEBOOKS.get(notebook, Path(notebook).stem)
    if config is None or "method" not in parameters:
        return digest([stem, parameters, overrides])
    others = {k: v for k, v in parameters.items() if k not in ("preset", "dataset", "method", "seed")}
    return digest([stem, others, *resolve(config, load_manifest(config.dataset)).work()])


def _require(name: str, names: Collection[str], what: str) -> None:
    """Refuse a name that is not among ``names``; an empty one asks for nothing."""
    if name and name not in names:
        raise UsageError(what, hint=did_you_mean(name, names or ["none"]))


def _check_override(key: str, value: Any) -> None:
    """Refuse a config value that is illegal by itself; two that do not fit are for the cell to tell."""
    if key == "train.select" and value == "test":
        what = "train.select: test would choose the epoch on the test split, which is not offered."
        raise UsageError(what, hint="Use last or val.")
    try:
        plain = ExperimentConfig().override({key: value}).flat()[key]
    except UsageError as error:
        if error.field.startswith(key):
            raise
        return
    if isinstance(value, bool | str) and type(plain) is not type(value):
        raise UsageError(f"{key}={value!r} is a {type(value).__name__}; wanted a {type(plain).__name__}.")
