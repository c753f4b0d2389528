"""The views of a few images as they enter the loss, and what each pair of them is for (Eq. 5, Fig. 3)."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import torch

from diawork import figures
from diawork.base.config import ExperimentConfig, K, LossConfig
from diawork.base.errors import DataError, UsageError
from diawork.data.images import ImageSet
from diawork.method.loss import pair_roles
from diawork.method.views import SHIFT_NAMES, BranchBuilder, Views
from diawork.widgets.shown import WIDE, Shown

MASKS = {"naive": "naive (Eq. 6)", "shifted_removed": "shifted_removed"}
MOST = 4  # images in the batch: more tiles than this cannot be told apart
_ROLES = {figures.EXCLUDED: "excluded", figures.POSITIVE: "positive", figures.NEGATIVE: "negative"}


class ViewsExplorer:
    """Draw the 3K views of a batch anew with every seed, and name any pair of the target similarity matrix.

    ``widget`` is the live face, ``still()`` the same picture as a figure. ``dissolve`` is any occupant of
    the slot; without one there are CSI's 2K views.
    """

    def __init__(
        self, images: ImageSet, cfg: ExperimentConfig | None = None, dissolve: Any = None, *, batch: int = 2,
        first: int = 0, seed: int = 0, shifts: int = K, mask: str = "", pair: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        cfg = cfg or ExperimentConfig()
        if not len(images):
            raise UsageError("a views explorer needs at least one image.")
        self.images, self.shift = images, cfg.views.shift
        self._build_views = BranchBuilder(cfg.views, dissolve)
        self.batch, self.first, self.seed, self.shifts = batch, first, seed, shifts
        self.mask = LossConfig(mask=mask or cfg.loss.mask).mask
        self._kept: tuple[tuple, Views] | None = None
        self.pair = pair
        self._widget: ipywidgets.Widget | None = None

    # --- what is shown ---------------------------------------------------------------------------------

    def views(self) -> Views:
        """Return the views of the chosen images at the chosen seed and shifts."""
        n = len(self.images)
        if not (1 <= self.batch <= MOST and 1 <= self.shifts <= K and 0 <= self.first <= n - self.batch):
            raise DataError(
                f"{self.batch} images from {self.first} on with {self.shifts} shifts: there are {n} images, at most "
                f"{MOST} are shown, and {K} shifts."
            )
        chosen = (self.first, self.batch, self.seed)
        if self._kept is None or self._kept[0] != chosen:
            rows = torch.arange(self.first, self.first + self.batch)
            self._kept = (chosen, self._build_views(self.images.images[rows], index=rows, seed=self.seed, step=0))
        views = self._kept[1]
        keep = views.shift < self.shifts
        return Views(*(value[keep.to(value.device)] for value in vars(views).values()))

    def roles(self) -> np.ndarray:
        """Return the target similarity matrix (R, R): ``figures.EXCLUDED``, ``POSITIVE`` or ``NEGATIVE``."""
        views = self.views()
        return pair_roles(views.image, views.shift, views.branch, mask=self.mask).numpy()

    def names(self) -> list[str]:
        """Return what each row of the matrix is, e.g. "image 0 · O · 90°"."""
        views, shifts = self.views(), SHIFT_NAMES[self.shift]
        parts = zip(views.image.tolist(), views.branch.tolist(), views.shift.tolist(), strict=True)
        return [f"image {i} · {figures.BRANCHES[b]} · {shifts[k]}" for i, b, k in parts]

    def cell(self) -> tuple[int, int]:
        """Return the picked cell (row, column); unless picked, the first anchor and its positive."""
        rows = (self.batch * self.shifts) * (3 if self._build_views.dissolve else 2)
        row, column = self.pair or (0, self.batch * self.shifts)
        if not (0 <= row < rows and 0 <= column < rows):
            raise UsageError(f"the pair ({row}, {column}) is outside the {rows} × {rows} matrix.")
        return row, column

    def sentence(self) -> str:
        """Return the picked pair in words, its role, and why."""
        views, (row, column) = self.views(), self.cell()
        role, shifts = int(self.roles()[row, column]), SHIFT_NAMES[self.shift]

        def name(r: int) -> str:
            branch = figures.BRANCHES[int(views.branch[r])]
            return f"image {int(views.image[r])}, shift {shifts[int(views.shift[r])]}, branch {branch}"

        return f"{name(row)}  ×  {name(column)}:\n{_ROLES[role]}, {self._why(views, role)}"

    def _why(self, views: Views, role: int) -> str:
        row, column = self.cell()
        dissolved = [int(views.branch[r]) == 2 for r in (row, column)]
        if role == figures.POSITIVE:
            return "pulled together: the same image and shift, drawn twice"
        if role == figures.NEGATIVE:
            return "pushed apart: " + ("the other view is dissolved" if dissolved[1] else "another image or shift")
        if dissolved[0]:
            return "because a dissolved view is never an anchor"
        return "because it is the same view" if row == column else "by the mask: the anchor's own dissolved twin"

    def still(self) -> figures.Figure:
        """Return the picture of the present choice."""
        views = self.views()
        arrays = [value.cpu().numpy() for value in (views.images, views.image, views.shift, views.branch)]
        pairs = figures.Pairs(*arrays, self.roles(), SHIFT_NAMES[self.shift])
        return figures.pair_figure(pairs, self.cell(), self.sentence())

    # --- the live face ---------------------------------------------------------------------------------

    @property
    def widget(self) -> ipywidgets.Widget:
        """The explorer as a widget: seed, batch, shifts, mask, the two pickers of a pair, picture, message."""
        if self._widget is None:
            self._widget = self._build()
            self._shown.show(self.still)
        return self._widget

    def _build(self) -> ipywidgets.Widget:
        w, n = ipywidgets, len(self.images)
        self._seeds = w.BoundedIntText(value=self.seed, max=2**31 - 1, description="seed", layout={"width": "170px"})
        self._firsts = w.IntSlider(value=self.first, max=n - self.batch, description="first image", style=WIDE)
        self._batches = w.IntSlider(value=self.batch, min=1, max=min(MOST, n), description="images", style=WIDE)
        self._counts = w.IntSlider(value=self.shifts, min=1, max=K, description="shifts K", style=WIDE)
        self._masks = w.Dropdown(
            options=[(words, mask) for mask, words in MASKS.items()], value=self.mask, description="mask"
        )
        options = [(name, i) for i, name in enumerate(self.names())]
        wide = {"layout": {"width": "100%", "max_width": "640px"}, "style": WIDE}
        row, column = self.cell()
        self._rows = w.SelectionSlider(options=options, value=row, description="anchor (row)", **wide)
        self._columns = w.SelectionSlider(options=options, value=column, description="compared with (column)", **wide)
        self._shown = Shown("these views")
        self._own = (self._seeds, self._firsts, self._batches, self._counts, self._masks)
        for control in (*self._own, self._rows, self._columns):
            control.observe(self._changed, "value")
        return w.VBox([
            w.HBox(list(self._own), layout={"flex_flow": "row wrap"}), self._rows, self._columns, self._shown.box,
        ])  # fmt: skip

    def _changed(self, change: Any) -> None:
        """Take over what the user picked; another number of views starts at the first positive pair again."""
        if getattr(self, "_settling", False):
            return
        self._settling = True
        try:
            self._take_over(change.owner)
        finally:
            self._settling = False
        self._shown.show(self.still)

    def _take_over(self, owner: Any) -> None:
        self.seed, self.batch, self.shifts = self._seeds.value, self._batches.value, self._counts.value
        self.mask = self._masks.value
        if owner is self._batches:
            self._firsts.max = len(self.images) - self.batch
        self.first = self._firsts.value
        if owner in (self._batches, self._counts):
            self.pair = None
            options = [(name, i) for i, name in enumerate(self.names())]
            for control, value in zip((self._rows, self._columns), self.cell(), strict=True):
                control.options, control.value = options, value
        self.pair = (self._rows.value, self._columns.value)
