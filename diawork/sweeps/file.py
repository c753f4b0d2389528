"""The sweep file: its schema, and every setting in it with its place."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from diawork.base.errors import UsageError, did_you_mean
from diawork.base.files import write_text
from diawork.data.documents import Source, StrictModel, load_document, wrong, yaml_text
from diawork.runs.notebooks import find_notebook, list_notebooks

SHIPPED = Path(__file__).parent  # the sweep files that come with the package
MOST_CELLS = 20_000
NOTEBOOKS = {"cell": "06_run_cell", "figure": "07_draw_figure"}  # of cells; their names in version 0.1 and in digests


def _word(name: str) -> str:
    if not name.isascii() or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError("must be a word of letters, digits, - and _")
    return name


def _different(seeds: list[int]) -> list[int]:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError("must be a list of different whole numbers")
    return seeds


Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], AfterValidator(_different)]
TextOrTexts = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
PublishedRow = Annotated[list[str], Field(min_length=1, max_length=2)]  # method, and setting where the row has one
Columns = dict[str, list[Any]]


class _WithSettings(StrictModel):
    """A mapping whose keys are settings, but for the fields named here."""

    model_config = ConfigDict(extra="allow")

    @property
    def settings(self) -> dict[str, Any]:
        return self.model_extra or {}


class Point(_WithSettings):
    """One value of an axis, with a name."""

    label: str = ""


class Size(_WithSettings):
    """What a size of the sweep changes, and the values of an axis that it leaves out."""

    seeds: Seeds | None = None
    without: Columns = {}

    def keeps(self, settings: dict[str, Any]) -> bool:
        """Say whether a point of the axes belongs to this size."""
        return not any(key in settings and settings[key] in left_out for key, left_out in self.without.items())


class Axis(StrictModel):
    """What is varied: every combination of some columns, or a list of points."""

    grid: Columns = {}
    points: list[Point] = Field([], alias="list")

    @model_validator(mode="after")
    def _one_kind(self) -> Axis:
        if len(self.model_fields_set) != 1:
            raise wrong("an axis is one of grid: and list:")
        if not self.length:
            raise wrong("this axis has no values")
        return self

    @property
    def length(self) -> int:
        """Return how many points it has."""
        return len(self.points) or (math.prod(map(len, self.grid.values())) if self.grid else 0)

    def labelled(self) -> list[tuple[str, dict[str, Any]]]:
        """Return label and settings of every point."""
        if self.points:
            return [(point.label or label(point.settings), point.settings) for point in self.points]
        rows = itertools.product(*self.grid.values())
        settings = [dict(zip(self.grid, row, strict=True)) for row in rows]
        return [(label(values), values) for values in settings]


def label(settings: dict[str, Any]) -> str:
    """Return the words for a point without a label of its own; the data set has its own column in a table."""
    words = []
    for key, value in settings.items():
        text = "–".join(map(str, value)) if isinstance(value, list) else str(value)
        if key != "dataset":
            words.append(text if key == "method" else f"{key.rpartition('.')[2]} {text}")
    return ", ".join(words)


class Heading(StrictModel):
    """What a sweep is called, and what its page needs beside the cells."""

    name: Annotated[str, AfterValidator(_word)]
    title: str = ""
    published: TextOrTexts = []  # table keys of published.yaml, printed beside ours
    repeats: dict[str, PublishedRow] = {}  # our row → the published row that it repeats
    baseline: str = ""  # the label, or part of one, against which the others are tested
    x: str = ""  # the axis that a plot puts on x
    needs: list[str] = []  # sets and methods that were not run: their published rows stand alone
    conclusion: str = ""  # what its author read from the numbers, shown on the page


class SweepFile(Heading):
    """The schema of a sweep file."""

    notebook: str = "cell"
    fixed: dict[str, Any] = {}
    axes: list[Axis] = []
    seeds: Seeds = [0]
    sizes: dict[str, Size] = {}

    @model_validator(mode="after")
    def _few_enough(self) -> SweepFile:
        points = math.prod(axis.length for axis in self.axes)
        seeds = max(len(one) for one in (self.seeds, *(size.seeds or [] for size in self.sizes.values())))
        if points * seeds > MOST_CELLS:
            what = f"{points * seeds:,} cells ({points:,} points × {seeds:,} seeds) are more than {MOST_CELLS:,}"
            raise wrong(what, "axes", hint="Vary less, or take several sweeps.")
        return self

    @model_validator(mode="after")
    def _axes_are_apart(self) -> SweepFile:
        axis_of: dict[str, int] = {}
        for i, axis in enumerate(self.axes):
            for key in dict.fromkeys(key for _, settings in axis.labelled() for key in settings):
                if key == "score.evaluate":
                    what = "score.evaluate holds for a whole sweep: rows scored on different images are not compared"
                    raise wrong(what, "axes", i, hint="Set it below fixed:.")
                if axis_of.setdefault(key, i) != i:
                    raise wrong(f"{key!r} is set by two axes", "axes", i)
        return self

    @model_validator(mode="after")
    def _sizes_leave_out_what_is_there(self) -> SweepFile:
        varied = [settings for axis in self.axes for _, settings in axis.labelled()]
        for name, size in self.sizes.items():
            for key, left_out in size.without.items():
                offered = [settings[key] for settings in varied if key in settings]
                for value in (value for value in left_out if value not in offered):
                    raise wrong(f"{key}: {value!r} is on no axis", "sizes", name, "without", key)
        return self


def placed_settings(source: Source) -> Iterator[tuple[str, Any, tuple]]:
    """Yield key, value and place of every setting in a sweep file, those of all sizes among them."""
    for at in source.lines:
        match at:
            case ("sizes", _, "seeds" | "without") | ("axes", _, "list", _, "label"):
                continue
            case ("fixed", key) | ("sizes", _, key) | ("axes", _, "list", _, key) | ("axes", _, "grid", key, _):
                yield key, source.value(at), at


def notebook_path(name: str, beside: Path = Path()) -> Path:
    """Return the notebook of a cell: one of ours by its name, a numbered one, or a path from here or ``beside``."""
    for ours, old in NOTEBOOKS.items():
        if name in (ours, old):
            return SHIPPED / f"{ours}.ipynb"
    if Path(name).suffix == ".ipynb" and (beside / name).is_file():
        return beside / name
    try:
        return find_notebook(name)
    except UsageError as error:
        raise UsageError(
            error.what, hint=did_you_mean(name, [*NOTEBOOKS, *(p.stem for p in list_notebooks())])
        ) from None


def list_sweeps() -> list[str]:
    """Return the names of the sweeps that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_sweep_file(name_or_path: str | Path) -> tuple[SweepFile, Source]:
    """Return a sweep file, by its path or a shipped one's name, right by its schema; and its source."""
    path, names = Path(name_or_path), list_sweeps()
    if path.suffix not in (".yaml", ".yml"):
        if str(path) not in names:
            hint = f"{did_you_mean(path, names)} Your own: the path of its .yaml file."
            raise UsageError(f"{str(path)!r} is not a sweep.", hint=hint)
        path = SHIPPED / f"{path}.yaml"
    return load_document(SweepFile, path, "sweep file", names)


# --- a file of one's own: one knob, its values, everything else held --------------------------------------

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
        "name": name, "title": f"{knob.rpartition('.')[2].replace('_', ' ')} varied, all else held ({method.upper()})",
        "fixed": {"dataset": dataset, "method": method}, "seeds": list(seeds),
        "axes": [{"grid": {knob: list(values)}}], "sizes": {size: {"preset": size} for size in (toy, full)},
    }  # fmt: skip
    path = Path(folder) / f"{name}.yaml"
    write_text(path, yaml_text(sweep))
    return path
