"""From run folders to tables: what finished, with intervals, and compared on the same images.

A number enters a table only from a finished run. Runs that differ in more than their seed are never
averaged: their differing settings become part of the row's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diawork.base.errors import DataError, DiaworkError, UsageError, did_you_mean
from diawork.base.registry import is_control
from diawork.evaluation.collapse import Facts, Spread
from diawork.evaluation.selfcheck import SelfCheck, by_selection
from diawork.evaluation.shifts import ShiftProbe
from diawork.report.comparisons import Compared, compare
from diawork.runs.run import Run, find_runs

METRICS = ("auroc", "auprc", "fpr95")  # with an interval each
AT_THRESHOLD = ("f1", "accuracy", "sensitivity", "specificity")
COSTS = ("ddpm_seconds", "bank_seconds", "fit_seconds", "score_seconds", "peak_memory_mb", "parameters")
NOISE = ("noise_share", "noise_auroc")  # what other augmented copies would do, where a detector draws any
NEEDED = ("auroc", "auroc_low", "auroc_high", "n_normal", "n_anomalous")  # a run without any other metric is read
CHECK = ("auroc", "low", "high", "n")  # of the self-check without labels
EPOCHS = ("pseudo", "val", "last", "oracle")  # rules by which an epoch could be taken, where test was tracked
OF_A_MAP = ("pixel_auroc", "pixel_auroc_low", "pixel_auroc_high", "aupro", "aupro_low", "aupro_high")
SEARCHED = "scored on val alone, as part of a search"
OLDER = "scored under draws {}, others here under {}: run its command again, which scores it anew"
ENDS = ("_low", "_high", "_sd")  # of the columns that stand in their value's cell
PRINTED = {
    "auroc": "AUROC", "auprc": "AUPRC", "fpr95": "FPR at 95 % TPR", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO",
    "label": "detector", "a": "detector", "b": "against", "published": "published AUROC",
    "baseline_s": "released scheme, s", "ours_s": "ours, s",
}  # fmt: skip
DDPM_SEED = "diffusion.seed"
_PLAIN = ("dataset", "detector", "oracle", "seed", "digest", "selection", "pretrained_weights")
_NAME = ("dataset", "section", "detector", "variant", "label")


def collect(runs: Path | str | Iterable[Path | str]) -> pd.DataFrame:
    """Return one row a finished run, from a folder of runs or a list of run folders.

    Columns: what ``result.json`` says, metrics as ``test.auroc``, settings and costs by dotted name, ``split``,
    the one that a table is about: test, or val where no run scored test (a search); beside runs that did, such
    runs count as unfinished, and so do runs scored under older draws beside newer ones. ``attrs``: ``found`` runs
    in all, ``unfinished`` and ``unreadable`` as lists of (name, reason).
    """
    roots = [runs] if isinstance(runs, str | Path) else runs
    all_runs = {run.folder: run for root in roots for run in find_runs(root)}
    rows, unfinished, unreadable = [], [], []
    for folder, run in all_runs.items():
        try:
            state = run.state()
            if state == "done":
                rows.append(_row(run))
            else:
                unfinished.append((folder.name, state))
        except DiaworkError as error:
            unreadable.append((folder.name, error.what))
    if any(row["split"] == "test" for row in rows):
        unfinished += [(row["run"], SEARCHED) for row in rows if row["split"] == "val"]
        rows = [row for row in rows if row["split"] == "test"]
    newest = max((row["draws"] for row in rows if row["draws"]), default=None)
    older = [row for row in rows if row["draws"] not in (None, newest)]
    unfinished += [(row["run"], OLDER.format(row["draws"], newest)) for row in older]
    frame = pd.DataFrame([row for row in rows if row not in older])
    if len(frame):
        frame = frame.sort_values(["dataset", "detector", "seed", "created"]).reset_index(drop=True)
    frame.attrs |= {"found": len(all_runs), "unfinished": unfinished, "unreadable": unreadable}
    return frame


def _row(run: Run) -> dict[str, Any]:
    """Return what a table says of a finished run; metrics that it does not know are left out of its row."""
    result, config = run.result(), run.config()
    try:
        label, split = str(result["detector"]), run.primary_split
        row = {key: result[key] for key in _PLAIN} | {"dataset": str(result["dataset"]), "detector": label}
        row["weights"] = str(result.get("weights") or ("pretrained" if row["pretrained_weights"] else "not pretrained"))
        row |= {"run": run.folder.name, "folder": str(run.folder), "split": split}
        row |= {"data": str(config["data"]["identity"]), "notes": list(config["data"].get("notes", ()))}
        row |= {"duplicates": str(config["data"].get("duplicates", ""))}
        versions = {**config.get("versions", {}), **config.get("compute", {})}
        row |= {"versions": {str(k): str(v) for k, v in versions.items()}, "created": str(config.get("created", ""))}
        row |= {"draws": run.draws}
        row["control"] = bool(result.get("control", is_control(label)))
        for scored, metrics in result["metrics"].items():
            row |= {f"{scored}.{k}": float(value) for k, value in metrics.items() if isinstance(value, int | float)}
        row |= {f"cost.{name}": value for name, value in result.get("cost", {}).items()}
        taken = by_selection(run.oracle_epochs())
        row |= {f"epoch.{rule}": float(taken.get(rule, math.nan)) for rule in EPOCHS}
        row["facts"] = {name: result[name] for name in ("diffusion_images", "matched") if name in result}
        check = result.get("self_check") or {}
        row |= {f"check.{name}": float(check.get(name, math.nan)) for name in CHECK}
        row["check.facts"] = _facts(check)
        row["check.verdict"], row["check.findings"] = _words(check, row["check.facts"])
        probe = result.get("shift_probe")
        row["check.shift"] = ShiftProbe.of(probe).sentence(str(probe["shift"])) if probe else ""
        settings = result.get("settings", {})
        row["method"] = str(settings.get("detector", ""))
        row["settings"] = {k: v for k, v in settings.items() if k not in ("dataset", "detector", "seed")}
        known = [row[f"{split}.{name}"] for name in NEEDED]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"result.json or config.json is incomplete ({type(error).__name__}: {error}).") from None
    known += [row.get(f"{split}.{name}", 0.0) for name in NOISE]
    known += [row.get(f"{split}.{name}{end}", 0.0) for name in METRICS for end in ("", "_low", "_high")]
    measured = [row.get(f"{split}.{name}", 0.0) for name in METRICS]
    if np.isinf(known).any() or np.isnan(measured).any():  # ends that are NaN: no interval can be given
        raise DataError("result.json holds numbers that are not finite.")
    return row


def _words(check: Mapping[str, Any], facts: Facts) -> tuple[str, list[str]]:
    """Return the verdict and findings of a self-check; an older one kept its words alone."""
    if "rows" in check:
        again = SelfCheck.of(check, facts)
        return again.verdict, again.findings()
    return str(check.get("verdict", "")), [str(sentence) for sentence in check.get("findings", ())]


def _facts(check: Mapping[str, Any]) -> Facts:
    """Return what a self-check knows of its detector; an older one knows what the scores follow alone."""
    facts = check.get("facts") or {"follows": check.get("follows")}
    accuracy, features, follows = (facts.get(name) for name in ("shift_accuracy", "features", "follows"))
    return Facts(
        None if accuracy is None else float(accuracy), None if accuracy is None else int(facts["shifts"]),
        Spread(*map(float, features)) if features else None, (str(follows[0]), float(follows[1])) if follows else None,
    )  # fmt: skip


def split_of(frame: pd.DataFrame) -> str:
    """Return the split that these runs' tables are about: "test", or "val" for a search."""
    return frame["split"].iloc[0] if len(frame) else "test"


