"""Published numbers, machine-readable, and ours beside them: two columns, never one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pandas as pd

from diawork.base.errors import pick
from diawork.base.files import shipped
from diawork.base.registry import DETECTORS
from diawork.data.documents import parse_yaml
from diawork.report.rows import Measured, Results, Row
from diawork.runs.presets import preset

SAME_TEST = {"chestxray224": "zhanglab"}  # our set → the published set whose test images it holds
SILENT = ("dissolve.t_range", "dissolve.bridge", "diffusion.seed")  # by data set, or which the paper does not say


@cache
def _published_yaml() -> dict[str, Any]:
    return parse_yaml((shipped("data_manifests") / "published.yaml").read_bytes(), "published.yaml")[0]


class Published(NamedTuple):
    """One published number; shares are fractions, whatever the source printed, marks and remarks are spelt out."""

    table: str
    title: str
    source: str
    place: str
    method: str
    setting: str
    dataset: str | None  # None: a cost
    metric: str
    value: float
    sd: float
    extra_data: bool | None
    marks: Mapping[str, str]
    remarks: Sequence[str]


def published(table: str | None = None) -> list[Published]:
    """Return the published numbers of one table, or of all."""
    book = _published_yaml()
    if table is not None:
        pick(book["tables"], table, "published table")
    return [number for key in ([table] if table else book["tables"]) for number in _numbers(book, key)]


def _numbers(book: dict[str, Any], key: str) -> Iterator[Published]:
    table = book["tables"][key]
    scale = 100 if table.get("unit") == "percent" else 1
    for row in table["rows"]:
        for i, column in enumerate(table["columns"]):
            value, sd = row["value"][i], row["sd"][i] if row.get("sd") else None
            at = {"method": row["method"], "column": column}
            own = [c["remark"] for c in table.get("cell_remarks", ()) if {k: c[k] for k in at} == at]
            dataset, metric = (table["dataset"], column) if "dataset" in table else (column, table["metric"])
            dataset, metric = (None, column) if metric == "cost" else (dataset, metric)
            if value is not None:
                yield Published(
                    key, table["title"], book["sources"][table["source"]], table["place"], row["method"],
                    row.get("setting", ""), dataset, metric, value / scale,
                    math.nan if sd is None else sd / scale, row.get("extra_data"),
                    {mark: book["marks"][mark] for mark in row.get("marks", ())},
                    [book["remarks"][r] for r in (*table.get("remarks", ()), *own)],
                )  # fmt: skip


class Beside(NamedTuple):
    """A published number and, where it was run here, our row with the settings in which it differs."""

    theirs: Published
    ours: Row | None = None
    differs: Sequence[str] = ()

    @property
    def label(self) -> str:
        """Return the name of our row, else of the published method."""
        return self.ours.label if self.ours else self.theirs.method

    @property
    def where(self) -> str:
        """Return the data set, or the quantity of a cost."""
        return self.theirs.dataset or self.theirs.metric.replace("_", " ")

    @property
    def difference(self) -> Measured:
        """Return ours minus published; its interval moves ours alone, as if the published number were exact."""
        if not self.ours:
            return Measured()
        value, low, high, *_ = self.ours.auroc
        return Measured(value - self.theirs.value, low - self.theirs.value, high - self.theirs.value)


def beside_paper(rows: Sequence[Row], table: str = "t1") -> list[Beside]:
    """Return a table's published AUROCs on our data sets, the highest first, each beside our rows of that method."""
    found, printed = [], _published_yaml()["methods"]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        theirs = [one for one in published(table) if one.metric == "auroc" and one.dataset == dataset]
        for one in sorted(theirs, key=lambda one: -one.value):
            ours = [r for r in rows if r.dataset == dataset and printed.get(r.method) == one.method]
            found += [Beside(one, row, _differs(row, "")) for row in ours] or [Beside(one)]
    return found


@dataclass(frozen=True)
class PublishedTable:
    """A published table as a sweep's page shows it."""

    title: str
    source: str
    place: str
    cost: bool
    rows: list[Beside]
    remarks: list[str]

    @property
    def ran(self) -> list[Beside]:
        """Return the rows that were run here."""
        return [row for row in self.rows if row.ours]


