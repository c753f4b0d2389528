"""Charts of losses, scores and tables; scores are "higher = more anomalous" on every axis.

Whatever names detectors takes the ``styles`` of its page; without them it makes those of its own names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from diawork.base.errors import UsageError
from diawork.evaluation.metrics import auroc, by_class, finite
from diawork.figures.images import ACCENT, INK, SOFT, new_figure, show, styled, word
from diawork.figures.styles import Styles, styles_of

HEALTHY, ANOMALOUS = "#8a94a3", "#C1440E"
EXCLUDED, POSITIVE, NEGATIVE = 0, 1, 2  # codes of ``similarity_matrix``
PAIR_COLORS = {"excluded": "#e9ecef", "positive": "#0072B2", "negative": "#F2B77C"}
SCORE_AXIS = "score (higher = more anomalous)"


def draw_pairs(ax: Any, matrix: np.ndarray, block: int | None = None, **legend: Any) -> Any:
    """Draw codes or similarities of pairs (R, R), white between cells, a rule after every ``block`` rows.

    Codes are explained in a ``legend`` of these settings.
    """
    n = len(matrix)
    if np.issubdtype(matrix.dtype, np.floating):
        drawn = show(ax, matrix, cmap="RdBu_r", vmin=-1)
    else:
        drawn = show(ax, matrix, cmap=ListedColormap([*PAIR_COLORS.values()]), vmin=-0.5, vmax=2.5)
        ax.legend(handles=[Patch(color=color, label=name) for name, color in PAIR_COLORS.items()], **legend)
    edges = [(edge, "white", 0.6) for edge in range(1, n) if n <= 48]
    for edge, color, width in edges + [(edge, INK, 1.2) for edge in range(block or n, n, block or n)]:
        ax.axhline(edge - 0.5, color=color, lw=width)
        ax.axvline(edge - 0.5, color=color, lw=width)
    return drawn


@styled
def similarity_matrix(matrix: np.ndarray, labels: Sequence[str] | None = None, *, block: int | None = None) -> Figure:
    """Return the paper's Fig. 3: pairs (3BK, 3BK) coloured by their part in the loss, or by similarity.

    Integer codes are ``EXCLUDED``, ``POSITIVE``, ``NEGATIVE``; floating values are cosine similarities.
    ``block`` rules a line after every branch of that many rows.
    """
    matrix = np.asarray(matrix)
    n, side = len(matrix), 2.4 + min(0.2 * len(matrix), 4.5)
    figure, ((ax,),) = new_figure(side + 1.1, side)
    drawn = draw_pairs(ax, matrix, block, loc="upper left", bbox_to_anchor=(1, 1))
    if np.issubdtype(matrix.dtype, np.floating):
        figure.colorbar(drawn, ax=ax, shrink=0.7, label="cosine similarity")
    if labels is not None:
        ax.set_xticks(range(n), labels, rotation=90, fontsize=7)
        ax.set_yticks(range(n), labels, fontsize=7)
        ax.tick_params(length=0)
    return figure


STAGES = {"ddpm": "diffusion model", "train": "detector"}  # words for the stages of a run's metrics


@styled
def loss_curve(metrics: Any, *, smooth: float = 0.9, styles: Styles | None = None) -> Figure:
    """Return the loss against the step, a panel a stage: raw values faint, their running mean on top.

    ``metrics`` is the rows of one run's metrics (a frame or a list of dicts), or a dict of detector name
    to a list of such runs (one a seed), coloured by detector.
    """
    runs = metrics if isinstance(metrics, Mapping) else {"": [metrics]}
    frames = [(name, pd.DataFrame(rows)) for name, group in runs.items() for rows in group]
    frames = [(name, f[f["loss"].notna()]) for name, f in frames if {"loss", "step", "stage"} <= set(f.columns)]
    stages = sorted({stage for _, f in frames for stage in f["stage"].unique()})
    if not stages:
        raise UsageError("no row of these metrics holds stage, step and loss.")
    figure, axes = new_figure(4.4 * len(stages) + (2.4 if any(runs) else 0), 2.9, 1, len(stages))
    looks = styles or styles_of(runs)
    for ax, stage in zip(axes[0], stages, strict=True):
        for name, rows in frames:
            color = looks[name]["color"] if name else INK
            rows = rows[rows["stage"] == stage]
            ax.plot(rows["step"], rows["loss"], color=color, alpha=0.2, lw=0.8)
            mean = rows["loss"].ewm(alpha=1 - smooth).mean()
            ax.plot(rows["step"], mean, color=color, lw=1.3, label=word(name))
        ax.set(xlabel="step", ylabel="loss", title=STAGES.get(stage, word(stage)))
    if any(runs):
        handles, names = axes[0, -1].get_legend_handles_labels()
        one_each = dict(zip(names, handles, strict=True))
        figure.legend(one_each.values(), one_each, loc="outside right center")
    return figure


def _histogram(ax: Any, scores: np.ndarray, anomalous: np.ndarray, threshold: float | None) -> None:
    scores, anomalous = finite(scores), np.asarray(anomalous, bool)
    low, high = np.quantile(scores, [0.005, 0.995])
    pad = 0.5 if high == low else 0.0
    truth = np.where(anomalous, "anomalous", "healthy")
    palette = {"healthy": HEALTHY, "anomalous": ANOMALOUS}
    look = {"palette": palette, "hue_order": list(palette), "element": "step", "alpha": 0.35, "legend": False}
    bins = np.linspace(low - pad, high + pad, 31)
    sns.histplot(x=np.clip(scores, low, high), hue=truth, bins=bins, stat="density", common_norm=False, ax=ax, **look)
    if threshold is not None:
        ax.axvline(np.clip(threshold, low, high), color=INK, lw=1, ls="--")
    ax.set(xlabel=SCORE_AXIS, ylabel="density", yticks=[])


@styled
def score_histogram(scores: Any, anomalous: Any = None, *, threshold: Any = None, columns: int = 3) -> Figure:
    """Return the scores of healthy and anomalous images, each group's area 1; the end bins hold what lies beyond.

    Either ``scores`` and ``anomalous`` (N,), or a dict of detector name to that pair, a panel each
    (``threshold`` then is a dict too).
    """
    groups = scores if isinstance(scores, Mapping) else {"": (scores, anomalous)}
    limits = threshold if isinstance(threshold, Mapping) else {"": threshold}
    columns = min(columns, max(len(groups), 1))
    rows = max(-(-len(groups) // columns), 1)
    width = max(3.3 * columns + 0.4, 5.6)  # the legend's, where one panel is narrower
    figure, axes = new_figure(width, 2.2 * rows + 0.35, rows, columns)
    for ax in axes.flat[len(groups) :]:
        ax.axis("off")
    for ax, (name, (values, truth)) in zip(axes.flat, groups.items(), strict=False):
        _histogram(ax, values, truth, limits.get(name))
        ax.set_title(word(name))
    handles: list[Any] = [
        Patch(color=c, alpha=0.5, label=k) for k, c in (("healthy", HEALTHY), ("anomalous", ANOMALOUS))
    ]
    if any(limit is not None for limit in limits.values()):
        handles.append(Line2D([], [], color=INK, ls="--", lw=1, label="threshold from healthy validation images"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _roc_points(scores: Any, anomalous: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates at every threshold, ties taken together: (M,), (M,)."""
    groups = by_class(scores, anomalous)
    thresholds = np.append(np.inf, np.unique(np.concatenate(groups))[::-1])
    true, false = (1 - np.searchsorted(np.sort(group), thresholds) / len(group) for group in groups)
    return false, true