def groups(frame: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Return (name of the row, its runs): runs that differ in nothing but the seed, one a seed.

    A column ``row`` names the rows, as a sweep does. The name holds ``dataset``, ``detector``, ``variant`` (the
    settings in which it differs from others of its detector here) and ``label``. Of equal runs the newest counts.
    """
    if frame.empty:
        return []
    named = _named(frame)
    rows = []
    for _, runs in named.groupby(["section", "label", "same"], sort=False):
        newest = runs.sort_values("created").drop_duplicates("seed", keep="last").sort_values("seed")
        rows.append(({key: runs[key].iloc[0] for key in _NAME}, newest[frame.columns]))
    return rows


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Add each run's ``section``, ``variant`` and ``label``, and ``same``, which is equal for equal work."""
    if "row" in frame:
        return frame.assign(section=frame["dataset"], variant="", label=frame["row"], same="")
    parts = []
    for dataset, runs in frame.groupby("dataset", sort=False):
        section = f"{dataset} [data " + runs["data"].str[:6] + "]" if runs["data"].nunique() > 1 else dataset
        parts += [_told_apart(alike.assign(section=section)) for _, alike in runs.groupby("detector", sort=False)]
    return pd.concat(parts)


def _told_apart(runs: pd.DataFrame) -> pd.DataFrame:
    """Name the runs of one detector by the settings in which they differ, a DDPM of each run's own seed apart."""
    settings = list(runs["settings"])
    if all(one.get(DDPM_SEED) == seed for one, seed in zip(settings, runs["seed"], strict=True)):
        settings = [{key: value for key, value in one.items() if key != DDPM_SEED} for one in settings]
    keys = sorted({key for one in settings for key in one})
    differing = [key for key in keys if len({_spelt(one.get(key)) for one in settings}) > 1]
    variants = [", ".join(f"{key} {one.get(key)}" for key in differing) for one in settings]
    detector = runs["detector"].iloc[0]
    labels = [f"{detector} ({variant})" if variant else detector for variant in variants]
    same = [_spelt([data, one]) for data, one in zip(runs["data"], settings, strict=True)]
    return runs.assign(variant=variants, label=labels, same=same)


def _spelt(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def summary_table(frame: pd.DataFrame, split: str | None = None) -> pd.DataFrame:
    """Return one row a data set and detector, best AUROC first, oracles last.

    ``auroc`` and the others are means over seeds, ``_sd`` their spread over seeds (training). ``_low`` and
    ``_high`` are the ends of each run's own BCa interval (test images), averaged over seeds: the interval of
    scores averaged over seeds would belong to an ensemble, which is another detector. ``split`` is that of
    ``split_of`` unless given. What no run of a row measured is NaN.
    """
    rows = [name | _summary(runs, split or split_of(frame)) for name, runs in groups(frame)]
    table = pd.DataFrame(rows)
    order = ["section", "oracle", "auroc"]
    return table.sort_values(order, ascending=[True, True, False], ignore_index=True) if rows else table


def _summary(runs: pd.DataFrame, split: str) -> dict[str, Any]:
    def values(column: str) -> pd.Series:
        return runs.get(column, pd.Series(dtype=float)).astype(float)

    means = [f"{m}{end}" for m in METRICS for end in ("", "_low", "_high")] + [*AT_THRESHOLD, *NOISE]
    row: dict[str, Any] = {name: values(f"{split}.{name}").mean() for name in means}
    row |= {f"{m}_sd": values(f"{split}.{m}").std(ddof=1) for m in (*METRICS, *AT_THRESHOLD)}
    row |= {f"check_{name}": values(f"check.{name}").mean() for name in CHECK}
    row |= {"weights": _joined(runs["weights"])}
    row |= {f"epoch_{rule}": values(f"epoch.{rule}").mean() for rule in EPOCHS}
    row |= {"val_auroc": values("val.auroc").mean()}
    row |= {"seeds": len(runs), "selection": _joined(runs["selection"]), "control": bool(runs["control"].all())}
    row |= {"split": split, "oracle": bool(runs["oracle"].any()), "pretrained": bool(runs["pretrained_weights"].any())}
    row |= {name: int(runs[f"{split}.{name}"].iloc[0]) for name in ("n_normal", "n_anomalous")}
    row |= {"draws": runs["draws"].astype(float).max()}
    return row | {cost: values(f"cost.{cost}").mean() for cost in COSTS}


def _joined(rules: Sequence[str]) -> str:
    """Join selection rules over seeds: "fixed epoch 10", "best validation AUROC, epoch 7, 9"."""
    parted = [str(rule).rpartition(" ") for rule in rules]
    if len({head for head, _, _ in parted}) == 1 and all(tail.isdigit() for _, _, tail in parted):
        return f"{parted[0][0]} {', '.join(sorted({tail for _, _, tail in parted}, key=int))}"
    return "; ".join(dict.fromkeys(map(str, rules)))


def pixel_table(arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return a row a map with pixel AUROC, AUPRO and their intervals, from a run's evidence; without maps, none."""
    table = pd.DataFrame(arrays.get("maps_table", ()), columns=list(OF_A_MAP))
    table.insert(0, "map", [str(name) for name in arrays["maps_names"]] if "maps_table" in arrays else [])
    return table


def readable(rows: pd.DataFrame | Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return a table for the eye: a value with its interval and spread in one cell, columns named as in print.

    The first column becomes the row's name; columns without any value are left out.
    """
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    table = table[list(columns) or list(table)].dropna(axis="columns", how="all")
    cells = {}
    for name in table.columns:
        if not name.endswith(ENDS):
            cells[PRINTED.get(name, name.replace("_", " "))] = [_cell(row, name) for row in table.to_dict("records")]
    printed = pd.DataFrame(cells)
    return printed.set_index(printed.columns[0])


def _cell(row: Mapping[Hashable, Any], name: str) -> str:
    """Return e.g. "0.903 ± 0.010 [0.881, 0.924]"."""
    value, spread = row[name], row.get(f"{name}_sd", math.nan)
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "–"
    interval = [row.get(f"{name}_{end}", math.nan) for end in ("low", "high")]
    text = f"{value:.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}")
    return text if any(map(math.isnan, interval)) else f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]"


def score_pairs(runs: pd.DataFrame, split: str | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (scores, anomalous) of each run, as the plots take them."""
    scores = [Run(folder).scores(split or split_of(runs)) for folder in runs["folder"]]
    return [(one["score"].to_numpy(), one["anomalous"].to_numpy()) for one in scores]


def curves(frame: pd.DataFrame, split: str | None = None) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return label → one (scores, anomalous) a seed, for ``figures.roc``; of several data sets the name goes first."""
    rows = groups(frame)
    several = len({name["section"] for name, _ in rows}) > 1
    return {
        f"{name['section']}: {name['label']}" if several else name["label"]: score_pairs(runs, split)
        for name, runs in rows
    }


def paired(frame: pd.DataFrame, a: str, b: str, split: str | None = None) -> pd.DataFrame:
    """Return, for each data set with both, mean AUROC of a minus that of b over images and seeds, and what it says.

    ``a`` and ``b`` are labels of ``summary_table``; how seeds are treated is said in ``comparisons.compare``.
    """
    sections: dict[str, dict[str, pd.DataFrame]] = {}
    for name, runs in groups(frame):
        sections.setdefault(name["section"], {})[name["label"]] = runs
    known = {label for labels in sections.values() for label in labels}
    for label in (a, b):
        if label not in known:
            raise UsageError(f"{label!r} is in no finished run.", hint=did_you_mean(label, known))
    both = [(section, labels) for section, labels in sections.items() if {a, b} <= set(labels)]
    tests = [Compared(a, b, section, compare(labels[a], labels[b], split)) for section, labels in both]
    return pd.DataFrame([one.row for one in tests])
