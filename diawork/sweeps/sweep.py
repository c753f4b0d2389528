"""A sweep: one table, figure or ablation as a file, expanded into cells, one run of a notebook each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diawork.base.errors import UsageError, did_you_mean, printable
from diawork.data.strictyaml import MAX_BYTES, parse_yaml
from diawork.sweeps.cells import Cell
from diawork.sweeps.file import Reader


@dataclass(frozen=True)
class Sweep:
    """A validated, expanded sweep file at one size."""

    name: str
    title: str
    size: str
    notebook: str
    cells: tuple[Cell, ...]
    published: tuple[str, ...] = ()  # table keys of published.yaml, printed beside ours
    baseline: str = ""  # the label, or part of one, against which the others are tested
    x: str = ""  # the axis that a plot puts on x
    needs: tuple[str, ...] = ()  # what this build does not have
    conclusion: str = ""  # what its author read from the numbers, shown on the page
    source: str = ""  # the file
    lines: dict[str, int] = field(default_factory=dict)  # of the data sets in it

    @classmethod
    def load(cls, name_or_path: str | Path, size: str | None = None) -> Sweep:
        """Read a shipped sweep by name, or a file of your own; ``size`` is one that the file names [cpu].

        Raises ``UsageError``: one sentence with file and line, for an unknown name, a wrong type, an
        illegal value, a selection on test, anywhere in the file.
        """
        path = find_sweep(name_or_path)
        try:
            with open(path, "rb") as f:
                content = f.read(MAX_BYTES + 1)
        except OSError as error:
            raise UsageError(f"the sweep file cannot be read ({error.strerror}).", path=path) from None
        values, lines = parse_yaml(content, printable(path))
        return cls(**Reader(values, lines, printable(path)).read(size))

    @property
    def folder_name(self) -> str:
        """Return the name of the sweep's folder below ``<out>/sweeps``."""
        return f"{self.name}-{self.size}" if self.size else self.name

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as ``sweep.json`` holds them."""
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return shown | {"cells": [cell.as_dict() for cell in self.cells]}


def sweeps_folder() -> Path:
    """Return where the sweep files lie that come with the package."""
    return Path(__file__).parent


def list_sweeps() -> list[str]:
    """Return the names of the sweeps that come with the package."""
    return sorted(path.stem for path in sweeps_folder().glob("*.yaml"))


def find_sweep(name: str | Path) -> Path:
    """Return the path of a sweep file given by path or by the name of a shipped one."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError("this sweep file does not exist.", path=path, hint=did_you_mean(path.stem, list_sweeps()))
        return path
    if str(name) not in list_sweeps():
        hint = f"{did_you_mean(name, list_sweeps())} Your own: the path of its .yaml file."
        raise UsageError(f"{str(name)!r} is not a sweep.", hint=hint)
    return sweeps_folder() / f"{name}.yaml"