def _line_look(style: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in style.items() if key != "hatch"}


@styled
def roc(curves: Mapping[str, Sequence[tuple]], *, title: str = "", styles: Styles | None = None) -> Figure:
    """Return mean ROC curves with a band of one sd over seeds; ``curves`` is name -> [(scores, anomalous), …]."""
    figure, axes = new_figure(7.6, 3.9)
    ax, grid = axes[0, 0], np.linspace(0, 1, 401)
    ax.plot([0, 1], [0, 1], color="#c9ced6", lw=1, zorder=0)
    looks, lines = styles or styles_of(curves), []
    for name, seeds in curves.items():
        points = [_roc_points(*seed) for seed in seeds]
        areas = np.array([auroc(*seed) for seed in seeds])
        heights = np.array([np.interp(grid, fpr, tpr) for fpr, tpr in points])
        heights[:, 0] = 0
        lines.append((areas.mean(), areas.std(ddof=1) if len(areas) > 1 else None, name, heights))
    for area, spread, name, heights in sorted(lines, key=lambda line: -line[0]):
        style = _line_look(looks[name])
        mean, half = heights.mean(0), heights.std(0, ddof=min(1, len(heights) - 1))
        number = f"{area:.3f}" if spread is None else f"{area:.3f} ± {spread:.3f}"
        ax.plot(grid, mean, lw=1.7, label=f"{number}  {word(name)}", **style)
        ax.fill_between(grid, *np.clip([mean - half, mean + half], 0, 1), color=style["color"], alpha=0.15, lw=0)
    ax.set(xlabel="healthy called anomalous (FPR)", ylabel="anomalous found (TPR)", aspect="equal")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), title=word(title))
    figure.legend(title="AUROC (score: higher = more anomalous)", loc="outside right center")
    return figure


