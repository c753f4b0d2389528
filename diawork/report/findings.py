"""What the numbers say, in sentences: who is ahead, by how much, and what cannot be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from diawork.base.errors import DataError
from diawork.evaluation.collapse import CHANCE, Facts, explain
from diawork.evaluation.comparison import Comparison
from diawork.evaluation.ranks import rank_over_sets
from diawork.evaluation.selfcheck import rank_agreement
from diawork.evaluation.sentences import conclusion, counted, interval, p_said, signed

ENOUGH = 8  # rows from which ranks are compared
COARSE = 0.05  # half an interval: above, a set of images is called too small to tell detectors apart
SPLITS = {"test": "test", "val": "validation"}  # in words


def focus_of(table: pd.DataFrame) -> pd.Series:
    """Return the row that a page is about: "DIA", else of DIA's variants, of the trained, of all, the best on val.

    On val, because a variant picked by its test score would be compared with a head start.
    """
    fair = table[~table["oracle"]]
    candidates = (fair[fair["label"] == "DIA"], fair[fair["detector"] == "DIA"], fair[~fair["control"]], fair, table)
    chosen = next(rows for rows in candidates if len(rows))
    return chosen.sort_values("val_auroc", ascending=False, kind="stable").iloc[0]


def rivals_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows worth comparing with the focus on the same images: all but itself and oracles."""
    return table[~table["oracle"] & (table["label"] != focus_of(table)["label"])]


def _measured(row: pd.Series) -> str:
    spread = f" ± {row['auroc_sd']:.3f} over {row['seeds']} seeds" if row["seeds"] > 1 else ""
    return f"{row['auroc']:.3f}{spread} ({interval(row['auroc_low'], row['auroc_high'], lead='95 % interval ')})"


def headline(table: pd.DataFrame, rivals: Mapping[str, Comparison]) -> list[str]:
    """Return the findings on one data set from its summary rows and the comparisons of its focus with its rivals."""
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
    compared = [*conclusion(focus["label"], rivals), *_against_control(table, rivals)] if rivals else []
    return said + compared + _oracle(table, fair) + _cautions(focus)


def _against_control(table: pd.DataFrame, rivals: Mapping[str, Comparison]) -> list[str]:
    """Say whether the focus clears the best control."""
    focus, controls = focus_of(table), rivals_of(table).query("control")
    best = next((label for label in controls["label"] if label in rivals), None)
    if best is None or focus["control"]:
        return []
    if rivals[best].verdict == "ahead":
        return [f"{focus['label']} clears the best label-free control, {best}."]
    return [f"{focus['label']} has not shown that it sees more than the best label-free control, {best}."]


def warnings(table: pd.DataFrame, runs: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return what is below chance or collapsed by the labels, and the likely reason."""
    said = []
    for _, row in table[~table["oracle"]].iterrows():
        facts = runs[row["label"]]["check.facts"].iloc[0] if row["auroc_high"] < CHANCE else Facts()
        said.append(" ".join(explain(row["label"], row["auroc_low"], row["auroc_high"], facts)))
    return list(filter(None, said))


def unnoticing(runs: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return which runs are below chance, blind or collapsed by the self-check, and the likely reason."""
    return [
        f"{label}, seed {seed}: {' '.join(findings[:2])}"
        for label, own in runs.items()
        for seed, verdict, findings in zip(own["seed"], own["check.verdict"], own["check.findings"], strict=True)
        if verdict not in ("", "notices")
    ]


def agreement(table: pd.DataFrame) -> str:
    """Say how the self-check ranks ``ENOUGH`` rows or more against their AUROC on labelled images; else nothing."""
    rows = table[~table["oracle"] & table["check_auroc"].notna()]
    if len(rows) < ENOUGH:
        return ""
    split, controls = SPLITS[rows["split"].iloc[0]], int(rows["control"].sum())
    basis = f"{len(rows)} rows" + (f" ({counted(controls, 'control')} among them)" if controls else "")
    try:
        ranks = rank_agreement(rows["check_auroc"].to_numpy(), rows["auroc"].to_numpy())
    except DataError as error:
        return f"The self-check and the {split} AUROC of {basis} have no rank correlation: {error.what}"
    return (
        f"The self-check ranks {basis} as their {split} AUROC does with a rank correlation of {signed(ranks.rho, 2)} "
        f"(95 % interval {signed(ranks.low, 2)} to {signed(ranks.high, 2)}, {p_said(ranks.p)})."
    )


def over_sets(table: pd.DataFrame) -> dict[str, Any]:
    """Return the rows that ran on every data set, ranked over them, and what the ranks say; of one set, nothing.

    Each row has its mean and worst rank, and its lowest AUROC with the set that has it. The least mean rank is first.
    """
    if table.empty or table["section"].nunique() < 2:
        return {}
    fair = table[~table["oracle"]].pivot_table(index="section", columns="label", values="auroc").dropna(axis="columns")
    if fair.shape[1] < 2 or len(fair) < 2:
        return {}
    ranking = rank_over_sets(fair.to_numpy())
    rows = pd.DataFrame({
        "label": fair.columns, "mean_rank": ranking.mean, "worst_rank": ranking.worst,
        "lowest": fair.min().to_numpy(), "lowest_on": fair.idxmin().to_numpy(),
    })  # fmt: skip
    ordered = rows.sort_values("mean_rank", kind="stable").to_dict("records")
    return {"sentence": ranking.sentence, "critical": ranking.critical, "p": ranking.p, "rows": ordered}


def features_said(runs: Mapping[str, pd.DataFrame]) -> str:
    """Say how the features of each trained detector spread and how many shifts it names, means over seeds."""
    parts = []
    for label, own in runs.items():
        known = list(own["check.facts"])
        spreads = [facts.features for facts in known if facts.features is not None]
        named = [facts.shift_accuracy for facts in known if facts.shift_accuracy is not None]
        shifts = [facts.shifts for facts in known if facts.shifts]
        said: list[str] = []
        if spreads:
            variance, dimensions = np.mean(spreads, 0)
            said.append(f"features of variance {variance:.2g} (1: in all directions) in {dimensions:.1f} dimensions")
        if named:
            said.append(f"{np.mean(named):.0%} of the shifts named (chance {1 / shifts[0]:.0%})")
        parts += [f"{label}: {', '.join(said)}"] if said else []
    return f"On healthy validation images, which no training saw: {'; '.join(parts)}." if parts else ""


def shifts_said(runs: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return what was measured of each shift before training, once each."""
    return list(dict.fromkeys(sentence for own in runs.values() for sentence in own["check.shift"] if sentence))


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
    if half > COARSE:
        said.append(f"The {SPLITS[focus['split']]} set is small: a single AUROC is known to about ±{half:.2f} only.")
    if focus["seeds"] == 1 and not focus["control"]:
        said.append("One seed was run, so how much training alone moves these numbers is unknown.")
    return said
