"""Figures of several panels: views with their pairs, one score with its reasons, maps beside masks.

Tiles are put together into one picture before they are drawn, so that an explorer redraws at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from diawork.base.errors import UsageError
from diawork.figures import images as im
from diawork.figures.charts import ANOMALOUS, HEALTHY, PAIR_COLORS, draw_pairs

BRANCHES = ("O", "O′", "A")  # two ordinary, one dissolved
MAP_COLORS = "inferno"  # even steps of brightness, whatever the eye's colours
OUTLINE = "#56e0ff"
PART_LOOKS = {"similarity": ("#0072B2", ""), "shift": ("#E69F00", "///")}
_GAP = 2  # px between tiles
_HIGH = 2  # images above one another


@dataclass(frozen=True)
class Pairs:
    """Views (R, …) with their indices (R,), the roles (R, R) of their pairs, and the shifts' names."""

    views: np.ndarray
    image: np.ndarray
    shift: np.ndarray
    branch: np.ndarray
    roles: np.ndarray
    shift_names: Sequence[str]


def _mosaic(tiles: np.ndarray, columns: int, gap: int = _GAP) -> np.ndarray:
    """Return (H, W, 3): tiles (n, …) in rows of ``columns``, white between them."""
    images = [im.channels_last(tile) for tile in tiles]
    colour = np.stack([image if image.ndim == 3 else np.stack([image] * 3, 2) for image in images]).clip(0, 1)
    n, height, width, _ = colour.shape
    rows = -(-n // columns)
    canvas = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.float32)
    for i, tile in enumerate(colour):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return canvas


def _frame_tile(ax: Any, at: tuple[int, int], size: tuple[int, int], **look: Any) -> None:
    """Frame the tile in row and column ``at`` of a mosaic of tiles of ``size``."""
    (row, column), (height, width) = at, size
    corner = (column * (width + _GAP) - 1.2, row * (height + _GAP) - 1.2)
    ax.add_patch(Rectangle(corner, width + 1.4, height + 1.4, fill=False, clip_on=False, **look))


