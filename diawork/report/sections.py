"""One data set's part of a report: findings, rows, the paper's numbers, pictures, facts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diawork import figures
from diawork.base.errors import DiaworkError
from diawork.base.files import read_arrays
from diawork.data.manifests import load_manifest
from diawork.report.findings import SPLITS, focus_of, headline, reading, rivals_of
from diawork.report.localisation import localisation
from diawork.report.published import paper_comparison
from diawork.report.shortcuts import shortcuts
from diawork.report.tables import compare, score_pairs

FIGURE_STEPS = (50, 100, 200, 400)  # of the paper's Fig. 1
MANY_STEPS = 8  # a strip of more is shown at FIGURE_STEPS; the slider has them all
MOST_CURVES = 9
Runs = dict[str, pd.DataFrame]  # label → runs, one a seed


def section(frame: pd.DataFrame, table: pd.DataFrame, runs: Runs, pictures: str) -> dict[str, Any]:
    """Return what the page says about one data set; ``table`` is its part of the summary table.

    ``pictures`` is "all", "few" (no slider, fewer curves) or "none".
    """
    dataset, name = table["dataset"].iloc[0], table["section"].iloc[0]
    paper = _paper(frame, name) if table["split"].iloc[0] == "test" else pd.DataFrame()
    values = dict(zip(paper["label"], paper["published"], strict=True)) if len(paper) else {}
    colors = [figures.detector_style(label)["color"] for label in table["label"]]
    table = table.assign(color=colors, published=[values.get(label, math.nan) for label in table["label"]])
    tests, failures = _tests(table, runs)
    title, facts = _facts(dataset)
    title += name.removeprefix(dataset)
    shown = _pictures(table, runs, failures, few=pictures == "few") if pictures != "none" else {}
    return {
        "title": title, "split": SPLITS[table["split"].iloc[0]],
        "headline": headline(table, tests), "tiles": _tiles(table), "rows": table.to_dict("records"),
        "notes": list(dict.fromkeys(note for r in runs.values() for notes in r["notes"] for note in notes)),
        "low": math.floor(10 * max(0.0, min(0.5, table["auroc_low"].min()))) / 10,
        "tracked": bool(table["oracle_epoch"].notna().any()),
        "pairs": [row | {"reading": reading(row)} for row in tests.to_dict("records")],
        "paper": paper.to_dict("records"), "ran": len(paper) and int(paper["auroc"].notna().sum()),
        "paper_remarks": _remarks(paper), "failures": failures,
        "facts": facts, "curves": [], "strip": None, "player": None, "errors": None, "maps": None, "shortcuts": None,
        **shown,
    }  # fmt: skip


def _tests(table: pd.DataFrame, runs: Runs) -> tuple[pd.DataFrame, list[str]]:
    """Return the paired tests of the focus against every fair rival, and what could not be compared."""
    a, tests, failures = focus_of(table)["label"], [], []
    for b in rivals_of(table)["label"]:
        try:
            tests.append({"a": a, "b": b} | compare(runs[a], runs[b]))
        except DiaworkError as error:
            failures.append(f"{a} and {b} could not be compared: {error.what}")
    return pd.DataFrame(tests), failures


def _tiles(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows that stand out: the focus, the best other detector, the best control, the oracle."""
    focus, rivals = focus_of(table), rivals_of(table)
    picks = [("the method in question", table[table["label"] == focus["label"]])]
    picks += [("best other detector", rivals[~rivals["control"]]), ("best trivial control", rivals[rivals["control"]])]
    picks += [(f"oracle: chosen with the {SPLITS[focus['split']]} labels", table[table["oracle"]])]
    return [rows.iloc[0].to_dict() | {"tile": text} for text, rows in picks if len(rows)]


