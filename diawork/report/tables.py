"""From run folders to tables: what finished, with intervals, and compared on the same images.

A number enters a table only from a finished run. Runs that differ in more than their seed are never
averaged: their differing settings become part of the row's name.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diawork.base.errors import DataError, DiaworkError, UsageError, did_you_mean
from diawork.base.files import read_json
from diawork.detectors.registry import is_control
from diawork.evaluation.metrics import paired_test
from diawork.runs.run import ORACLE, Run

METRICS = ("auroc", "auprc", "fpr95")  # with an interval each
AT_THRESHOLD = ("f1", "accuracy", "sensitivity", "specificity")
SEARCHED = "scored on val alone, as part of a search"
Z95 = 1.959964  # half of a normal 95 % interval, in standard deviations
_PLAIN = ("dataset", "detector", "oracle", "seed", "digest", "selection", "pretrained_weights")


# --- runs -------------------------------------------------------------------------------------------


def collect(runs: Path | str | Iterable[Path | str]) -> pd.DataFrame:
    """Return one row a finished run, from a folder of runs or a list of run folders.

    Columns: what ``result.json`` says, metrics as ``test.auroc``, settings and costs by dotted name, ``split``,
    the one that a table is about: test, or val where no run scored test (a search); beside runs that did, such
    runs count as unfinished. ``attrs``: ``found`` runs in all, ``unfinished`` and ``unreadable`` as lists of
    (name, reason).
    """
    rows, unfinished, unreadable = [], [], []
    folders = _run_folders(runs)
    for folder in folders:
        try:
            if (folder / "result.json").exists():
                rows.append(_row(folder))
            else:
                unfinished.append((folder.name, _state(folder)))
        except DiaworkError as error:
            unreadable.append((folder.name, error.what))
    if any(row["split"] == "test" for row in rows):
        unfinished += [(row["run"], SEARCHED) for row in rows if row["split"] == "val"]
        rows = [row for row in rows if row["split"] == "test"]
    frame = pd.DataFrame(rows)
    if rows:
        frame = frame.sort_values(["dataset", "detector", "seed", "created"]).reset_index(drop=True)
    frame.attrs |= {"found": len(folders), "unfinished": unfinished, "unreadable": unreadable}
    return frame


def _run_folders(runs: Path | str | Iterable[Path | str]) -> list[Path]:
    roots = [Path(runs)] if isinstance(runs, str | Path) else [Path(r) for r in runs]
    found: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            raise UsageError("this folder of runs does not exist.", path=root)
        marks = (p for name in ("config.json", "status.json", "result.json") for p in root.rglob(name))
        found |= dict.fromkeys(sorted({p.parent for p in marks}))
    return list(found)


def _state(folder: Path) -> str:
    """Return why a run has no result: its state and, where it failed, the error."""
    if not (folder / "status.json").exists():
        return "never started"
    status = read_json(folder / "status.json")
    state, error = (status.get("state"), status.get("error")) if isinstance(status, dict) else ("unknown", None)
    return f"{'no result' if state == 'done' else state}{f': {error}' if error else ''}"


def _row(folder: Path) -> dict[str, Any]:
    run = Run(folder)
    result, config = run.result(), run.config()
    try:
        row = {key: result[key] for key in _PLAIN} | {"run": folder.name, "folder": str(folder)}
        row |= {"data": str(config["data"]["identity"]), "notes": list(config["data"].get("notes", ()))}
        row |= {"created": str(config.get("created", "")), "versions": _versions(config)}
        row["control"] = bool(result.get("control", is_control(str(row["detector"]))))
        for split, numbers in result["metrics"].items():
            row |= {f"{split}.{name}": float(value) for name, value in numbers.items()}
        row["facts"] = {name: result[name] for name in ("diffusion_images", "matched") if name in result}
        row["oracle_epoch"] = _best_test_epoch(folder)
        row |= {f"cost.{name}": value for name, value in result.get("cost", {}).items()}
        settings = result.get("settings", {})
        row |= {"settings": {k: v for k, v in settings.items() if k not in ("dataset", "detector", "seed")}}
        row["split"] = split = "test" if "test" in result["metrics"] else "val"
        complete = all(math.isfinite(row[f"{split}.{name}{end}"]) for name in METRICS for end in ("", "_low", "_high"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"result.json or config.json is incomplete ({type(error).__name__}: {error}).") from None
    if not complete:
        raise DataError("result.json holds numbers that are not finite.")
    return row | {"dataset": str(row["dataset"]), "detector": str(row["detector"])}


def _best_test_epoch(folder: Path) -> float:
    """Return the best test AUROC over epochs, where it was tracked: for columns named oracle, never for ours."""
    path = folder / ORACLE
    return max((float(value) for value in read_json(path).values()), default=math.nan) if path.exists() else math.nan


def _versions(config: dict[str, Any]) -> dict[str, str]:
    parts = {**config.get("versions", {}), **config.get("compute", {})}
    return {str(name): str(value) for name, value in parts.items()}


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
    if "row" in frame:
        return _named_rows(frame)
    frame = frame.assign(_settings=[json.dumps(s, sort_keys=True, default=str) for s in frame["settings"]])
    out = []
    for (dataset, detector), all_runs in frame.groupby(["dataset", "detector"], sort=False):
        differing = _differing(all_runs)
        several = frame.loc[frame["dataset"] == dataset, "data"].nunique() > 1
        for (data, _), runs in all_runs.groupby(["data", "_settings"], sort=False):
            variant = ", ".join(f"{k} {runs['settings'].iloc[0].get(k)}" for k in differing)
            name = {"dataset": dataset, "section": f"{dataset} [data {data[:6]}]" if several else dataset}
            label = f"{detector} ({variant})" if variant else detector
            runs = runs.sort_values("created").drop_duplicates("seed", keep="last").sort_values("seed")
            out.append((name | {"detector": detector, "variant": variant, "label": label}, runs))
    return out


def _named_rows(frame: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    out = []
    for (dataset, row), runs in frame.groupby(["dataset", "row"], sort=False):
        name = {"dataset": dataset, "section": dataset, "detector": runs["detector"].iloc[0], "variant": ""}
        runs = runs.sort_values("created").drop_duplicates("seed", keep="last").sort_values("seed")
        out.append((name | {"label": row}, runs))
    return out


def _differing(runs: pd.DataFrame) -> list[str]:
    keys = sorted({key for settings in runs["settings"] for key in settings})
    return [k for k in keys if len({json.dumps(s.get(k), default=str) for s in runs["settings"]}) > 1]


# --- tables -----------------------------------------------------------------------------------------


def summary_table(frame: pd.DataFrame, split: str | None = None) -> pd.DataFrame:
    """Return one row a data set and detector, best AUROC first, oracles last.

    ``auroc`` and the others are means over seeds, ``_sd`` their spread over seeds (training). ``_low`` and
    ``_high`` are the ends of each run's own BCa interval (test images), averaged over seeds: the interval of
    scores averaged over seeds would belong to an ensemble, which is another detector. ``split`` is that of
    ``split_of`` unless given.
    """
    rows, split = [], split or split_of(frame)
    for name, runs in groups(frame):
        numbers = {f"{m}{end}": runs[f"{split}.{m}{end}"].mean() for m in METRICS for end in ("", "_low", "_high")}
        for m in (*METRICS, *AT_THRESHOLD):
            values = runs.get(f"{split}.{m}", pd.Series(dtype=float))
            numbers |= {m: values.mean(), f"{m}_sd": values.std(ddof=1)}
        numbers["oracle_epoch"] = runs.get("oracle_epoch", pd.Series(dtype=float)).mean()
        numbers["val_auroc"] = runs.get("val.auroc", pd.Series(dtype=float)).mean()
        facts = {"seeds": len(runs), "selection": _joined(runs["selection"]), "control": bool(runs["control"].all())}
        facts |= {
            "split": split,
            "oracle": bool(runs["oracle"].any()),
            "pretrained": bool(runs["pretrained_weights"].any()),
        }
        facts |= {f"n_{kind}": int(runs[f"{split}.n_{kind}"].iloc[0]) for kind in ("normal", "anomalous")}
        for cost in ("fit_seconds", "score_seconds", "peak_memory_mb", "parameters"):
            facts[cost] = runs.get(f"cost.{cost}", pd.Series(dtype=float)).astype(float).mean()
        rows.append(name | numbers | facts)
    table = pd.DataFrame(rows)
    order = ["section", "oracle", "auroc"]
    return table.sort_values(order, ascending=[True, True, False], ignore_index=True) if rows else table


def _joined(rules: Sequence[str]) -> str:
    """Join selection rules over seeds: "fixed epoch 10", "best validation AUROC, epoch 7, 9"."""
    split = [str(rule).rpartition(" ") for rule in rules]
    if len({head for head, _, _ in split}) == 1 and all(tail.isdigit() for _, _, tail in split):
        return f"{split[0][0]} {', '.join(sorted({tail for _, _, tail in split}, key=int))}"
    return "; ".join(dict.fromkeys(map(str, rules)))


def read_scores(folder: Path | str, split: str = "test") -> pd.DataFrame:
    """Return ``index``, ``anomalous`` (bool) and ``score`` of a run's split, ordered by index."""
    path = Path(folder) / "scores.csv"
    try:
        scores = pd.read_csv(path, usecols=["split", "index", "anomalous", "score"])
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"the scores cannot be read ({error}).", path=path.name) from None
    scores = scores[scores["split"] == split].sort_values("index", ignore_index=True)
    return scores.assign(anomalous=scores["anomalous"].astype(bool))


