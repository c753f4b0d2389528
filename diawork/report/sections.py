"""One data set's part of a report: findings, rows, the paper's numbers, pictures, facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from diawork import figures
from diawork.base.errors import DiaworkError
from diawork.data.manifests import load_manifest
from diawork.evaluation.comparison import Comparison
from diawork.evaluation.conformal import check_alarm
from diawork.evaluation.metrics import PAPER_RULES, at_best
from diawork.evaluation.sentences import counted, limits
from diawork.report.comparisons import Compared, Pair, compare_all
from diawork.report.findings import (
    SPLITS,
    agreement,
    features_said,
    focus_of,
    headline,
    rivals_of,
    shifts_said,
    unnoticing,
    warnings,
)
from diawork.report.pictures import Runs, draw_pictures
from diawork.report.published import beside_paper
from diawork.report.tables import DDPM_SEED, score_pairs
from diawork.runs.run import Run

FALSE_ALARMS = 0.05  # share of healthy images
CHOSEN_ON_VAL = ("best validation", "best self-check")


def section(
    table: pd.DataFrame, runs: Runs, pictures: str, *, styles: figures.Styles, sweep: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what the page says about one data set; ``table`` is its part of the summary table.

    ``pictures`` is "all", "few" (no slider, fewer curves) or "none". A sweep brings its comparisons with a baseline,
    which then are the only ones, and the published rows that its rows repeat.
    """
    dataset, name, split = (table[key].iloc[0] for key in ("dataset", "section", "split"))
    paper = beside_paper(table, runs)
    paper = paper[paper["published"].notna() & (split == "test")]
    if sweep:
        declared = {label for label, row in sweep["repeats"].items() if len(row) == 1}
        paper = paper[paper["label"].isin(list(declared))]
    values = dict(zip(paper["label"], paper["published"], strict=True))
    colors = [styles[label]["color"] for label in table["label"]]
    table = table.assign(color=colors, published=[values.get(label, math.nan) for label in table["label"]])
    tests, failures = _comparisons(table, runs, sweep)
    rivals = _of_focus(focus_of(table)["label"], tests)
    drawn, missing = draw_pictures(table, runs, pictures, styles)
    title, facts = _facts(dataset)
    facts += _duplicates(runs)
    return drawn | {
        "title": title + name.removeprefix(dataset), "split": SPLITS[split], "facts": facts,
        "notes": list(dict.fromkeys(note for group in runs.values() for notes in group["notes"] for note in notes)),
        "warnings": warnings(table, runs), "headline": headline(table, rivals), "unnoticing": unnoticing(runs),
        "tiles": _tiles(table), "rows": table.to_dict("records"), "checked": bool(table["check_auroc"].notna().any()),
        "question": _question(table),
        "low": _axis_start(table), "agreement": agreement(table),
        "features": features_said(runs), "shifts": shifts_said(runs),
        "models": _models(runs), "draws": _draws(table), "tracked": bool(table["epoch_oracle"].notna().any()),
        "alarm": _alarm(runs[focus_of(table)["label"]], split), "failures": failures + missing,
        "pairs": [one.row for one in tests], "limits": limits(rivals),
        "paper": paper.to_dict("records"), "ran": int(paper["auroc"].notna().sum()),
        "paper_remarks": _remarks(paper), "rules": _paper_rules(table, runs, split),
    }  # fmt: skip


def _paper_rules(table: pd.DataFrame, runs: Runs, split: str) -> list[dict[str, Any]]:
    """Return each row's F1 and accuracy by the threshold rules of those papers whose detectors stand in the table."""
    rules = {name: aim for name, aim in PAPER_RULES.items() if name in set(table["detector"])}
    rows = []
    for label in table["label"] if rules else ():
        scored = score_pairs(runs[label], split)
        best = {name: pd.DataFrame([at_best(*pair, aim) for pair in scored]).mean() for name, aim in rules.items()}
        rows.append({"label": label, "best": best})
    return rows


def _models(runs: Runs) -> str:
    """Say how many diffusion models, and of which seeds, stand behind the runs that needed any."""
    needed = [group[["diffusion_images" in facts for facts in group["facts"]]] for group in runs.values()]
    pairs = {
        (int(seed), int(one.get(DDPM_SEED, 0)))
        for group in needed
        for seed, one in zip(group["seed"], group["settings"], strict=True)
    }
    seeds = sorted({model for _, model in pairs})
    if len({seed for seed, _ in pairs}) < 2:
        return ""
    if len(seeds) == 1:
        return f"One diffusion model (seed {seeds[0]}) serves all seeds, so ± says nothing of its pretraining."
    if all(seed == model for seed, model in pairs):
        return f"Each of the {len(seeds)} seeds has a diffusion model of its own, so ± speaks of its pretraining, too."
    return f"Diffusion models of the seeds {', '.join(map(str, seeds))} serve several seeds of the runs each."


def _comparisons(table: pd.DataFrame, runs: Runs, sweep: Mapping[str, Any] | None) -> tuple[list[Compared], list[str]]:
    """Return the comparisons with a sweep's baseline or, without one, of the focus with every rival as one family."""
    if sweep and sweep["baseline"]:
        return [one for one in sweep["tests"] if one.section == table["section"].iloc[0]], []
    focus = focus_of(table)["label"]
    return compare_all([Pair(focus, rival, runs[focus], runs[rival]) for rival in rivals_of(table)["label"]])