def _paper(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the published rows for this section, ours beside them where we have them."""
    both = paper_comparison(frame)
    both = both[both["published"].notna()] if len(both) else both
    if both.empty:
        return both
    dataset = name.partition(" [")[0]
    elsewhere = both["section"].notna() & (both["section"] != name)
    return both[(both["dataset"] == dataset) & ~elsewhere].reset_index(drop=True)


def _remarks(paper: pd.DataFrame) -> list[str]:
    """Return the marks and remarks of the published rows shown, once each."""
    if paper.empty:
        return []
    marks = [f"{mark} {text}." for marks in paper["marks"] for mark, text in marks.items()]
    ours = paper[paper["auroc"].notna()]
    common = [r for r in paper["remarks"].iloc[0] if all(r in remarks for remarks in paper["remarks"])]
    own = [f"{label}: {r}" for label, remarks in zip(ours["label"], ours["remarks"], strict=True) for r in remarks]
    return list(dict.fromkeys(marks + common + [r for r in own if r.partition(": ")[2] not in common]))


def _facts(dataset: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the data set's title and the facts of its manifest, the licence among them."""
    try:
        facts = load_manifest(dataset)
    except DiaworkError:
        return dataset, [("data set", f"{dataset} (no manifest by this name here)")]
    rows = [("data set", facts.title), ("licence", facts.licence), ("citation", facts.citation)]
    rows.append(("images", f"{facts.image.size} px, {facts.image.channels} channel(s)"))
    for split, counts in facts.counts.items():
        rows.append((split, ", ".join(f"{n:,} {cls}{_role(cls, facts.roles[cls])}" for cls, n in counts.items())))
    if facts.phantom:
        lesion = facts.phantom.describe()
        rows.append(("lesions", f"{lesion}, in synthetic {facts.phantom.kind} images"))
    return facts.title.partition(",")[0], rows


def _role(cls: str, role: str) -> str:
    return "" if cls == role else f" ({role})"


# --- pictures ---------------------------------------------------------------------------------------


def _picture(figure: Any, caption: str, dpi: int = 110) -> dict[str, Any]:
    return {"image": figures.png_bytes(figure, dpi), "caption": caption}


def _pictures(table: pd.DataFrame, runs: Runs, failures: list[str], *, few: bool) -> dict[str, Any]:
    """Return the pictures that the run folders allow; what is damaged is named in ``failures``."""
    shown: dict[str, Any] = {}
    order = [focus_of(table)["label"], *table["label"]]
    for part in (
        lambda: _curves(table, runs, few),
        lambda: _dissolving(order, runs, few),
        lambda: _errors(order, runs),
        lambda: localisation(*found) if (found := _evidence(order, runs, "maps")) else {},
        lambda: _followed(table, runs),
    ):
        try:
            shown |= part()
        except DiaworkError as error:
            failures.append(f"A picture is missing: {error}")
    return shown


def _curves(table: pd.DataFrame, runs: Runs, few: bool) -> dict[str, Any]:
    labels = list(table["label"])[:MOST_CURVES]
    pairs = {label: score_pairs(runs[label]) for label in labels}
    limits = {label: runs[label].iloc[0].get(f"{table['split'].iloc[0]}.threshold") for label in labels}
    roc = _picture(figures.roc(pairs), "ROC curves, mean and one standard deviation over seeds.")
    if few:
        return {"curves": [roc]}
    first = figures.score_histogram(
        {label: p[0] for label, p in pairs.items()}, threshold=limits, columns=3 if len(labels) < 7 else 4
    )
    text = f"Scores of the {SPLITS[table['split'].iloc[0]]} images, first seed, each group's area 1; "
    text += "the end bins hold what lies beyond."
    return {"curves": [roc, _picture(first, text, 100)]}


def _evidence(order: list[str], runs: Runs, wanted: str) -> tuple[str, dict[str, np.ndarray]] | None:
    """Return the arrays of the first run, in ``order``, whose ``evidence.npz`` holds ``wanted``."""
    for label in order:
        for folder in runs[label]["folder"]:
            path = Path(folder) / "evidence.npz"
            if not path.exists():
                continue
            arrays = read_arrays(path)
            if wanted in arrays:
                return label, arrays
    return None


def _dissolving(order: list[str], runs: Runs, few: bool) -> dict[str, Any]:
    found = _evidence(order, runs, "strip")
    if found is None:
        return {}
    label, arrays = found
    strip, ts = arrays["strip"], [int(t) for t in arrays["strip_ts"]]
    keep = [i for i, t in enumerate(ts) if t in FIGURE_STEPS] if len(ts) > MANY_STEPS else range(len(ts))
    keep = list(keep) or list(range(0, len(ts), -(-len(ts) // MANY_STEPS)))
    rows = [str(x) for x in arrays["strip_label"]] if "strip_label" in arrays else None
    figure = figures.dissolve_strip(strip[:, [0, *(i + 1 for i in keep)]], [ts[i] for i in keep], rows)
    text = f"Images through the dissolver of {label} (Eq. 4): larger t removes larger structures."
    shown = {"strip": _picture(figure, text, 90)}
    if few:
        return shown
    frames = figures.dissolve_frames(strip[:, 0], strip[:, 1:], ts, dpi=120)
    start = int(np.argmin(np.abs(np.array(ts) - 100)))
    return shown | {"player": figures.player_html(frames, [f"t = {t}" for t in ts], "dissolving step", start=start)}


def _followed(table: pd.DataFrame, runs: Runs) -> dict[str, Any]:
    """Return what the scores follow, of the rows that scored the very images whose statistics are known."""
    labels = [str(label) for label in table.loc[~table["oracle"], "label"]]
    found = _evidence(labels, runs, "statistics")
    if found is None:
        return {}
    label, arrays = found
    data = set(runs[label]["data"])
    alike = {label: score_pairs(runs[label]) for label in labels if set(runs[label]["data"]) == data}
    return shortcuts(alike, arrays["statistics"], [str(name) for name in arrays["statistics_names"]])


def _errors(order: list[str], runs: Runs) -> dict[str, Any]:
    found = _evidence(order, runs, "errors_images")
    if found is None or not len(found[1]["errors_images"]):
        return {}
    label, arrays = found
    figure = figures.nearest_neighbours(
        arrays["errors_images"], arrays["errors_nearest"], arrays["errors_score"], arrays["errors_label"]
    )
    text = f"Worst errors of {label}: healthy images scored highest and anomalous ones scored lowest, each above the "
    return {"errors": _picture(figure, text + "healthy training image that the detector finds nearest.", 100)}