@styled
def ablation_bars(
    table: pd.DataFrame, *, label: str = "", value: str = "auroc", styles: Styles | None = None
) -> Figure:
    """Return a bar a row from chance (0.5) to its value, with the interval ``value_low`` to ``value_high``.

    Rows are named by the column ``label`` (by default that of this name, else the detector). A column
    ``published`` adds a diamond at the paper's number.
    """
    table = pd.DataFrame(table).reset_index(drop=True)
    label = label or ("label" if "label" in table else "detector")
    figure, axes = new_figure(7.0, 0.34 * len(table) + 1.0)
    ax = axes[0, 0]
    names = [str(name) for name in table[next(key for key in ("label", "detector", label) if key in table)]]
    looks = styles or styles_of(names)
    for i, row in table.iterrows():
        style = looks[names[i]]
        ax.barh(i, row[value] - 0.5, left=0.5, height=0.62, color=style["color"], alpha=0.85,
                hatch=style["hatch"] or None, edgecolor="white" if style["hatch"] else "none")  # fmt: skip
        low, high = row.get(f"{value}_low", np.nan), row.get(f"{value}_high", np.nan)
        ax.plot([low, high], [i, i], color=INK, lw=1.4)
        ax.text(1.005, i, f"{row[value]:.3f}", transform=ax.get_yaxis_transform(), va="center", fontsize=8.5)
    if "published" in table and table["published"].notna().any():
        ax.plot(table["published"], table.index, "D", color="white", mec=INK, ms=5.5, label="published")
        figure.legend(loc="outside upper right")
    ax.axvline(0.5, color=SOFT, lw=1)
    ax.set_yticks(range(len(table)), [word(v) for v in table[label]])
    ax.set(xlabel=f"{value.upper()} on images never seen (0.5 = chance; line: 95 % interval)")
    ax.invert_yaxis()
    return figure


@styled
def cost_bars(rows: Sequence[Mapping[str, Any]], *, value: str, label: str, title: str = "") -> Figure:
    """Return one bar a row, e.g. ``value="ratio"`` over ``label="stage"``; the number stands at the bar's end.

    Where the largest is over 100 times the smallest, the axis is logarithmic.
    """
    figure, ((ax,),) = new_figure(7.2, 0.34 * len(rows) + 0.8)
    values = [float(row[value] or 0) for row in rows]
    bars = ax.barh([str(row[label]) for row in rows], values, color=ACCENT, height=0.7)
    ax.bar_label(bars, fmt=" %.3g", fontsize=8)
    ax.invert_yaxis()
    if min(values, default=0) > 0 and max(values) > 100 * min(values):
        ax.set_xscale("log")
    ax.set(xlabel=value.replace("_", " "), title=title)
    return figure


@styled
def auroc_curves(
    series: Mapping[str, Sequence[tuple]], levels: Mapping[str, float], *, xlabel: str, split: str = "test",
    styles: Styles | None = None,
) -> Figure:  # fmt: skip
    """Return AUROC on a split against one setting: ``series`` is name -> [(x, mean, sd)], ``levels`` what has no x.

    An x is a number or a range (low, high); ranges are drawn from end to end, and not joined by a line. The axis
    starts below the lowest point: a level further down stands in the legend alone.
    """
    figure, ((ax,),) = new_figure(7.8, 3.9)
    looks = styles or styles_of([*series, *levels])
    lowest = min((mean - np.nan_to_num(sd) for points in series.values() for _, mean, sd in points), default=0.0)
    bottom = math.floor(20 * (lowest - 0.02)) / 20  # 0.02 below, on a twentieth
    for name, points in series.items():
        points = sorted(points, key=lambda point: np.mean(point[0]))
        low, high = np.array([np.broadcast_to(x, 2) for x, _, _ in points], float).T
        mean, sd = np.array([point[1:] for point in points], float).T
        reach = np.where(high > low, (high - low) / 2, np.nan)  # nan: no bar
        look = _line_look(looks[name]) | ({"linestyle": "none"} if (high > low).any() else {})
        ax.errorbar((low + high) / 2, mean, np.nan_to_num(sd), reach, marker="o", ms=4, lw=1.6, capsize=3,
                    label=word(name), **look)  # fmt: skip
    for name, value in levels.items():
        below = ", below the axis" if value < bottom else ""
        ax.axhline(value, lw=1.2, alpha=0.8, label=f"{word(name)}: {value:.3f}{below}", **_line_look(looks[name]))
    ax.set(xlabel=word(xlabel), ylabel=f"{split} AUROC (0.5 = chance)")
    if any(value < bottom for value in levels.values()):
        ax.set_ylim(bottom=bottom)
    figure.legend(loc="outside right upper")
    return figure