def score_pairs(runs: pd.DataFrame, split: str | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (scores, anomalous) of each run, as the plots take them."""
    parts = [read_scores(folder, split or split_of(runs)) for folder in runs["folder"]]
    return [(part["score"].to_numpy(), part["anomalous"].to_numpy()) for part in parts]


def curves(frame: pd.DataFrame, split: str | None = None) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return label → one (scores, anomalous) a seed, for ``figures.roc``; of several data sets the name goes first."""
    several = frame["dataset"].nunique() > 1 or any(" [" in name["section"] for name, _ in groups(frame))
    return {
        f"{name['section']}: {name['label']}" if several else name["label"]: score_pairs(runs, split)
        for name, runs in groups(frame)
    }


def paired(frame: pd.DataFrame, a: str, b: str, split: str | None = None) -> pd.DataFrame:
    """Return, for each data set with both, mean AUROC of a minus that of b on the same images.

    ``a`` and ``b`` are labels of ``summary_table``; how seeds are treated is said in ``compare``.
    """
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for name, runs in groups(frame):
        found.setdefault(name["section"], {})[name["label"]] = runs
    known = {label for labels in found.values() for label in labels}
    for label in {a, b} - known:
        raise UsageError(f"{label!r} is in no finished run.", hint=did_you_mean(label, known))
    both = [(section, labels) for section, labels in found.items() if {a, b} <= set(labels)]
    return pd.DataFrame([{"section": s, "a": a, "b": b} | compare(labels[a], labels[b], split) for s, labels in both])


def compare(a: pd.DataFrame, b: pd.DataFrame, split: str | None = None) -> dict[str, float]:
    """Return the paired comparison of two groups of runs (one a seed) on the same images.

    Each seed of a is tested against each of b (DeLong) and the ends of their intervals are averaged, so that
    the difference is that of the mean AUROCs and the interval speaks of one training. Scores averaged over
    seeds would belong to an ensemble, which is another detector.
    """
    split = split or split_of(a)
    left, right = ([read_scores(folder, split) for folder in runs["folder"]] for runs in (a, b))
    images = left[0][["index", "anomalous"]]
    if any(not part[["index", "anomalous"]].equals(images) for part in (*left, *right)):
        raise DataError("they did not score the same images.")
    truth = images["anomalous"].to_numpy()
    tests = [paired_test(x["score"].to_numpy(), y["score"].to_numpy(), truth) for x in left for y in right]
    mean = pd.DataFrame(tests)[["difference", "low", "high"]].mean()
    sd = (mean["high"] - mean["low"]) / (2 * Z95)
    p = math.erfc(abs(mean["difference"]) / sd / math.sqrt(2)) if sd > 0 else float(mean["difference"] == 0)
    return {"n": len(truth), "seeds_a": len(a), "seeds_b": len(b), **mean, "p": p}
