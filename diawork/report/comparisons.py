"""Groups of runs compared on the same images, over images and seeds, as one family with one adjustment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from diawork.base.errors import DataError, DiaworkError
from diawork.evaluation.comparison import SIDES, Comparison, adjust, compare_detectors
from diawork.runs.run import Run


class Pair(NamedTuple):
    """Two groups of runs (one a seed) to be compared, by the names of their rows."""

    a: str
    b: str
    runs_a: pd.DataFrame
    runs_b: pd.DataFrame
    section: str = ""


class Compared(NamedTuple):
    """What the comparison of rows a and b says."""

    a: str
    b: str
    section: str
    test: Comparison

    @property
    def row(self) -> dict[str, Any]:
        """Return the row of a table."""
        names = {"a": self.a, "b": self.b, "section": self.section}
        said = {"verdict": self.test.verdict, "reading": self.test.reading(self.a, self.b)}
        return names | dataclasses.asdict(self.test) | said


def compare(a: pd.DataFrame, b: pd.DataFrame, split: str | None = None) -> Comparison:
    """Return the comparison of two groups of runs (one a seed) on the same images.

    The seeds are paired where both sides have the same ones; a control, which draws nothing, counts for every seed.
    """
    split = split or a["split"].iloc[0]
    refuse_other_draws(pd.concat([a, b]))
    sides = [[Run(folder).scores(split) for folder in runs["folder"]] for runs in (a, b)]
    images = sides[0][0][["index", "anomalous"]]
    if any(not scores[["index", "anomalous"]].equals(images) for side in sides for scores in side):
        raise DataError("they did not score the same images.")
    left, right = (np.stack([scores["score"].to_numpy() for scores in side]) for side in sides)
    fixed = [side for side, runs in zip(SIDES, (a, b), strict=True) if runs["control"].all() and len(runs) == 1]
    same_seeds = not fixed and a["seed"].tolist() == b["seed"].tolist()
    return compare_detectors(left, right, images["anomalous"].to_numpy(), paired_seeds=same_seeds, fixed=fixed)


def compare_all(pairs: Iterable[Pair]) -> tuple[list[Compared], list[str]]:
    """Compare each pair, adjusted for their number, and say why some could not be compared."""
    pairs, tests, failures = list(pairs), [], []
    for pair in pairs:
        try:
            tests.append(Compared(pair.a, pair.b, pair.section, compare(pair.runs_a, pair.runs_b)))
        except DiaworkError as error:
            failures.append(f"{pair.a} and {pair.b} could not be compared: {error.what}")
    adjusted = adjust([one.test for one in tests])
    return [one._replace(test=test) for one, test in zip(tests, adjusted, strict=True)], failures


def refuse_other_draws(runs: pd.DataFrame) -> None:
    """Refuse to put runs side by side whose images were scored under different draws."""
    schemes = runs[runs["draws"].notna()].groupby("draws")["run"]
    if schemes.ngroups > 1:
        what = "; ".join(f"draws {scheme:g}: {', '.join(dict.fromkeys(names))}" for scheme, names in schemes)
        hint = "Run the commands of the older ones again, which scores them anew and trains nothing."
        raise DataError(f"these runs were scored under different draws ({what}).", hint=hint)