def beside_published(table: str, rows: Sequence[Row], repeats: Mapping[str, Sequence[str]]) -> PublishedTable:
    """Return a published table beside those of our rows that their sweep declares to repeat one of its rows.

    ``repeats`` maps the name of our row to the published method and setting: no row is chosen by its score.
    """
    ours = {}
    for row in rows:
        if row.split == "test" and row.label in repeats:
            method, *setting = repeats[row.label]
            ours[SAME_TEST.get(row.dataset, row.dataset), method, " ".join(setting)] = row
    theirs, beside = published(table), []
    for one in theirs:  # ours is an AUROC, no accuracy
        own = ours.get((one.dataset or "", one.method, one.setting)) if one.metric == "auroc" else None
        beside.append(Beside(one, own, _differs(own, one.setting)) if own else Beside(one))
    first, cost = theirs[0], all(one.dataset is None for one in theirs)
    return PublishedTable(first.title, first.source, first.place, cost, beside, remarks_of(beside))


def remarks_of(beside: Sequence[Beside], common_first: bool = False) -> list[str]:
    """Return marks and remarks of the published rows shown, once each; with ``common_first`` others name their row."""
    marks = [f"{mark} {text}." for one in beside for mark, text in one.theirs.marks.items()]
    if not common_first:
        return list(dict.fromkeys(marks + [remark for one in beside for remark in one.theirs.remarks]))
    shared = beside[0].theirs.remarks if beside else []
    common = [remark for remark in shared if all(remark in one.theirs.remarks for one in beside)]
    own = [f"{o.label}: {r}" for o in beside if o.ours for r in o.theirs.remarks if r not in common]
    return list(dict.fromkeys(marks + common + own))


def _differs(row: Row, setting: str) -> list[str]:
    """Return the settings in which a row differs from what its own paper says, and this table of its setting."""
    ours, detector = row.runs[0].settings, row.runs[0].detector
    theirs = published_settings(detector) | _published_yaml()["settings"].get(setting, {})
    if ours.get("backbone.weights") != "random":  # a file is the pretrained ones, too
        theirs.pop("backbone.weights", None)
    return [f"{k} {ours[k]}, published {v}" for k, v in theirs.items() if k in ours and ours[k] != v]


def published_settings(detector: str) -> dict[str, Any]:
    """Return the settings of a detector's own paper or code, by dotted key: DIA's of preset ``paper``.

    A rival's are the defaults of its section and what it declares as ``paper`` (backbone, size). A library's model has
    none.
    """
    entry, dia = DETECTORS.get(detector), preset("paper").flat()
    if entry is None or entry.extra:
        return {}
    own = entry.Section().model_dump(mode="json") if entry.Section else {}
    if not own:
        return {k: v for k, v in dia.items() if k.partition(".")[0] in entry.uses and k not in SILENT}
    data = {key: value for key, value in dia.items() if key.startswith("data.")}
    weights = {"backbone.weights": "pretrained"} if "backbone" in entry.uses else {}
    return data | {f"{detector}.{knob}": value for knob, value in own.items()} | weights | entry.paper


class Trained(NamedTuple):
    """How far a rival was trained, of what its paper trained it."""

    done: int
    published: int
    unit: str  # "epochs" or "steps"

    @property
    def share(self) -> float:
        """Return done / published."""
        return self.done / self.published


def trained(detector: str, settings: Mapping[str, Any]) -> Trained | None:
    """Return how far a run of these settings trains a rival; None where nothing is trained or nothing is known."""
    unit = DETECTORS[detector].length if detector in DETECTORS else ""
    done, theirs = settings.get(f"{detector}.{unit}"), published_settings(detector).get(f"{detector}.{unit}")
    return Trained(done, theirs, unit) if done and theirs else None


def paper_comparison(results: Results, table: str = "t1") -> pd.DataFrame:
    """Return published AUROCs and ours side by side, in columns of their own, for the data sets we ran.

    ``difference`` is ours minus published. Methods that were not run here have gaps.
    """
    lines = []
    for one in beside_paper(results.rows, table):
        theirs, ours = one.theirs, one.ours
        area, seeds = (ours.auroc, ours.seeds) if ours else (Measured(), 0)
        line: dict[str, Any] = {"dataset": theirs.dataset, "method": theirs.method, "label": one.label, "seeds": seeds}
        line |= {"published": theirs.value, "published_sd": theirs.sd}
        for name, measured in (("auroc", area), ("difference", one.difference)):
            line |= {name: measured.value, f"{name}_low": measured.low, f"{name}_high": measured.high}
        lines.append(line)
    return pd.DataFrame(lines)
