"""One data set's part of a report: findings, rows, the paper's numbers, pictures, facts."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from diawork import figures
from diawork.base.errors import DiaworkError
from diawork.data.manifests import load_manifest
from diawork.report.findings import SPLITS, focus_of, headline, reading, rivals_of
from diawork.report.pictures import Runs, draw_pictures
from diawork.report.published import beside_paper
from diawork.report.tables import DDPM_SEED, compare_all


def section(table: pd.DataFrame, runs: Runs, pictures: str) -> dict[str, Any]:
    """Return what the page says about one data set; ``table`` is its part of the summary table.

    ``pictures`` is "all", "few" (no slider, fewer curves) or "none".
    """
    dataset, name, split = (table[key].iloc[0] for key in ("dataset", "section", "split"))
    paper = beside_paper(table)
    paper = paper[paper["published"].notna() & (split == "test")]
    values = dict(zip(paper["label"], paper["published"], strict=True))
    colors = [figures.detector_style(label)["color"] for label in table["label"]]
    table = table.assign(color=colors, published=[values.get(label, math.nan) for label in table["label"]])
    focus = focus_of(table)["label"]
    pairs = [({"a": focus, "b": rival}, runs[focus], runs[rival]) for rival in rivals_of(table)["label"]]
    tests, failures = compare_all(pairs)
    drawn, missing = draw_pictures(table, runs, pictures)
    title, facts = _facts(dataset)
    return drawn | {
        "title": title + name.removeprefix(dataset), "split": SPLITS[split], "facts": facts,
        "notes": list(dict.fromkeys(note for group in runs.values() for notes in group["notes"] for note in notes)),
        "headline": headline(table, pd.DataFrame(tests)), "tiles": _tiles(table), "rows": table.to_dict("records"),
        "low": math.floor(10 * max(0.0, min(0.5, table[["auroc", "auroc_low"]].min(axis=None)))) / 10,
        "models": _models(runs), "draws": _draws(table), "tracked": bool(table["oracle_epoch"].notna().any()),
        "pairs": [test | {"reading": reading(test)} for test in tests], "failures": failures + missing,
        "paper": paper.to_dict("records"), "ran": int(paper["auroc"].notna().sum()),
        "paper_remarks": _remarks(paper),
    }  # fmt: skip


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


def _with_role(name: str, role: str) -> str:
    return name if name == role else f"{name} ({role})"