@im.styled
def pair_figure(pairs: Pairs, at: tuple[int, int], sentence: str = "") -> Figure:
    """Return the views as they enter the loss beside Fig. 3, with one cell of it picked out in both.

    ``at`` is (row, column) of the matrix: the anchor's tile has a solid frame, the other's a dashed one.
    """
    n = len(pairs.roles)
    if pairs.roles.shape != (n, n) or len(pairs.views) != n or not (0 <= at[0] < n and 0 <= at[1] < n):
        raise UsageError(f"cell {at} of roles {pairs.roles.shape} for {len(pairs.views)} views.")
    images, branches, shifts = (int(index.max()) + 1 for index in (pairs.image, pairs.branch, pairs.shift))
    ratio = -(-images // _HIGH) * shifts / (min(images, _HIGH) * branches)  # of the left side
    figure = im.Picture(figsize=(1.2 + 3.9 * (min(ratio, 1.4) + 1), 4.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[min(ratio, 1.4), 1.08])
    _draw_views(left, pairs, at)
    _draw_roles(right, pairs, at)
    figure.suptitle(im.word(sentence), fontsize=10)
    return figure


def _draw_views(ax: Any, pairs: Pairs, at: tuple[int, int]) -> None:
    """Draw the views of each image in a block, branch by shift; the blocks stand two high."""
    branches, shifts = int(pairs.branch.max()) + 1, int(pairs.shift.max()) + 1
    row = pairs.image % _HIGH * branches + pairs.branch
    column = pairs.image // _HIGH * shifts + pairs.shift
    rows, columns = int(row.max()) + 1, int(column.max()) + 1
    tiles = np.ones((rows * columns, *pairs.views.shape[1:]), np.float32)
    tiles[row * columns + column] = pairs.views
    im.show(ax, _mosaic(tiles, columns))
    height, width = im.channels_last(pairs.views[0]).shape[:2]
    color = list(PAIR_COLORS.values())[int(pairs.roles[at])] if pairs.roles[at] else im.INK
    for place, style in zip(at[::-1], ((0, (1.6, 0.8)), "-"), strict=True):
        _frame_tile(ax, (int(row[place]), int(column[place])), (height, width), color=color, lw=3.2, ls=style)
    for i in np.unique(pairs.image):
        corner = (i // _HIGH * shifts * (width + _GAP), i % _HIGH * branches * (height + _GAP))
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2}
        ax.text(corner[0] + 1, corner[1] + 1, f"image {i}", fontsize=7, va="top", color=im.INK, bbox=box)
    names = [BRANCHES[r % branches] for r in range(rows)]
    turns = [pairs.shift_names[c % shifts] for c in range(columns)]
    ax.set_yticks((height + _GAP) * np.arange(rows) + height / 2, names)
    ax.set_xticks((width + _GAP) * np.arange(columns) + width / 2, turns)
    ax.tick_params(length=0, labeltop=True, labelbottom=False, labelcolor=im.INK, labelsize=8.5)


def _draw_roles(ax: Any, pairs: Pairs, at: tuple[int, int]) -> None:
    """Draw the target similarity matrix, a rule after every branch, a cross through the picked cell."""
    n, branches = len(pairs.roles), int(pairs.branch.max()) + 1
    draw_pairs(ax, pairs.roles, n // branches, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3)
    row, column = at
    ax.add_patch(Rectangle((-0.5, row - 0.5), n, 1, fill=False, color=im.INK, lw=1.1, alpha=0.8))
    ax.add_patch(Rectangle((column - 0.5, -0.5), 1, n, fill=False, color=im.INK, lw=1.1, alpha=0.8))
    ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, color=im.INK, lw=2.6, clip_on=False))
    middles = n / branches * (np.arange(branches) + 0.5) - 0.5
    ax.set_xticks(middles, BRANCHES[:branches])
    ax.set_yticks(middles, BRANCHES[:branches])
    ax.tick_params(length=0, labeltop=True, labelbottom=False, labelcolor=im.INK, labelsize=10)
    ax.set_ylabel("anchor (row)")
    ax.set_title("target similarity (Fig. 3): compared with (column)")


# --- one score and its reasons --------------------------------------------------------------------------


@dataclass(frozen=True)
class Reasons:
    """What is known about one image's score; what is None is not drawn."""

    title: str
    image: np.ndarray
    nearest: np.ndarray  # healthy training image
    nearest_shift: str  # at which shift it was found
    parts: Mapping[str, np.ndarray]  # "similarity", "shift" → (K,), above the median healthy image
    shift_names: Sequence[str]
    residual: np.ndarray | None = None  # dissolved minus input
    map: np.ndarray | None = None
    map_name: str = ""
    map_limits: tuple[float, float] = (0.0, 1.0)
    mask: np.ndarray | None = None


@im.styled
def score_figure(reasons: Reasons, ranking: np.ndarray, ranks: Sequence[tuple[int, bool]], picked: int) -> Figure:
    """Return the ranking around an image above that image's score with its reasons.

    ``ranking`` (n, …) are the images around it, ``ranks`` their (rank, anomalous), ``picked`` its place there.
    """
    figure = im.Picture(figsize=(11.4, 4.7), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1, 2.35])
    top, bottom = halves
    _draw_ranking(top.subplots(), ranking, ranks, picked)
    panels = _panels(reasons)
    axes = bottom.subplots(1, len(panels) + 1, width_ratios=[*([1] * len(panels)), 1.35])
    for ax, (title, draw) in zip(axes, panels, strict=False):
        draw(ax)
        ax.set_title(title, fontsize=8)
    _draw_parts(axes[-1], reasons)
    figure.suptitle(im.word(reasons.title), fontsize=10)
    return figure


def _draw_ranking(ax: Any, ranking: np.ndarray, ranks: Sequence[tuple[int, bool]], picked: int) -> None:
    im.show(ax, _mosaic(np.asarray(ranking), len(ranking), gap=_GAP))
    height, width = im.channels_last(ranking[0]).shape[:2]
    ax.set_xticks((width + _GAP) * np.arange(len(ranks)) + width / 2, [str(rank) for rank, _ in ranks])
    ax.tick_params(length=0, pad=10)
    for i, (_, anomalous) in enumerate(ranks):
        color, corner = ANOMALOUS if anomalous else HEALTHY, (i * (width + _GAP) - 0.5, height + 0.5)
        ax.add_patch(Rectangle(corner, width, height / 10, color=color, clip_on=False))
    _frame_tile(ax, (0, picked), (height, width), color=im.INK, lw=2.6)
    handles = [Patch(color=c, label=k) for k, c in (("healthy", HEALTHY), ("anomalous", ANOMALOUS))]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.005, 0.5))
    ax.set_ylabel("rank", rotation=0, labelpad=16, va="center")


def _panels(reasons: Reasons) -> list[tuple[str, Callable[[Any], Any]]]:
    """Return (title, draw) of every panel that can be drawn."""
    r, residual, values, mask = reasons, reasons.residual, reasons.map, reasons.mask
    panels: list[tuple[str, Callable[[Any], Any]]] = [
        ("image", lambda ax: im.show_image(ax, r.image)),
        (f"nearest healthy training\nimage (at {r.nearest_shift})", lambda ax: im.show_image(ax, r.nearest)),
    ]
    if residual is not None:
        limit = im.change_limit(residual)
        panels.append(("dissolved − input\n(red: added)", lambda ax: im.show_change(ax, residual, limit)))
    if values is not None:
        title = f"anomaly map:\n{im.word(r.map_name)}"
        panels.append((title, lambda ax: _draw_map(ax, values, r.map_limits, mask)))
    if mask is not None:
        panels.append(("mask" if mask.any() else "mask (empty)", lambda ax: _draw_mask(ax, mask)))
    return panels


