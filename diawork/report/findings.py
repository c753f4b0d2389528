"""What the numbers say, in sentences: who is ahead, by how much, and what cannot be told."""

from __future__ import annotations

from typing import Any

import pandas as pd

from diawork.evaluation.wording import interval, signed

COARSE = 0.05  # half an interval: above, a set of images is called too small to tell detectors apart
SPLITS = {"test": "test", "val": "validation"}  # in words
UNDECIDED = "not told apart by these images"


def reading(test: Any) -> str:
    """Return what a paired difference a − b with interval says."""
    if test["low"] > 0:
        return f"{test['a']} is ahead"
    return f"{test['b']} is ahead" if test["high"] < 0 else UNDECIDED


def focus_of(table: pd.DataFrame) -> pd.Series:
    """Return the row that a page is about: of DIA, else of the trained detectors, else of all, the best on val.

    On val, because a variant picked by its test score would be compared with a head start.
    """
    fair = table[~table["oracle"]]
    candidates = (fair[fair["detector"] == "DIA"], fair[~fair["control"]], fair, table)
    chosen = next(rows for rows in candidates if len(rows))
    return chosen.sort_values("val_auroc", ascending=False, kind="stable").iloc[0]


def rivals_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows worth comparing with the focus on the same images: all but itself and oracles."""
    return table[~table["oracle"] & (table["label"] != focus_of(table)["label"])]


def _measured(row: pd.Series) -> str:
    spread = f" ± {row['auroc_sd']:.3f} over {row['seeds']} seeds" if row["seeds"] > 1 else ""
    return f"{row['auroc']:.3f}{spread} ({interval(row['auroc_low'], row['auroc_high'], lead='95 % interval ')})"


def headline(table: pd.DataFrame, tests: pd.DataFrame) -> list[str]:
    """Return the findings on one data set from its summary rows and the paired tests of its focus."""
    focus, fair = focus_of(table), table[~table["oracle"]]
    images = f"{focus['n_normal']} healthy and {focus['n_anomalous']} anomalous {SPLITS[focus['split']]} images"
    if fair.empty:
        return [f"Only oracles were run on these {images}; none of them is a detector."]
    best = fair.iloc[0]
    said = [f"On {images}, {best['label']} has the highest AUROC, {_measured(best)}."]
    if best["control"]:
        said.append("It is a trivial control: no trained detector here ranks better than simple image statistics.")
    if best["label"] != focus["label"]:
        said.append(f"{focus['label']} reaches {_measured(focus)}.")
    return said + _comparisons(table, tests) + _oracle(table, fair) + _cautions(focus)


def _comparisons(table: pd.DataFrame, tests: pd.DataFrame) -> list[str]:
    """Compare the focus with the best trained rival and the best control on the same images."""
    said, rivals = [], rivals_of(table)
    for control in (False, True):
        best = rivals.loc[rivals["control"] == control, "label"][:1]
        test = tests[tests["b"].isin(best)] if len(tests) else tests
        said += [_comparison(row, control) for _, row in test.iterrows()]
    return said


def _comparison(test: pd.Series, control: bool) -> str:
    a, b = test["a"], test["b"]
    named = f"the best label-free control, {b}" if control else b
    gap = f"{signed(test['difference'])} ({interval(test['low'], test['high'], lead='95 % interval ', sign=True)})"
    verdict = reading(test)
    if verdict == UNDECIDED:
        verdict = "The interval holds 0, so these images do not tell the two apart"
    if control:
        unproven = f"{verdict}; {a} has not shown that it sees more than such statistics do"
        verdict = f"{a} clears this control" if test["low"] > 0 else unproven
    return f"{a} minus {named}, on the same images: {gap}. {verdict}."


def _oracle(table: pd.DataFrame, fair: pd.DataFrame) -> list[str]:
    oracles = table[table["oracle"]]
    if oracles.empty:
        return []
    top = oracles.iloc[0]
    above = list(fair.loc[fair["auroc"] > top["auroc"], "label"])
    lies = f"{' and '.join(above[:3])} {'lies' if len(above) == 1 else 'lie'} above it"
    verdict = lies if above else "no label-free detector here reaches it"
    chosen = f"chosen with the {SPLITS[top['split']]} labels"
    return [f"A bar, not a detector: {top['label']}, {chosen}, has {top['auroc']:.3f}; {verdict}."]


def _cautions(focus: pd.Series) -> list[str]:
    said = []
    half = (focus["auroc_high"] - focus["auroc_low"]) / 2
    if pd.isna(half):
        single = min(focus["n_normal"], focus["n_anomalous"]) < 2
        why = "a class has a single image" if single else "every resample of these images says the same"
        said.append(f"No interval can be given for the AUROC of {focus['label']}: {why}.")
    if focus["auroc_high"] < 0.5:
        said.append(f"{focus['label']} is below chance: it scores anomalous images lower than healthy ones.")
    if focus["auroc_low"] == focus["auroc_high"] == 0.5:
        said.append(f"All scores of {focus['label']} are equal: the model collapsed.")
    elif half > COARSE:
        said.append(f"The {SPLITS[focus['split']]} set is small: a single AUROC is known to about ±{half:.2f} only.")
    if focus["seeds"] == 1 and not focus["control"]:
        said.append("One seed was run, so how much training alone moves these numbers is unknown.")
    return said
