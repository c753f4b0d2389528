"""Figures made of images: strips and grids, and the style that all figures share.

Every function returns a ``Figure`` of its own and leaves pyplot's global state alone. Grey images are
shown from 0 to 1, pixel for pixel, without axes; differences diverge around 0 with a colour bar.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

from diawork.base.errors import UsageError, printable

INK, SOFT, ACCENT = "#1d2227", "#5b6470", "#0072B2"
STEP_LABEL = "dissolving step t"  # on every axis that t runs along
FIGURE_STEPS = (50, 100, 200, 400)  # of the paper's Fig. 1
STYLE: dict[Any, Any] = {  # over matplotlib's own defaults: what a user's matplotlibrc says moves no figure of ours
    **{key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")},
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": SOFT, "axes.labelcolor": INK, "xtick.color": SOFT,
    "ytick.color": SOFT, "text.color": INK, "legend.frameon": False, "legend.fontsize": 8.5,
    "hatch.linewidth": 0.6, "figure.facecolor": "white",
}  # fmt: skip
styled = matplotlib.rc_context(STYLE)  # as a decorator it is entered anew at every call


class Picture(Figure):
    """A figure that shows itself in a notebook even where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        return png_bytes(self, dpi=110)


@styled
def png_bytes(figure: Figure, dpi: int = 130, *, maker: str | None = None) -> bytes:
    """Return the figure as PNG bytes on a white ground; ``maker`` stands in the file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": maker})
    return buffer.getvalue()


def word(text: object) -> str:
    """Return text that a figure shows as it is: no formulas between dollars, no unprintable characters."""
    return printable(text, keep="\n").replace("$", r"\$")


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """Return a figure of its own and its axes (rows, columns)."""
    figure = Picture(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def channels_last(image: np.ndarray) -> np.ndarray:
    """Return (H, W), (1, H, W), (3, H, W) or (H, W, 3) as (H, W) or (H, W, 3)."""
    image = np.asarray(image, np.float32)
    if image.ndim == 3 and image.shape[-1] != 3:
        image = np.moveaxis(image, 0, -1)
    return image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image


def grey(image: np.ndarray) -> np.ndarray:
    """Return an image as (H, W), colours averaged."""
    image = channels_last(image)
    return image if image.ndim == 2 else image.mean(-1)


def show(ax: Any, image: np.ndarray, **kw: Any) -> Any:
    """Draw an array pixel for pixel, no axis (its label stays); grey from 0 to 1 unless told otherwise."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.imshow(image, **({"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"} | kw))


def show_image(ax: Any, image: np.ndarray) -> Any:
    """Draw an image in [0, 1], grey or in colour."""
    return show(ax, np.clip(channels_last(image), 0, 1))


def show_change(ax: Any, change: np.ndarray, limit: float) -> Any:
    """Draw a signed difference, diverging around 0: red is added, blue removed."""
    return show(ax, grey(change), cmap="RdBu_r", vmin=-limit, vmax=limit)


def change_limit(change: np.ndarray) -> float:
    """Return a symmetric colour limit that a few extreme pixels do not stretch."""
    return max(float(np.quantile(np.abs(change), 0.995)), 0.02)


