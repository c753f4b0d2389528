"""One data set's part of a report: findings, rows, the paper's numbers, pictures, facts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from diawork import figures
from diawork.base.errors import DiaworkError
from diawork.data.manifests import load_manifest
from diawork.evaluation.comparison import Comparison
from diawork.evaluation.metrics import at_best, by_kind
from diawork.evaluation.sentences import limits
from diawork.report.pictures import Picture, Pictures, draw_pictures
from diawork.report.published import Beside, PublishedTable, beside_paper, remarks_of
from diawork.report.rows import Compared, Row, compare_all
from diawork.report.sentences import (
    SPLITS,
    agreement,
    alarm_said,
    dissolving,
    draws_said,
    features_said,
    focus_of,
    headline,
    models_said,
    question,
    rivals_of,
    shifts_said,
    unnoticing,
    warnings,
)
from diawork.sweeps.sweep import Sweep


class Rule(NamedTuple):
    """What a paper's threshold maximises on the test images, and what each row reaches by it: F1 and accuracy."""

    label: str
    aim: str
    reached: Mapping[Row, Mapping[str, float]]


@dataclass(frozen=True)
class Section:
    """What a page says of one data set."""

    title: str
    rows: Sequence[Row]  # best first, oracles last
    styles: figures.Styles
    tests: Sequence[Compared]
    paper: Sequence[Beside]
    pictures: Pictures
    rules: Sequence[Rule]
    question: str
    warnings: Sequence[str]
    headline: Sequence[str]
    unnoticing: Sequence[str]
    limits: Sequence[str]
    captions: Sequence[str]  # below the table of results
    alarm: Sequence[str]
    failures: Sequence[str]
    remarks: Sequence[str]  # of the published rows
    notes: Sequence[str]  # on the data
    facts: Sequence[tuple[str, str]]  # of the manifest

    @property
    def split(self) -> str:
        """Return the split that the numbers are about, in words."""
        return SPLITS[self.rows[0].split]

    @property
    def checked(self) -> bool:
        """Say whether a row has a self-check without labels."""
        return any(row.check.known for row in self.rows)

    @property
    def tracked(self) -> list[Row]:
        """Return the rows whose test AUROC was tracked over epochs."""
        return [row for row in self.rows if not math.isnan(row.epoch("oracle"))]

    @property
    def ran(self) -> list[Beside]:
        """Return the published rows that were run here."""
        return [one for one in self.paper if one.ours]

    @property
    def low(self) -> float:
        """Return where the AUROC axis starts: a tenth at or below the lowest interval."""
        ends = [end for row in self.rows for end in row.auroc[:2] if not math.isnan(end)]
        return min(max(0.0, math.floor(10 * min(ends)) / 10), 0.9)

    @property
    def tiles(self) -> list[tuple[str, Row]]:
        """Return the rows that stand out: the focus, the best other detector, the best control, the oracle."""
        rivals = rivals_of(self.rows)
        picks = {
            "the method in question": [focus_of(self.rows)],
            "best other detector": [row for row in rivals if not row.control],
            "best trivial control": [row for row in rivals if row.control],
            f"oracle: chosen with the {self.split} labels": [row for row in self.rows if row.oracle],
        }
        return [(text, rows[0]) for text, rows in picks.items() if rows]

    @cached_property
    def kinds(self) -> dict[str, dict[Row, float]]:
        """Return each anomalous class's AUROC against all healthy images, mean over seeds; of one class, nothing."""
        found = {row: pd.DataFrame([by_kind(*run.pair, run.scores["class_name"].to_numpy()) for run in row.runs]).mean()
                 for row in self.rows}  # fmt: skip
        kinds = sorted({kind for means in found.values() for kind in means.index})
        return {kind: {row: found[row].get(kind, math.nan) for row in self.rows} for kind in kinds if len(kinds) > 1}

    def color(self, row: Row) -> str:
        """Return a row's colour."""
        return self.styles[row.label]["color"]

    def published(self, row: Row) -> float:
        """Return what a paper prints of a row's method; NaN where none does."""
        return next((one.theirs.value for one in self.paper if one.ours is row), math.nan)