def _alarm(runs: pd.DataFrame, split: str) -> list[str]:
    """Say what an alarm at ``FALSE_ALARMS`` guarantees, and whether it held on the healthy test images (first seed)."""
    run = Run(runs["folder"].iloc[0])
    try:
        alarm, scores = run.alarm(FALSE_ALARMS), run.scores(split)
    except DiaworkError as error:
        return [f"No threshold by false alarms: {error}"]
    threshold = f"Alarm above {alarm.threshold:.3f} (first seed)."
    if runs["selection"].str.startswith(CHOSEN_ON_VAL).any():
        threshold += " The epoch was chosen on these validation images, which the guarantee does not cover."
    if split == "val":
        return [threshold, alarm.guarantee]
    return [
        threshold,
        alarm.guarantee,
        check_alarm(alarm, scores.loc[~scores["anomalous"], "score"].to_numpy()).sentence,
    ]


def _axis_start(table: pd.DataFrame) -> float:
    """Return where the AUROC axis starts: a tenth at or below the lowest interval."""
    lowest = table[["auroc", "auroc_low"]].min(axis=None)
    return min(max(0.0, math.floor(10 * lowest) / 10), 0.9)


def _question(table: pd.DataFrame) -> str:
    """Return what this part of the page answers."""
    focus, rivals = focus_of(table)["label"], rivals_of(table)
    trained, controls = ((~rivals["control"]).sum(), rivals["control"].sum())
    against = [counted(int(n), what) for n, what in ((trained, "other detector"), (controls, "control")) if n]
    ahead = f", and is it ahead of {' and '.join(against)}" if against else ""
    return f"How well does {focus} rank anomalous images above healthy ones{ahead}?"


def _of_focus(focus: str, tests: Sequence[Compared]) -> dict[str, Comparison]:
    """Return rival → comparison of the focus with it."""
    return {one.b: one.test for one in tests if one.a == focus} | {
        one.a: one.test.swapped for one in tests if one.b == focus
    }


def _draws(table: pd.DataFrame) -> str:
    """Say under which scheme the rows were scored, and what other augmented copies would do to each."""
    drawn = table[table["draws"].notna()]
    if drawn.empty:
        return ""
    schemes = " and ".join(f"{scheme:g}" for scheme in sorted(drawn["draws"].unique()))
    measured = [
        f"{row['label']} {row['noise_share']:.2f} (AUROC ± {row['noise_auroc']:.4f})"
        for _, row in drawn[drawn["noise_share"].notna()].iterrows()
    ]
    noise = f" Other copies would move a score by this share of the scores' standard deviation: {', '.join(measured)}."
    return f"Augmented copies of the images: draws {schemes}.{noise if measured else ''}"


def _tiles(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows that stand out: the focus, the best other detector, the best control, the oracle."""
    focus, rivals = focus_of(table), rivals_of(table)
    picks = {
        "the method in question": table[table["label"] == focus["label"]],
        "best other detector": rivals[~rivals["control"]],
        "best trivial control": rivals[rivals["control"]],
        f"oracle: chosen with the {SPLITS[focus['split']]} labels": table[table["oracle"]],
    }
    return [rows.iloc[0].to_dict() | {"tile": text} for text, rows in picks.items() if len(rows)]


def _remarks(paper: pd.DataFrame) -> list[str]:
    """Return the marks and remarks of the published rows shown, once each."""
    if paper.empty:
        return []
    marks = [f"{mark} {text}." for marks in paper["marks"] for mark, text in marks.items()]
    common = [remark for remark in paper["remarks"].iloc[0] if all(remark in others for others in paper["remarks"])]
    ours = paper[paper["auroc"].notna()]
    labelled = [(label, remark) for label, own in zip(ours["label"], ours["remarks"], strict=True) for remark in own]
    own = [f"{label}: {remark}" for label, remark in labelled if remark not in common]
    return list(dict.fromkeys(marks + common + own))


def _facts(dataset: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the data set's title and the facts of its manifest, the licence among them."""
    try:
        manifest = load_manifest(dataset)
    except DiaworkError:
        return dataset, [("data set", f"{dataset} (no manifest by this name here)")]
    rows = [("data set", manifest.title), ("licence", manifest.licence), ("citation", manifest.citation)]
    rows.append(("images", f"{manifest.image.size} px, {manifest.image.channels} channel(s)"))
    for split, counts in manifest.counts.items():
        rows.append((split, ", ".join(f"{n:,} {_with_role(name, manifest.roles[name])}" for name, n in counts.items())))
    if manifest.phantom:
        lesions = f"{manifest.phantom.describe()}, in synthetic {manifest.phantom.kind} images"
        rows.append(("lesions", lesions))
    return manifest.title.partition(",")[0], rows


def _duplicates(runs: Runs) -> list[tuple[str, str]]:
    """Return what the data checks of these runs counted; runs that left twins out say something else."""
    counted = dict.fromkeys(text for group in runs.values() for text in group["duplicates"] if text)
    return [("duplicates", "; or ".join(counted))] if counted else []


def _with_role(name: str, role: str) -> str:
    return name if name == role else f"{name} ({role})"
