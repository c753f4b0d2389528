"""Move ``t`` and watch what the model takes for detail: the explorer of the dissolver, and its still twins."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as w
import numpy as np

from diawork import figures
from diawork.base.compute import Compute
from diawork.base.config import DissolveConfig
from diawork.base.errors import DiaworkError, UsageError, pick
from diawork.data.datasets import load
from diawork.data.images import Splits
from diawork.data.manifests import list_manifests
from diawork.data.readers.picture import read_image
from diawork.method.ddpm import DDPM
from diawork.method.operators import Operator
from diawork.widgets.controls import DPI, WIDE, WRAP, Explorer, OwnControls, StripControls, menu, number, offer
from diawork.widgets.slots import (
    ALL,
    NOTHING,
    STEPS,
    Images,
    Stacks,
    checkpoint_slot,
    dissolving_slots,
    fit_to,
)

VIEWS = ("one image", "strip of images", "your own image or model")
OWN = "your own"
PLAYED = (10, 30, 50, 75, 100, 130, 160, 200, 300, 400, 600)  # stops of the slider that stays when the kernel is gone
_PULSE = 0.004  # s between two pictures drawn ahead, so that the kernel stays ready to answer


class DissolveExplorer(Explorer):
    """Pick data set, split, class and image, move ``t``, and put another operator beside it.

    ``sets`` name → images, or a callable that opens them; ``slots`` name → operator. ``widget`` is the live
    face; ``still()`` and ``strip()`` return the same pictures as figures.
    """

    def __init__(
        self, sets: Mapping[str, Images | Callable[[], Any]], slots: Mapping[str, Operator], *,
        ts: Sequence[int] = STEPS, dataset: str | None = None, split: str | None = None, class_name: str = ALL,
        index: int = 0, slot: str | None = None, beside: str = NOTHING, t: int = 100,
        fit: Callable[[np.ndarray], np.ndarray] | None = None, open_model: Callable[[str], Operator] | None = None,
    ) -> None:  # fmt: skip
        self.stacks = Stacks(sets, slots, ts)
        self.ts = self.stacks.ts
        self.dataset = dataset or next(iter(self.stacks.sets))
        splits = self.stacks.images(self.dataset)
        self.split = split or ("test" if "test" in splits else next(iter(splits)))
        self.class_name, self.index = class_name, index
        pick(dict.fromkeys(self.stacks.classes(self.dataset, self.split)), class_name, "class")
        self.slot, self.beside = slot or next(iter(slots)), beside
        for name in (self.slot, self.beside):
            pick({NOTHING: None, **slots}, name, "operator")
        self.t = self._nearest(t)
        self.fit, self.open_model = fit, open_model

    @classmethod
    def of(
        cls, data: Splits, ddpm: DDPM, cfg: DissolveConfig | None = None, *, data_root: Path | str | None = None,
        compute: Compute | None = None, beside: str = "", **choice: Any,
    ) -> DissolveExplorer:  # fmt: skip
        """Return the explorer of an opened data set and a model, with the alternatives beside it.

        Other data sets are opened when they are chosen, images and models of one's own when they are named.
        """
        cfg = cfg or DissolveConfig()
        sets: dict[str, Any] = {data.manifest.name: data}
        sets |= {name: partial(load, name, data_root) for name in list_manifests() if name != data.manifest.name}
        slots = dissolving_slots(ddpm, cfg, compute=compute)
        blur = next(name for name in slots if "blur" in name)
        return cls(
            sets, slots, beside=beside or blur, fit=fit_to(ddpm.config.image_size),
            open_model=partial(checkpoint_slot, like=ddpm, cfg=cfg, compute=compute), **choice,
        )  # fmt: skip

    # --- what is shown ---------------------------------------------------------------------------------

    def still(self, t: int | None = None) -> figures.Figure:
        """Return the chosen image's picture at the chosen step, or at ``t``."""
        t = self.t if t is None else t
        if t not in self.ts:
            raise UsageError(f"t={t} is not one of this explorer's steps.", hint=f"The nearest is {self._nearest(t)}.")
        return self.frames().figure(self.ts.index(t))

    def _nearest(self, t: int) -> int:
        return min(self.ts, key=lambda step: abs(step - t))

    def frame(self) -> bytes:
        """Return the same picture as PNG bytes."""
        return self.frames().png(self.ts.index(self.t))

    def fallback(self) -> dict[str, Any]:
        """Return the same picture on a slider that needs no kernel, and as it stands."""
        ats = [self.ts.index(t) for t in dict.fromkeys(map(self._nearest, PLAYED))]
        frames, labels = [self.frames().png(at) for at in ats], [self.ts[at] for at in ats]
        start = min(range(len(ats)), key=lambda i: abs(labels[i] - self.t))
        player = figures.player_html(frames, labels, figures.STEP_LABEL, start=start)
        return {"text/html": str(player)} | super().fallback()

    def strip(
        self, classes: Sequence[str] = (), n: int = 2, ts: Sequence[int] = figures.FIGURE_STEPS,
        difference: bool = False,
    ) -> figures.Figure:  # fmt: skip
        """Return the paper's Fig. 1: the first ``n`` images from ``index`` on of every class, dissolved at ``ts``."""
        known = self.stacks.classes(self.dataset, self.split)[1:]
        rows, labels = [], []
        for name in classes or known:
            pick(dict.fromkeys(known), name, "class")
            of_class = self.stacks.rows(self.dataset, self.split, name)
            first = min(self.index, max(len(of_class) - n, 0))
            rows += of_class[first : first + n].tolist()
            labels += [name] * len(of_class[first : first + n])
        if not rows:
            raise UsageError(f"there is no image in {self.split!r} for the strip.")
        x = self.stacks.x(self.dataset, self.split, rows)
        strip = np.concatenate([x[None], self.stacks.dissolved(x, ts, self.slot)]).swapaxes(0, 1)
        return figures.dissolve_strip(strip, ts, labels, difference=difference)

    def add_image(self, source: Any, *, name: str = "", window: tuple[float, float] | None = None) -> list[str]:
        """Add an image of one's own (PNG, TIFF, npy; a path or bytes), fitted to the model's size; return notes."""
        read = read_image(source, name=name, window=window)
        image = self.fit(read.image) if self.fit else read.image
        self.stacks.add(OWN, {"file": (image[None], np.array([read.name]))})
        return read.notes

    def frames(self) -> figures.DissolveFrames:
        """Return the pictures of the chosen image at all steps, each drawn when first asked for."""
        row = self.stacks.row(self.dataset, self.split, self.class_name, self.index)
        slots = (self.slot,) if self.beside in (NOTHING, self.slot) else (self.slot, self.beside)
        return self.stacks.frames(self.dataset, self.split, row, slots)

    # --- the live face ---------------------------------------------------------------------------------

    def _build(self) -> w.Widget:
        stacks, classes = self.stacks, self.stacks.classes(self.dataset, self.split)
        self._show = w.ToggleButtons(options=VIEWS, description="show", style=WIDE | {"button_width": "auto"})
        self._datasets = menu("data set", list(stacks.sets), self.dataset)
        self._splits = menu("split", list(stacks.images(self.dataset)), self.split)
        self._classes = menu("class", classes, self.class_name)
        count = len(stacks.rows(self.dataset, self.split, self.class_name))
        self._images = number("image", self.index, high=max(count - 1, 0))
        self._slots = menu("dissolver", list(stacks.slots), self.slot)
        self._besides = menu("beside it", [NOTHING, *stacks.slots], self.beside)
        self._strip, self._own = StripControls(classes[1:]), OwnControls()
        self._own.open.on_click(lambda _: self._guarded(self._take_image))
        self._own.load.on_click(lambda _: self._guarded(self._take_model))
        self._bar = w.FloatProgress(max=1, layout={"width": "100%", "height": "8px", "visibility": "hidden"})
        stacks.on_progress = self._show_progress
        images, slots = (self._datasets, self._splits, self._classes, self._images), (self._slots, self._besides)
        self._watch(self._show, *images, *slots, self._strip.classes, self._strip.n, self._strip.change)
        self._panes = [self._step_row(), self._strip.box, self._own.box]
        strip, own = self._strip, self._own
        self.controls = {
            "show": self._show, "dataset": self._datasets, "split": self._splits, "class_name": self._classes,
            "index": self._images, "slot": self._slots, "beside": self._besides, "t": self._steps, "play": self._play,
            "classes": strip.classes, "n": strip.n, "change": strip.change, "upload": own.upload, "path": own.path,
            "low": own.low, "high": own.high, "open": own.open, "model": own.model, "load": own.load,
        }  # fmt: skip
        rows = [w.HBox(row, layout=WRAP) for row in (images, slots)]
        return w.VBox([self._show, *rows, *self._panes, self._bar, self._message, self._picture])

    def _step_row(self) -> w.Widget:
        """Return play button and slider; they move each other in the browser, without the kernel."""
        self._steps = w.SelectionSlider(
            options=self.ts, value=self.t, description=figures.STEP_LABEL, style=WIDE, tooltip=figures.STEP_LABEL,
            layout={"flex": "1 1 320px", "max_width": "760px"},
        )  # fmt: skip
        self._play = w.Play(value=self.ts.index(self.t), max=len(self.ts) - 1, interval=250, tooltip="play the steps")
        self.link = w.jslink((self._play, "value"), (self._steps, "index"))
        self._watch(self._steps)
        return w.HBox([self._play, self._steps], layout={"align_items": "center"})

    # --- what the user did -------------------------------------------------------------------------------

    def _follow(self, owner: w.Widget) -> None:
        """Take over what was picked; what it makes impossible falls back to what there is."""
        if owner is self._datasets:
            dataset, owner.value = owner.value, self.dataset  # chosen once it has been opened
            splits = list(self.stacks.images(dataset))
            self.dataset = owner.value = dataset
            offer(self._splits, splits, self.split if self.split in splits else splits[-1])
        if owner in (self._datasets, self._splits):
            self.split = self._splits.value
            names = self.stacks.classes(self.dataset, self.split)
            offer(self._classes, names, self.class_name if self.class_name in names else ALL)
            offer(self._strip.classes, names[1:], names[1:])
        self.class_name = self._classes.value
        if owner in (self._datasets, self._splits, self._classes):
            self._images.value = 0
            self._images.max = max(len(self.stacks.rows(self.dataset, self.split, self.class_name)) - 1, 0)
        self.index, self.slot, self.beside = self._images.value, self._slots.value, self._besides.value
        self.t = self._steps.value

    def _take_image(self) -> None:
        source, name = self._own.source()
        notes = self.add_image(source, name=name, window=self._own.window())
        with self._settle():
            offer(self._datasets, list(self.stacks.sets), OWN)
            self._follow(self._datasets)
            self._show.value = VIEWS[0]
        self._refresh()
        self._say(" ".join(notes))

    def _take_model(self) -> None:
        folder = self._own.model.value.strip()
        if self.open_model is None or not folder:
            raise UsageError("no model can be loaded here." if folder else "write the folder of a saved model.")
        self.stacks.slots[folder] = self.open_model(folder)
        with self._settle():
            offer(self._slots, list(self.stacks.slots), self.slot)
            offer(self._besides, [NOTHING, *self.stacks.slots], folder)
            self.beside, self._show.value = folder, VIEWS[0]
        self._refresh()

    # --- showing -----------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        view = VIEWS.index(self._show.value)
        for i, pane in enumerate(self._panes):
            pane.layout.display = None if i == view or (i == 0 and view == 2) else "none"
        super()._refresh()

    def _draw(self) -> None:
        if self._show.value == VIEWS[1]:
            figure = self.strip(self._strip.classes.value, self._strip.n.value, difference=self._strip.change.value)
            self._picture.value = figures.png_bytes(figure, DPI)
        else:
            self._picture.value = self.frame()
            self._draw_ahead()
        self._say("")

    def _draw_ahead(self) -> None:
        """Draw the other steps while the kernel has nothing to do, the nearest first; a new choice ends it."""
        with contextlib.suppress(RuntimeError, DiaworkError):  # without a running loop they are drawn when asked for
            frames, loop = self.frames(), asyncio.get_running_loop()
            now = self.ts.index(self.t)
            missing = sorted((i for i in range(len(self.ts)) if not frames.has(i)), key=lambda i: abs(i - now))
            ticket = self._ticket = object()

            def draw_next() -> None:
                if missing and self._ticket is ticket:
                    frames.png(missing.pop(0))
                    loop.call_later(_PULSE, draw_next)

            loop.call_later(10 * _PULSE, draw_next)

    def _say(self, text: str) -> None:
        super()._say(text)
        self._bar.layout.visibility = "hidden"

    def _show_progress(self, share: float) -> None:
        self._bar.value = share if math.isfinite(share) else 0
        self._bar.layout.visibility = "visible" if share < 1 else "hidden"