@styled
def image_grid(images: Any, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Return images (N, H, W) or (N, C, H, W) in rows of ``columns``, each under its title."""
    n = len(images)
    if n == 0:
        raise UsageError("there is no image to show.")
    columns, high = min(columns, n), 1.2 if titles is not None else 1.0
    rows = -(-n // columns)
    figure, ((ax,),) = new_figure(1.25 * columns, 1.25 * high * rows)  # one for all: an axis an image takes minutes
    for i, image in enumerate(map(channels_last, images)):
        row, column = divmod(i, columns)
        height, width = 0.47 * np.array(image.shape[:2]) / max(image.shape[:2])
        middle = (row + 1) * high - 0.5
        extent = (column + 0.5 - width, column + 0.5 + width, middle + height, middle - height)
        show(ax, image.clip(0, 1), extent=extent)
        if titles is not None and i < len(titles):
            ax.text(column + 0.5, middle - 0.5, word(titles[i]), fontsize=8, ha="center", va="bottom")
    ax.set(xlim=(0, columns), ylim=(rows * high, 0), position=(0, 0, 1, 1))
    figure.set_layout_engine("none")  # there is nothing to lay out
    return figure


@styled
def dissolve_strip(
    strip: np.ndarray, ts: Sequence[int | str], row_labels: Sequence[str] | None = None, *, difference: bool = False
) -> Figure:
    """Return the paper's Fig. 1: ``strip`` (n, T+1, H, W), a row an image: the input, then one a step.

    A step may be a word, of a column that is no step. With ``difference`` every row is followed by what changed,
    dissolved minus input, centred at 0.
    """
    strip = np.asarray(strip, np.float32)
    if strip.ndim < 4 or strip.shape[1] != len(ts) + 1 or strip.size == 0:
        raise UsageError(f"strip {strip.shape} does not hold the input and {len(ts)} steps in each row.")
    n, per = len(strip), 2 if difference else 1
    limit = change_limit(strip[:, 1:] - strip[:, :1])
    width = 1.3 * (len(ts) + 1) + (1.3 if difference else 0.4)
    figure, axes = new_figure(width, 1.3 * n * per + 0.45, n * per, len(ts) + 1)
    for r, c in np.ndindex(n, len(ts) + 1):
        show_image(axes[r * per, c], strip[r, c])
        if difference:
            drawn = show_change(axes[r * per + 1, c], strip[r, c] - strip[r, 0], limit)
    for ax, title in zip(axes[0], ["input", *(t if isinstance(t, str) else f"t = {t}" for t in ts)], strict=True):
        ax.set_title(title)
    figure.suptitle(f"{STEP_LABEL} →", fontsize=9.5, x=0.5 + 0.5 / (len(ts) + 1))
    for r, label in enumerate(row_labels if row_labels is not None else ()):
        axes[r * per, 0].set_ylabel(word(label), fontsize=8.5)
    if difference:
        figure.colorbar(drawn, ax=list(axes.flat), shrink=0.6, pad=0.01, aspect=30, label="dissolved − input")
    return figure


@styled
def views_grid(views: Sequence, row_labels: Sequence[str] = ("O", "O′", "A"), *, title: str = "") -> Figure:
    """Return the views of one image as they enter the loss: (branches, K, H, W), branch by shift (Eq. 5)."""
    branches, shifts = len(views), len(views[0])
    figure, axes = new_figure(1.4 * shifts + 0.4, 1.4 * branches + 0.5, branches, shifts)
    for b, k in np.ndindex(branches, shifts):
        show_image(axes[b, k], views[b][k])
        axes[0, k].set_title(f"shift {k}")
    for ax, label in zip(axes[:, 0], row_labels, strict=False):
        ax.set_ylabel(label, rotation=0, labelpad=10, fontsize=10, va="center")
    figure.suptitle(title or "views of one image: branch × shift", fontsize=9.5)
    return figure


@styled
def nearest_neighbours(errors_images: Any, errors_nearest: Any, scores: Any, labels: Any) -> Figure:
    """Return wrongly ranked images (e, H, W) above the healthy training image nearest to each.

    ``labels`` are words, or booleans that say which images are anomalous.
    """
    e = len(errors_images)
    if not e or len({e, len(errors_nearest), len(scores), len(labels)}) > 1:
        raise UsageError("errors need as many images as neighbours, scores and labels, and at least one.")
    words = [label if isinstance(label, str) else ("healthy", "anomalous")[int(label)] for label in labels]
    figure, axes = new_figure(1.35 * e + 0.5, 3.5, 2, e)
    for i in range(e):
        show_image(axes[0, i], errors_images[i])
        show_image(axes[1, i], errors_nearest[i])
        axes[0, i].set_title(f"{word(words[i])}\nscore {float(scores[i]):.3g}", fontsize=8.5)
    axes[0, 0].set_ylabel("image")
    axes[1, 0].set_ylabel("nearest healthy\ntraining image")
    figure.suptitle("worst errors (score: higher = more anomalous)", fontsize=9.5)
    return figure


def overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return (H, W, 3): an image (C, H, W) in [0, 1] under its map (H, W), from its lowest value to its highest."""
    span = max(float(np.ptp(values)), 1e-12)
    heat = (values - values.min()) / span
    colour = matplotlib.colormaps["inferno"](heat)[..., :3]
    strength = 0.65 * heat[..., None]
    return (1 - strength) * colours(image) + strength * colour


def colours(image: np.ndarray) -> np.ndarray:
    """Return an image, grey or in colour, as (H, W, 3) in [0, 1]."""
    image = np.clip(channels_last(image), 0, 1)
    return np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image


@styled
def pixels_png(image: np.ndarray) -> bytes:
    """Return an image (H, W, 3) in [0, 1] as PNG bytes, pixel for pixel."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.clip(image, 0, 1), format="png")
    return buffer.getvalue()


def thumbnail(png: bytes, width: int = 220) -> bytes:
    """Return a picture (PNG) at most about ``width`` wide, as PNG bytes: means over blocks of pixels."""
    image = matplotlib.image.imread(io.BytesIO(png))
    image = np.atleast_3d(image)[..., :3]
    step = -(-image.shape[1] // width)
    high, wide = (side - side % step for side in image.shape[:2])
    blocks = image[:high, :wide].reshape(high // step, step, wide // step, step, -1).mean((1, 3))
    return pixels_png(np.broadcast_to(blocks, (*blocks.shape[:2], 3)))