def _draw_map(ax: Any, values: np.ndarray, limits: tuple[float, float], mask: np.ndarray | None) -> None:
    im.show(ax, values, cmap=MAP_COLORS, vmin=limits[0], vmax=limits[1])
    if mask is not None and mask.any():
        ax.contour(np.asarray(mask, float), [0.5], colors=[OUTLINE], linewidths=1.2)


def map_limits(values: np.ndarray) -> tuple[float, float]:
    """Return the ends of a colour scale that a few extreme pixels do not stretch."""
    low, high = np.quantile(np.asarray(values, np.float32), [0.02, 0.998])
    return float(low), max(float(high), float(low) + 1e-12)


def _draw_mask(ax: Any, mask: np.ndarray) -> None:
    im.show(ax, np.asarray(mask, float))
    ax.spines[:].set(visible=True, color=im.SOFT)


def _draw_parts(ax: Any, reasons: Reasons) -> None:
    """Draw the score's parts, two bars a shift, to the right of 0 where they are more anomalous."""
    y = np.arange(len(reasons.shift_names))
    for i, (name, (color, hatch)) in enumerate(PART_LOOKS.items()):
        edge = "white" if hatch else "none"
        ax.barh(y + 0.36 * i, reasons.parts[name], 0.34, color=color, hatch=hatch, edgecolor=edge, label=name)
    ax.axvline(0, color=im.INK, lw=0.9)
    ax.set_yticks(y + 0.18, reasons.shift_names)
    ax.invert_yaxis()
    ax.set_xlabel("above the median healthy image\n(right = more anomalous)", fontsize=8)
    ax.set_title("the score's parts, shift by shift", fontsize=8.5)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=2)


@im.styled
def maps_grid(
    images: np.ndarray, masks: np.ndarray, maps: Mapping[str, np.ndarray], labels: Sequence[str] = ()
) -> Figure:
    """Return a column an image (n, H, W): image, mask, and a row for every map, the mask outlined on it.

    A map has one colour scale in all columns.
    """
    n = len(images)
    if not n or len(masks) != n or any(len(values) != n for values in maps.values()):
        raise UsageError("maps_grid needs as many masks and maps as images, and at least one.")
    figure, axes = im.new_figure(1.22 * n + 1.5, 1.24 * (2 + len(maps)) + 0.2, 2 + len(maps), n)
    for i in range(n):
        im.show_image(axes[0, i], im.grey(images[i]))
        _draw_mask(axes[1, i], masks[i])
        axes[0, i].set_title(im.word(labels[i]) if len(labels) else "", fontsize=8.5)
    for row, values in zip(axes[2:], maps.values(), strict=True):
        limits = map_limits(values)
        for i in range(n):
            _draw_map(row[i], np.asarray(values[i], np.float32), limits, masks[i])
    for ax, name in zip(axes[:, 0], ("image", "mask", *maps), strict=True):
        ax.set_ylabel(fill(im.word(name), 15), fontsize=8.5, rotation=0, ha="right", va="center", labelpad=6)
    return figure


@im.styled
def compare_maps(evidence: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Return the same images as several detectors see them, from the evidence of a run of each, by name."""
    mapped = {name: arrays for name, arrays in evidence.items() if "maps" in arrays}
    if not mapped:
        raise UsageError("none of these runs measured a map.", hint="Only runs on data with masks do.")
    same = next(iter(mapped.values()))
    maps = {name: arrays["maps"][0] for name, arrays in mapped.items()}
    return maps_grid(same["maps_images"], same["maps_masks"], maps, same["maps_label"].tolist())


@im.styled
def table_map(values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Return values (R, C) in [−1, 1] as numbers on colours that diverge around 0; a rule before the last column."""
    figure, axes = im.new_figure(2.6 + 0.74 * len(columns), 0.75 + 0.3 * len(rows))
    ax = axes[0, 0]
    im.show(ax, values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    ax.set_xticks(range(len(columns)), [fill(im.word(name), 10) for name in columns], fontsize=8)
    ax.set_yticks(range(len(rows)), [im.word(name) for name in rows])
    ax.tick_params(length=0, labelcolor=im.INK, labeltop=True, labelbottom=False)
    ax.axvline(len(columns) - 1.5, color=im.INK, lw=1.2)
    for (row, column), value in np.ndenumerate(values):
        color = "white" if abs(value) > 0.6 else im.INK
        ax.text(column, row, f"{value:+.2f}".replace("-", "−"), ha="center", va="center", color=color, fontsize=8)
    return figure
