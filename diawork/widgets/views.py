"""The views of a few images as they enter the loss, and what each pair of them is for (Eq. 5, Fig. 3)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import ipywidgets as w
import numpy as np
import torch

from diawork import figures
from diawork.base.config import ExperimentConfig, K, LossConfig
from diawork.base.errors import DataError, UsageError
from diawork.data.images import ImageSet
from diawork.method.loss import pair_roles
from diawork.method.views import SHIFT_NAMES, BranchBuilder, Views
from diawork.widgets.controls import BROAD, WIDE, Explorer, menu, number, offer, row

MASKS = {"naive": "naive (Eq. 6)", "shifted_removed": "shifted_removed"}
MOST = 4  # images in the batch: more tiles than this cannot be told apart


class ViewsExplorer(Explorer):
    """Draw the 3K views of a batch anew with every seed, and name any pair of the target similarity matrix.

    ``widget`` is the live face, ``still()`` the same picture as a figure. ``dissolve`` is any operator;
    without one there are CSI's 2K views.
    """

    def __init__(
        self, images: ImageSet, cfg: ExperimentConfig | None = None, dissolve: Any = None, *, batch: int = 2,
        first: int = 0, seed: int = 0, shifts: int = K, mask: str = "", pair: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        cfg = cfg or ExperimentConfig()
        if not len(images):
            raise UsageError("a views explorer needs at least one image.")
        self.images, self.shift = images, cfg.views.shift
        self.builder = BranchBuilder(cfg.views, dissolve)
        self.batch, self.first, self.seed, self.shifts = batch, first, seed, shifts
        self.mask = LossConfig.model_validate({"mask": mask or cfg.loss.mask}).mask
        self._drawn = lru_cache(1)(self._draw_views)
        self.pair = pair

    # --- what is shown ---------------------------------------------------------------------------------

    def views(self) -> Views:
        """Return the views of the chosen images at the chosen seed and shifts."""
        n = len(self.images)
        if not (1 <= self.batch <= MOST and 1 <= self.shifts <= K and 0 <= self.first <= n - self.batch):
            raise DataError(
                f"{self.batch} images from {self.first} on with {self.shifts} shifts: there are {n} images, at most "
                f"{MOST} are shown, and {K} shifts."
            )
        views = self._drawn(tuple(range(self.first, self.first + self.batch)), self.seed)
        keep = views.shift < self.shifts
        return Views(*(value[keep.to(value.device)] for value in vars(views).values()))

    def _draw_views(self, rows: tuple[int, ...], seed: int) -> Views:
        index = torch.tensor(rows)
        return self.builder(self.images.images[index], index=index, seed=seed, step=0)

    def roles(self) -> np.ndarray:
        """Return the target similarity matrix (R, R): ``figures.EXCLUDED``, ``POSITIVE`` or ``NEGATIVE``."""
        views = self.views()
        return pair_roles(views.image, views.shift, views.branch, mask=self.mask).numpy()

    def names(self) -> list[str]:
        """Return what each row of the matrix is, e.g. "image 0, shift 90°, branch O"."""
        views, shifts = self.views(), SHIFT_NAMES[self.shift]
        parts = zip(views.image.tolist(), views.shift.tolist(), views.branch.tolist(), strict=True)
        return [f"image {i}, shift {shifts[k]}, branch {figures.BRANCHES[b]}" for i, k, b in parts]

    def cell(self) -> tuple[int, int]:
        """Return the picked cell (row, column); unless picked, the first anchor and its positive."""
        rows = (self.batch * self.shifts) * (3 if self.builder.dissolve else 2)
        pair = self.pair or (0, self.batch * self.shifts)
        if not all(0 <= i < rows for i in pair):
            raise UsageError(f"the pair {pair} is outside the {rows} × {rows} matrix.")
        return pair

    def sentence(self) -> str:
        """Return the picked pair in words, its role, and why."""
        (i, j), names, branch = self.cell(), self.names(), self.views().branch
        role, dissolved = int(self.roles()[i, j]), branch == 2
        if role == figures.POSITIVE:
            why = "positive, pulled together: the same image and shift, drawn twice"
        elif role == figures.NEGATIVE:
            reason = "the other view is dissolved" if dissolved[j] else "another image or shift"
            why = f"negative, pushed apart: {reason}"
        elif dissolved[i]:
            why = "excluded, because a dissolved view is never an anchor"
        elif i == j:
            why = "excluded, because it is the same view"
        else:
            why = "excluded, by the mask: the anchor's own dissolved twin"
        return f"{names[i]}  ×  {names[j]}:\n{why}"

    def still(self) -> figures.Figure:
        """Return the picture of the present choice."""
        views = self.views()
        tensors = (views.images, views.image, views.shift, views.branch)
        images, image, shift, branch = (tensor.cpu().numpy() for tensor in tensors)
        pairs = figures.Pairs(images, image, shift, branch, self.roles(), SHIFT_NAMES[self.shift])
        return figures.pair_figure(pairs, self.cell(), self.sentence())

    # --- the live face ---------------------------------------------------------------------------------

    def _build(self) -> list[w.Widget]:
        n, (at, other) = len(self.images), self.cell()
        seeds = w.BoundedIntText(value=self.seed, max=2**31 - 1, description="seed", layout={"width": "170px"})
        choices = {
            "seed": seeds,
            "first": number("first image", self.first, high=n - self.batch, live=True),
            "batch": number("images", self.batch, low=1, high=min(MOST, n), live=True),
            "shifts": number("shifts K", self.shifts, low=1, high=K, live=True),
            "mask": menu("mask", [(words, mask) for mask, words in MASKS.items()], self.mask),
        }
        look = {"options": self._options(), "style": WIDE, "layout": BROAD, "readout": False}  # the sentence says it
        pair = {
            "row": w.SelectionSlider(value=at, description="anchor (row)", **look),
            "column": w.SelectionSlider(value=other, description="compared with (column)", **look),
        }
        self.controls = {**choices, **pair}
        return [row(*choices.values()), *pair.values()]

    def idle(self) -> set[str]:
        """Return what changes nothing: without dissolved views there is no twin for the mask to leave out."""
        return set() if self.builder.dissolve else {"mask"}

    def _options(self) -> list[tuple[str, int]]:
        return [(name, i) for i, name in enumerate(self.names())]

    def _follow(self, name: str) -> None:
        """Take over what was picked; another number of views starts at the first positive pair again."""
        self._take_over("seed", "batch", "shifts", "mask")
        self.controls["first"].max = len(self.images) - self.batch
        self._take_over("first")
        rows, columns = self.controls["row"], self.controls["column"]
        if name in ("batch", "shifts"):
            self.pair = None
            for control, value in zip((rows, columns), self.cell(), strict=True):
                offer(control, self._options(), value)
        self.pair = (rows.value, columns.value)
