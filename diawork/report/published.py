"""Published numbers, machine-readable, and ours beside them: two columns, never one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd

from diawork.base.errors import pick
from diawork.base.files import shipped
from diawork.base.registry import entry_of
from diawork.data.documents import parse_yaml
from diawork.report.tables import groups, summary_table
from diawork.runs.presets import preset

SAME_METHOD = {
    "gaussian blur in the slot": "Gaussian blur", "median blur in the slot": "Median blur",
    "mean-shifted contrastive": "Mean-shift",
}  # fmt: skip
SAME_TEST = {"chestxray224": "zhanglab"}  # our set → the published set whose test images it holds
SILENT = ("dissolve.t_range", "dissolve.bridge", "diffusion.seed")  # by data set, or which the paper does not say
_OURS = [
    "dataset", "section", "label", "auroc", "auroc_sd", "auroc_low", "auroc_high", "seeds", "pretrained", "oracle",
    "control",
]  # fmt: skip
_THEIRS = [
    "dataset", "method", "setting", "published", "published_sd", "extra_data", "marks", "remarks", "source", "place",
]  # fmt: skip


@cache
def _published_yaml() -> dict[str, Any]:
    return parse_yaml((shipped("data_manifests") / "published.yaml").read_bytes(), "published.yaml")[0]


def published(table: str | None = None) -> pd.DataFrame:
    """Return published numbers, one a row: table, method, setting, dataset, metric, value, sd, marks, remarks, source.

    Shares are fractions, whatever the source printed; ``marks`` and ``remarks`` are spelt out.
    """
    book = _published_yaml()
    if table is not None:
        pick(book["tables"], table, "published table")
    chosen = [table] if table else list(book["tables"])
    return pd.DataFrame([cell for key in chosen for cell in _cells(book, key)])


def _cells(book: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
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
                yield {
                    "table": key, "title": table["title"], "source": book["sources"][table["source"]],
                    "place": table["place"], "method": row["method"], "setting": row.get("setting", ""),
                    "dataset": dataset, "metric": metric, "value": value / scale,
                    "sd": math.nan if sd is None else sd / scale, "extra_data": row.get("extra_data"),
                    "marks": {mark: book["marks"][mark] for mark in row.get("marks", ())},
                    "remarks": [book["remarks"][r] for r in (*table.get("remarks", ()), *own)],
                }  # fmt: skip


def beside_published(table: str, frame: pd.DataFrame, repeats: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a published table as a sweep's page shows it, beside each row ours that says it repeats it.

    ``repeats`` maps the label of our row to the published method and setting: no row is chosen by its score.
    """
    theirs = published(table)
    ours = summary_table(frame).reindex(columns=["dataset", "label", "split", "auroc", "auroc_sd", "seeds"])
    ours = ours[(ours["split"] == "test") & ours["label"].isin(list(repeats))]
    ours["dataset"] = [SAME_TEST.get(name, name) for name in ours["dataset"]]
    ours["method"] = [repeats[label][0] for label in ours["label"]]
    ours["setting"] = [" ".join(repeats[label][1:]) for label in ours["label"]]
    both = theirs.merge(ours.drop(columns="split"), "left", ["dataset", "method", "setting"])
    runs = {name["label"]: runs for name, runs in groups(frame)}
    both["differs"] = [_differs(runs.get(row["label"]), row["setting"]) for _, row in both.iterrows()]
    cost = bool(theirs["dataset"].isna().all())
    both["where"] = both["metric"].str.replace("_", " ") if cost else both["dataset"]
    both.loc[~both["metric"].isin(["auroc", "cost"]), ["auroc", "auroc_sd"]] = math.nan  # ours is no accuracy
    both["difference"] = both["auroc"] - both["value"]
    marks = [f"{mark} {text}." for marks in both["marks"] for mark, text in marks.items()]
    remarks = dict.fromkeys(marks + [remark for row in both["remarks"] for remark in row])
    source = {key: theirs[key].iloc[0] for key in ("title", "source", "place")}
    return source | {"rows": both.to_dict("records"), "cost": cost, "remarks": list(remarks)}


def _differs(runs: pd.DataFrame | None, setting: str) -> list[str]:
    """Return the settings in which runs differ from what the paper says (preset ``paper``, and the row's setting)."""
    if runs is None or not runs["method"].iloc[0]:
        return []
    ours = runs["settings"].iloc[0]
    uses = entry_of(runs["method"].iloc[0]).uses
    theirs = preset("paper").flat() | _published_yaml()["settings"].get(setting, {})
    keys = [key for key in theirs if key.partition(".")[0] in uses and key in ours and key not in SILENT]
    return [f"{key} {ours[key]}, published {theirs[key]}" for key in keys if ours[key] != theirs[key]]


def paper_comparison(frame: pd.DataFrame, table: str = "t1") -> pd.DataFrame:
    """Return ours and the published AUROC side by side, in columns of their own, for the data sets we ran.

    ``difference`` is ours minus published; its interval moves ours alone (test images), as if the published
    number were exact. Methods that were not run here, and ours that nobody published, have gaps.
    """
    ours = summary_table(frame)
    return ours if ours.empty else beside_paper(ours, {name["label"]: runs for name, runs in groups(frame)}, table)


def beside_paper(ours: pd.DataFrame, runs: Mapping[str, pd.DataFrame], table: str = "t1") -> pd.DataFrame:
    """Return ``paper_comparison`` of rows of a summary table and the runs behind their labels."""
    ours = ours.assign(method=ours["detector"].replace(SAME_METHOD))[[*_OURS, "method"]]
    theirs = published(table).rename(columns={"value": "published", "sd": "published_sd"})
    theirs = theirs[(theirs["metric"] == "auroc") & theirs["dataset"].isin(set(ours["dataset"]))]
    both = theirs[_THEIRS].merge(ours[ours["dataset"].isin(set(theirs["dataset"]))], "outer", ["dataset", "method"])
    both["differs"] = [_differs(runs.get(label), "") for label in both["label"]]
    both["label"] = both["label"].fillna(both["method"])
    for end in ("", "_low", "_high"):
        both[f"difference{end}"] = both[f"auroc{end}"] - both["published"]
    return both.sort_values(["dataset", "published"], ascending=[True, False], ignore_index=True)
