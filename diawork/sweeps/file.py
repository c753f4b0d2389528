"""Reading a sweep file: every entry looked at, every refusal one sentence with its line, then the cells."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from diawork.base.config import ExperimentConfig
from diawork.base.errors import DiaworkError, UsageError, did_you_mean
from diawork.base.files import shipped
from diawork.data.manifests import load_manifest
from diawork.runs.methods import METHODS, label_of, method_config
from diawork.runs.notebooks import defaults, find_notebook, notebook_parameters, require_type
from diawork.runs.presets import PRESETS, preset
from diawork.sweeps.cells import Cell, merged

NOTEBOOK = "06_run_cell"
MAX_CELLS = 5_000
LAUNCHERS = ("out", "data_root", "device", "overrides")  # notebook parameters that are no part of a cell
_KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str, "title": str, "published": (str, list), "notebook": str, "fixed": dict, "axes": list, "seeds": list,
    "baseline": str, "x": str, "sizes": dict, "needs": list, "conclusion": str,
}  # fmt: skip
_WORDS = {dict: "'key: value' lines", list: "a list", str: "text", (str, list): "text or a list of texts"}


Settings = dict[str, tuple[Any, tuple]]  # key → value and its place in the file


class Reader:
    """Turns the values of a sweep file into a ``Sweep``; every refusal names its line."""

    def __init__(self, values: Any, lines: dict[tuple, int], where: str) -> None:
        self.values, self.lines, self.where = values, lines, where
        if not isinstance(values, dict):
            self.refuse("a sweep is a list of 'key: value' lines.", ())
        self._shape()
        self.notebook = self.guarded(lambda: _notebook(values.get("notebook", NOTEBOOK), where), ("notebook",))
        ours = self.notebook.parent == shipped("notebooks")
        self.notebook_name = self.notebook.stem if ours else str(self.notebook.absolute())
        self.known = notebook_parameters(self.notebook)
        self.config_keys = set(ExperimentConfig().keys()) if "overrides" in self.known else set()

    def line(self, at: tuple) -> int:
        """Return the line of a place, or of the nearest one around it."""
        return next((self.lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.lines), 1)

    def refuse(self, what: str, at: tuple, hint: str = "") -> None:
        """Raise the one sentence."""
        raise UsageError(what, hint=hint, path=f"{self.where}, line {self.line(at)}")

    def guarded(self, work: Any, at: tuple) -> Any:
        """Return ``work()``; its user error is given the line of ``at``."""
        try:
            return work()
        except DiaworkError as error:
            what = f"{error.field}: {error.what}" if error.field else error.what
            return self.refuse(what, at, error.hint)

    def read(self, size: str | None) -> dict[str, Any]:
        """Return the fields of the sweep at ``size``, after looking at every entry of the file."""
        values = self.values
        fixed, seeds = self._sized(size := self._size(size))
        cells = self._cells(fixed, self._points(), seeds)
        published, needs = values.get("published", ()), values.get("needs", ())
        found = {
            "name": values["name"], "title": values.get("title", values["name"]), "size": size, "cells": cells,
            "notebook": self.notebook_name, "published": (published,) if isinstance(published, str) else published,
            "needs": tuple(needs), "baseline": values.get("baseline", ""), "x": values.get("x", ""),
            "conclusion": values.get("conclusion", ""), "source": self.where, "lines": self._dataset_lines(),
        }  # fmt: skip
        self._names(found["baseline"], found["x"], cells)
        return found | {"published": tuple(found["published"])}

    def _dataset_lines(self) -> dict[str, int]:
        """Return the line that names each data set."""
        names = (item for item in self.lines if item[-1:] and "dataset" in str(item[-2:]))
        found: dict[str, int] = {}
        for at in names:
            value: Any = self.values
            for step in at:
                value = value[step]
            if isinstance(value, str):
                found.setdefault(value, self.lines[at])
        return found

    def _shape(self) -> None:
        for key, value in self.values.items():
            if key not in _KEYS:
                self.refuse(f"unknown key {key!r}.", (key,), did_you_mean(key, _KEYS))
            if not isinstance(value, _KEYS[key]):
                self.refuse(f"{key} must be {_WORDS[_KEYS[key]]}, not {value!r:.60}.", (key,))
            inner = value if key in ("needs", "published") and isinstance(value, list) else ()
            for i, item in enumerate(inner):
                if not isinstance(item, str):
                    self.refuse(f"{key} holds {item!r:.60}; wanted texts.", (key, i))
        name = self.values.get("name", "")
        if not name or not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
            self.refuse(f"name={name!r} must be a word of letters, digits, - and _.", ("name",))

    def _size(self, size: str | None) -> str:
        sizes = self.values.get("sizes", {})
        if size is None:
            return "cpu" if "cpu" in sizes else next(iter(sizes), "")
        if size not in sizes:
            self.refuse(f"{size!r} is not a size of this sweep.", ("sizes",), did_you_mean(size, sizes or ["none"]))
        return size

    def _sized(self, size: str) -> tuple[Settings, list[int | None]]:
        """Return the fixed settings and seeds of a size; the entries of all sizes are looked at."""
        fixed = self._settings(self.values.get("fixed", {}), ("fixed",))
        seeds = self._seeds(self.values.get("seeds", [0]), ("seeds",))
        chosen: dict[str, Any] = {}
        for name, changes in self.values.get("sizes", {}).items():
            at = ("sizes", name)
            if not isinstance(changes, dict):
                self.refuse(f"the size {name!r} must be 'key: value' lines or {{}}.", at)
            here = self._settings({k: v for k, v in changes.items() if k != "seeds"}, at)
            other = self._seeds(changes["seeds"], (*at, "seeds")) if "seeds" in changes else seeds
            if name == size:
                chosen = {"fixed": here, "seeds": other}
        return fixed | chosen.get("fixed", {}), chosen.get("seeds", seeds)

    def _seeds(self, seeds: Any, at: tuple) -> list[int | None]:
        whole = isinstance(seeds, list) and all(type(s) is int and 0 <= s < 2**31 for s in seeds)
        if not whole or not seeds or len(set(seeds)) < len(seeds):
            self.refuse(f"seeds={seeds!r:.60} must be a list of different whole numbers from 0.", at)
        if "seed" in self.known:
            return seeds
        if "seeds" in self.values:
            self.refuse(f"{self.notebook.name} has no seed, so that seeds have no meaning.", at)
        return [None]

    # --- one setting

    def _settings(self, given: dict[str, Any], at: tuple) -> Settings:
        for key, value in given.items():
            self._check(key, value, (*at, key))
        return {key: (value, (*at, key)) for key, value in given.items()}

    def _check(self, key: Any, value: Any, at: tuple) -> None:
        """Refuse what is no parameter or config key, or has another type, or an unknown name as its value."""
        if key == "seed" or key in LAUNCHERS:
            instead = {"seed": "Use seeds: [0, 1, 2].", "overrides": "Write the dotted keys themselves."}
            hint = instead.get(key, "Give it on the command line.")
            self.refuse(f"{key!r} is not set in a sweep file.", at, hint)
        if key in self.known:
            self.guarded(lambda: require_type(key, value, self.known[key]["inferred_type_name"]), at)
            self._check_name(key, value, at)
        elif key in self.config_keys:
            self._check_override(key, value, at)
        else:
            offered = (set(self.known) | self.config_keys) - {"seed", *LAUNCHERS}
            self.refuse(f"{key!r} is not a parameter of {self.notebook.name}.", at, did_you_mean(key, offered))

    def _check_name(self, key: str, value: Any, at: tuple) -> None:
        names = {"preset": PRESETS, "method": METHODS}.get(key)
        if names is not None and value not in names:
            self.refuse(f"{value!r} is not a {key}.", at, did_you_mean(value, names))
        if key == "dataset":
            self.guarded(lambda: load_manifest(value), at)

    def _check_override(self, key: str, value: Any, at: tuple) -> None:
        if key == "train.select" and value == "test":
            self.refuse("train.select: test would choose the epoch on the test split, which is not offered.", at,
                        "Use last or val.")  # fmt: skip
        if key in ("dataset", "detector"):
            return
        plain = None
        try:
            plain = ExperimentConfig().override({key: value}).flat()[key]
        except UsageError as error:
            if error.field.startswith(key):  # else: two keys that do not fit, which the cell will tell
                self.refuse(f"{error.field}: {error.what}", at, error.hint)
        if plain is not None and isinstance(value, bool | str) and type(plain) is not type(value):
            self.refuse(f"{key}={value!r} is a {type(value).__name__}; wanted a {type(plain).__name__}.", at)
        if key == "diffusion.dataset" and value is not None:
            self.guarded(lambda: load_manifest(value), at)

    # --- axes

    def _points(self) -> list[list[tuple[str, Settings]]]:
        """Return every axis as a list of (label, settings)."""
        axes = [self._axis(axis, ("axes", i)) for i, axis in enumerate(self.values.get("axes", []))]
        taken: dict[str, int] = {}
        for i, axis in enumerate(axes):
            for key in dict.fromkeys(k for _, settings in axis for k in settings):
                if key == "score.evaluate":
                    self.refuse("score.evaluate holds for a whole sweep: rows scored on different images are not "
                                "compared.", ("axes", i), "Set it below fixed:.")  # fmt: skip
                if taken.setdefault(key, i) != i:
                    self.refuse(f"{key!r} is set by two axes.", ("axes", i))
        return axes

    def _axis(self, axis: Any, at: tuple) -> list[tuple[str, Settings]]:
        kind = next(iter(axis)) if isinstance(axis, dict) and len(axis) == 1 else None
        if kind not in ("grid", "zip", "list"):
            self.refuse("an axis is one of grid:, zip: and list:.", at)
        at, given = (*at, kind), axis[kind]
        points = self._list(given, at) if kind == "list" else self._columns(given, kind, at)
        if not points:
            self.refuse("this axis has no values.", at)
        return points

    def _list(self, given: Any, at: tuple) -> list[tuple[str, Settings]]:
        if not isinstance(given, list) or not all(isinstance(point, dict) for point in given):
            self.refuse("list: holds points such as {label: DIA, method: dia}.", at)
        points = []
        for i, point in enumerate(given):
            label = point.get("label", "")
            if not isinstance(label, str):
                self.refuse(f"label={label!r} must be text.", (*at, i, "label"))
            settings = self._settings({k: v for k, v in point.items() if k != "label"}, (*at, i))
            points.append((label or _label(settings), settings))
        return points

    def _columns(self, given: Any, kind: str, at: tuple) -> list[tuple[str, Settings]]:
        """Return the points of ``grid`` (every combination) or ``zip`` (side by side)."""
        if not isinstance(given, dict) or not all(isinstance(column, list) for column in given.values()):
            self.refuse(f"{kind}: holds 'key: [values]' lines.", at)
        lengths = {len(column) for column in given.values()}
        if kind == "zip" and len(lengths) > 1:
            self.refuse(f"the lists of a zip must be equally long, not {sorted(lengths)}.", at)
        for key, column in given.items():
            for j, value in enumerate(column):
                self._check(key, value, (*at, key, j))
        places = [[(key, (value, (*at, key, j))) for j, value in enumerate(col)] for key, col in given.items()]
        rows = itertools.product(*places) if kind == "grid" else zip(*places, strict=True)
        settings = [dict(row) for row in itertools.islice(rows, MAX_CELLS + 1) if row]
        return [(_label(here), here) for here in settings]

    # --- cells

    def _cells(self, fixed: Settings, axes: list, seeds: list[int | None]) -> tuple[Cell, ...]:
        """Return the product of the axes times the seeds; equal work (a control over seeds) stands once."""
        found: dict[str, Cell] = {}
        for n, point in enumerate(itertools.product(*axes)):
            if n >= MAX_CELLS:
                self.refuse(f"more than {MAX_CELLS:,} points.", ("axes",))
            for seed in seeds:
                cell = self._cell(fixed, point, seed)
                found[cell.digest] = merged(found[cell.digest], cell) if cell.digest in found else cell
        return tuple(found.values())

    def _cell(self, fixed: Settings, point: tuple, seed: int | None) -> Cell:
        varied: Settings = {key: place for _, settings in point for key, place in settings.items()}
        settings = fixed | varied
        plain = {key: value for key, (value, _) in settings.items()}
        parameters = {k: v for k, v in plain.items() if k in self.known} | ({} if seed is None else {"seed": seed})
        overrides = {k: v for k, v in plain.items() if k not in self.known}
        config = self._config(parameters, overrides, settings)
        parts = tuple(label for label, _ in point if label)
        label = ", ".join(parts) or (label_of(config) if config else self.values.get("title", self.values["name"]))
        at = next(iter(varied.values()), (None, ("name",)))[1]
        return Cell(
            label, parts, {k: v for k, (v, _) in varied.items()}, self.notebook_name, parameters, overrides,
            config, self.line(at),
        )  # fmt: skip

    def _config(self, parameters: dict, overrides: dict, settings: Settings) -> ExperimentConfig | None:
        """Return the config that the notebook will run; the line of a refusal is that of the key at fault."""
        given = defaults(self.known) | parameters
        if not {"preset", "dataset"} <= set(given):
            return None
        try:
            cfg = preset(given["preset"], dataset=given["dataset"], seed=given.get("seed", 0)).override(overrides)
            return method_config(cfg, given["method"]) if "method" in given else cfg
        except UsageError as error:
            guilty = [at for key, (_, at) in settings.items() if key in f"{error.field} {error.what}" and "." in key]
            last = list(settings.values())[-1][1] if settings else ("name",)
            what = f"{error.field}: {error.what}" if error.field else error.what
            return self.refuse(what, guilty[-1] if guilty else last, error.hint)

    def _names(self, baseline: str, x: str, cells: tuple[Cell, ...]) -> None:
        """Refuse a baseline that is no row, and an x that is no axis."""
        labels = {label for cell in cells for label in (cell.label, *cell.parts)}
        if baseline and baseline not in labels:
            self.refuse(f"baseline {baseline!r} is not a row.", ("baseline",), did_you_mean(baseline, labels))
        axes = {key for cell in cells for key in cell.point}
        if x and x not in axes:
            self.refuse(f"x: {x!r} is not on an axis.", ("x",), did_you_mean(x, axes or ["none"]))


def _notebook(name: str, where: str) -> Path:
    """Return a notebook by number or name, or by a path from here or from the sweep file."""
    beside = Path(where).parent / name
    return beside if beside.suffix == ".ipynb" and beside.is_file() else find_notebook(name)


def _label(settings: Settings) -> str:
    """Return the words for a point without a label of its own; data set and seed stand elsewhere in a table."""
    shown = {key: value for key, (value, _) in settings.items() if key != "dataset"}
    words = [str(v) if k == "method" else f"{k.rpartition('.')[2]} {_value(v)}" for k, v in shown.items()]
    return ", ".join(words)


def _value(value: Any) -> str:
    return "–".join(map(str, value)) if isinstance(value, list) else str(value)