class Drawn(NamedTuple):
    """A figure that a cell drew, with the numbers that it stands on."""

    label: str
    picture: Picture
    names: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class SweepSection:
    """What a page says of a sweep beside its rows; ``cells`` are the lines of its ledger with links to their files."""

    sweep: Sweep
    tests: Sequence[Compared]
    failures: Sequence[str]
    cells: Sequence[Mapping[str, Any]]
    plot: Picture | None
    styles: figures.Styles
    drawings: Sequence[Drawn]
    published: Sequence[PublishedTable]

    @property
    def undone(self) -> list[Mapping[str, Any]]:
        """Return the cells that are not finished."""
        return [cell for cell in self.cells if cell["state"] != "done"]

    @property
    def states(self) -> str:
        """Return how many cells stand how, those that are not finished."""
        return ", ".join(f"{n} {state}" for state, n in Counter(cell["state"] for cell in self.undone).most_common())


def section(
    name: str, rows: Sequence[Row], pictures: str, *, styles: figures.Styles, tests: Sequence[Compared] | None = None,
    declared: Mapping[str, Sequence[str]] | None = None,
) -> Section:  # fmt: skip
    """Return what the page says about one data set, ``pictures`` being "all", "few" or "none".

    A sweep brings the comparisons with its baseline as ``tests``, which then are the only ones, and ``declared``,
    the published row that a row of its own repeats; else the focus is compared with every rival, as one family.
    """
    focus, split = focus_of(rows), rows[0].split
    failures: list[str] = []
    if tests is None:
        tests, failures = compare_all((focus, rival) for rival in rivals_of(rows))
    else:
        tests = [one for one in tests if one.a in rows]
    rivals: dict[Row, Comparison] = {one.b: one.test for one in tests if one.a is focus}
    rivals |= {one.a: one.test.swapped for one in tests if one.b is focus}
    paper = beside_paper(rows) if split == "test" else []
    if declared is not None:
        repeated = {label for label, theirs in declared.items() if len(theirs) == 1}
        paper = [one for one in paper if one.label in repeated]
    drawn = draw_pictures(rows, pictures, styles)
    title, facts = _facts(rows[0].dataset)
    counted = dict.fromkeys(run.duplicates for row in rows for run in row.runs if run.duplicates)
    facts += [("duplicates", "; or ".join(counted))] if counted else []
    first, *more = headline(rows, rivals)
    findings = [first, *dissolving(rows), *more]
    captions = [*agreement(rows), *features_said(rows), *shifts_said(rows), models_said(rows), draws_said(rows)]
    return Section(
        title + name.removeprefix(rows[0].dataset), rows, styles, tests, paper, drawn, _paper_rules(rows),
        question=question(rows), warnings=warnings(rows), headline=findings, unnoticing=unnoticing(rows),
        limits=limits({row.label: test for row, test in rivals.items()}), captions=[one for one in captions if one],
        alarm=alarm_said(focus), failures=[*failures, *drawn.failures], remarks=remarks_of(paper, common_first=True),
        notes=list(dict.fromkeys(note for row in rows for run in row.runs for note in run.notes)), facts=facts,
    )  # fmt: skip


def _paper_rules(rows: Sequence[Row]) -> list[Rule]:
    """Return each row's F1 and accuracy by the threshold rules of those papers whose detectors stand in the table."""
    owners = {row.method: row.runs[0] for row in rows if row.runs[0].paper_rule}
    rules = []
    for _, owner in sorted(owners.items()):
        best = {row: [at_best(*run.pair, owner.paper_rule) for run in row.runs] for row in rows}
        reached = {row: pd.DataFrame(numbers).mean().to_dict() for row, numbers in best.items()}
        rules.append(Rule(owner.label, owner.paper_rule, reached))
    return rules


def _facts(dataset: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the data set's title and the facts of its manifest, the licence among them."""
    try:
        manifest = load_manifest(dataset)
    except DiaworkError:
        return dataset, [("data set", f"{dataset} (no manifest by this name here)")]
    rows = [("data set", manifest.title), ("licence", manifest.licence), ("citation", manifest.citation)]
    rows.append(("images", f"{manifest.image.size} px, {manifest.image.channels} channel(s)"))
    for split, counts in manifest.counts.items():
        roles = {name: name if name == role else f"{name} ({role})" for name, role in manifest.roles.items()}
        rows.append((split, ", ".join(f"{n:,} {roles[name]}" for name, n in counts.items())))
    if manifest.phantom:
        lesions = f"{manifest.phantom.describe()}, in synthetic {manifest.phantom.kind} images"
        rows.append(("lesions", lesions))
    return manifest.title.partition(",")[0], rows
