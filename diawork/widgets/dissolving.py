"""Move ``t`` and watch what the model takes for detail: the explorer of the dissolver, and its still twins.

The widget is a thin face over ``Stacks``: what is slow is computed once an image and kept, the slider
looks up. Whatever goes wrong becomes one sentence in the widget, which lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ipywidgets as w
import numpy as np

from diawork import figures
from diawork.base.errors import DiaworkError, UsageError
from diawork.data.readers import read_image
from diawork.widgets.controls import WIDE, OwnControls, StripControls, menu, offer
from diawork.widgets.stacks import ALL, NOTHING, STEPS, Images, Occupant, Stacks, pick

FIGURE_STEPS = (50, 100, 200, 400)  # of the paper's Fig. 1
VIEWS = ("one image", "strip of images", "your own image or model")
OWN = "your own"
_PULSE = 0.004  # s between two pictures drawn ahead, so that the kernel stays ready to answer


class DissolveExplorer:
    """Pick data set, split, class and image, move ``t``, and put another occupant of the slot beside it.

    ``sets`` name → images, or a callable that opens them; ``slots`` name → occupant. ``widget`` is the live
    face; ``still()`` and ``strip()`` return the same pictures as figures.
    """

    def __init__(
        self, sets: Mapping[str, Images | Callable[[], Any]], slots: Mapping[str, Occupant], *,
        ts: Sequence[int] = STEPS, dataset: str | None = None, split: str | None = None, class_name: str = ALL,
        index: int = 0, slot: str | None = None, beside: str = NOTHING, t: int = 100,
        fit: Callable[[np.ndarray], np.ndarray] | None = None, open_model: Callable[[str], Occupant] | None = None,
    ) -> None:  # fmt: skip
        self.stacks, self.ts = Stacks(sets, slots, ts), [int(step) for step in ts]
        self.dataset = dataset or self.stacks.names[0]
        splits = self.stacks.images(self.dataset)
        self.split = split or ("test" if "test" in splits else next(iter(splits)))
        self.class_name, self.index = class_name, index
        pick(dict.fromkeys(self.stacks.classes(self.dataset, self.split)), class_name, "class")
        self.slot, self.beside = slot or next(iter(slots)), beside
        for name in (self.slot, self.beside):
            pick({NOTHING: None, **slots}, name, "occupant of the slot")
        self.t = min(self.ts, key=lambda step: abs(step - t))
        self._fit, self._open_model = fit, open_model
        self._widget: w.Widget | None = None

    @classmethod
    def of(cls, data: Any, slots: Mapping[str, Occupant], *, others: Any = None, **choice: Any) -> DissolveExplorer:
        """Return the explorer of an opened data set; ``others`` are further ones, name → opened, or what opens it."""
        sets = {data.manifest.name: data} | {k: v for k, v in (others or {}).items() if k != data.manifest.name}
        return cls({name: (lambda given=given: given() if callable(given) else given) for name, given in sets.items()},
                   slots, **choice)  # fmt: skip

    # --- what is shown ---------------------------------------------------------------------------------

    def still(self, t: int | None = None) -> figures.Figure:
        """Return the chosen image's picture at the chosen step, or at ``t``."""
        t = self.t if t is None else t
        if t not in self.ts:
            near = min(self.ts, key=lambda step: abs(step - t))
            raise UsageError(f"t={t} is not one of this explorer's steps.", hint=f"The nearest is {near}.")
        return self._frames().figure(self.ts.index(t))

    def frame(self) -> bytes:
        """Return the same picture as PNG bytes."""
        return self._frames().png(self.ts.index(self.t))

    def strip(
        self,
        classes: Sequence[str] | None = None,
        n: int = 2,
        ts: Sequence[int] = FIGURE_STEPS,
        difference: bool = False,
    ) -> figures.Figure:
        """Return the paper's Fig. 1: the first ``n`` images from ``index`` on of every class, dissolved at ``ts``."""
        known = self.stacks.classes(self.dataset, self.split)
        wanted = [name for name in (classes or known) if name != ALL] or known[1:]
        rows, labels = [], []
        for name in wanted:
            pick(dict.fromkeys(known), name, "class")
            of_class = self.stacks.rows(self.dataset, self.split, name)
            first = min(self.index, max(len(of_class) - n, 0))
            rows += of_class[first : first + n].tolist()
            labels += [name] * len(of_class[first : first + n])
        if not rows:
            raise UsageError("choose a class that has images for the strip.")
        strip = self.stacks.strip(self.dataset, self.split, rows, self.slot, ts)
        grey = strip.mean(2) if strip.ndim == 5 and strip.shape[2] == 1 else strip
        return figures.dissolve_strip(grey, ts, labels, difference=difference)

    def add_image(self, source: Any, *, name: str = "", window: tuple[float, float] | None = None) -> list[str]:
        """Add an image of one's own (PNG, TIFF, npy; a path or bytes), fitted to the model's size; return notes."""
        read = read_image(source, name=name, window=window)
        image = self._fit(read.image) if self._fit else read.image
        self.stacks.add(OWN, {"file": (image[None], np.array([read.name]))})
        return read.notes

    def _frames(self) -> Any:
        row = self.stacks.row(self.dataset, self.split, self.class_name, self.index)
        slots = (self.slot,) if self.beside in (NOTHING, self.slot) else (self.slot, self.beside)
        return self.stacks.frames(self.dataset, self.split, row, slots)

    # --- the live face ---------------------------------------------------------------------------------

    @property
    def widget(self) -> w.Widget:
        """The explorer as a widget: pickers, slider with play button, picture, progress and message."""
        if self._widget is None:
            self._quiet = False
            self._widget = self._build()
            self._refresh()
        return self._widget

    def _build(self) -> w.Widget:
        stacks = self.stacks
        self._datasets = menu("data set", stacks.names, self.dataset)
        self._splits = menu("split", list(stacks.images(self.dataset)), self.split)
        self._classes = menu("class", stacks.classes(self.dataset, self.split), self.class_name)
        count = len(stacks.rows(self.dataset, self.split, self.class_name))
        self._images = w.IntSlider(value=self.index, max=max(count - 1, 0), description="image", tooltip="image",
                                   style=WIDE, continuous_update=False)  # fmt: skip
        self._slots = menu("dissolver", list(stacks.slots), self.slot)
        self._besides = menu("beside it", [NOTHING, *stacks.slots], self.beside)
        for control in (self._datasets, self._splits, self._classes, self._images, self._slots, self._besides):
            control.observe(self._changed, "value")
        self._picture = w.Image(format="png", layout={"max_width": "100%", "border": "6px solid white"})
        self._message, self._bar = w.HTML(), w.FloatProgress(max=1, layout={"width": "100%", "height": "8px"})
        self._bar.layout.visibility = "hidden"
        stacks.on_progress = self._show_progress
        self._show = w.ToggleButtons(options=VIEWS, description="show", style=WIDE | {"button_width": "auto"})
        self._show.observe(self._changed, "value")
        self._strip = StripControls(stacks.classes(self.dataset, self.split)[1:], self._changed)
        self._own = OwnControls(lambda: self._guarded(self._take_image), lambda: self._guarded(self._take_model))
        self._panes = [self._step_row(), self._strip.box, self._own.box]
        rows = [(self._datasets, self._splits, self._classes, self._images), (self._slots, self._besides)]
        boxes = [w.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        return w.VBox([self._show, *boxes, *self._panes, self._bar, self._message, self._picture])

    def _step_row(self) -> w.Widget:
        """Return play button and slider; they move each other in the browser, without the kernel."""
        self._steps = w.SelectionSlider(
            options=self.ts, value=self.t, description=figures.STEP_LABEL, style=WIDE, tooltip=figures.STEP_LABEL,
            layout={"flex": "1 1 320px", "max_width": "760px"},
        )  # fmt: skip
        self._play = w.Play(value=self.ts.index(self.t), max=len(self.ts) - 1, interval=250, tooltip="play the steps")
        self._link = w.jslink((self._play, "value"), (self._steps, "index"))
        self._steps.observe(self._moved, "value")
        return w.HBox([self._play, self._steps], layout={"align_items": "center"})

    # --- what the user did -------------------------------------------------------------------------------

    def _moved(self, change: Any) -> None:
        self.t = change.new
        if not self._quiet:
            self._refresh()

    def _changed(self, change: Any) -> None:
        """Take over what was picked; what it makes impossible falls back to what there is."""
        if self._quiet:
            return
        with self._hold():
            failed = self._guarded(lambda: self._follow(change.owner))
            self._datasets.value = self.dataset  # one that could not be opened is not chosen
        if not failed:
            self._refresh()

    def _follow(self, owner: w.Widget) -> None:
        stacks = self.stacks
        if owner is self._datasets:
            splits = list(stacks.images(owner.value))  # may refuse, and then the old one stays
            self.dataset = owner.value
            offer(self._splits, splits, self.split if self.split in splits else splits[-1])
        if owner in (self._datasets, self._splits):
            self.split, names = self._splits.value, stacks.classes(self.dataset, self._splits.value)
            offer(self._classes, names, self.class_name if self.class_name in names else ALL)
            self._strip.offer(names[1:])
        self.class_name = self._classes.value
        if owner in (self._datasets, self._splits, self._classes):
            self._images.value = 0
            self._images.max = max(len(stacks.rows(self.dataset, self.split, self.class_name)) - 1, 0)
        self.index, self.slot, self.beside = self._images.value, self._slots.value, self._besides.value

    def _take_image(self) -> None:
        source, name = self._own.source()
        notes = self.add_image(source, name=name, window=self._own.window())
        with self._hold():
            self._datasets.options = self.stacks.names
            self._datasets.value = OWN
            self._follow(self._datasets)
            self._show.value = VIEWS[0]
        self._refresh()
        self._say(" ".join(notes))

    def _take_model(self) -> None:
        folder = self._own.model.value.strip()
        if self._open_model is None or not folder:
            raise UsageError("write the folder of a saved model." if folder == "" else "no model can be loaded here.")
        self.stacks.slots[folder] = self._open_model(folder)
        with self._hold():
            self._slots.options = list(self.stacks.slots)
            self._slots.value = self.slot
            offer(self._besides, [NOTHING, *self.stacks.slots], folder)
            self.beside, self._show.value = folder, VIEWS[0]
        self._refresh()

    # --- showing -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _hold(self) -> Iterator[None]:
        """Let controls change one another without a picture each."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _refresh(self) -> None:
        """Show the picture, or say in a sentence why there is none."""
        view = VIEWS.index(self._show.value)
        for i, pane in enumerate(self._panes):
            pane.layout.display = None if i == view or (i == 0 and view == 2) else "none"
        said = self._guarded(self._draw)
        self._picture.layout.display = "none" if said else None

    def _draw(self) -> None:
        if self._show.value == VIEWS[1]:
            figure = self.strip(self._strip.classes.value, self._strip.n.value, difference=self._strip.change.value)
            self._picture.value = figures.png_bytes(figure, 100)
        else:
            self._picture.value = self.frame()
            self._draw_ahead()
        self._say("")

    def _draw_ahead(self) -> None:
        """Draw the other steps while the kernel has nothing to do, the nearest first; a new choice ends it."""
        with contextlib.suppress(RuntimeError, DiaworkError):  # without a running loop they are drawn when asked for
            frames, loop = self._frames(), asyncio.get_running_loop()
            here = self.ts.index(self.t)
            missing = sorted((i for i in range(len(self.ts)) if not frames.has(i)), key=lambda i: abs(i - here))
            ticket = self._ticket = object()

            def one() -> None:
                if missing and self._ticket is ticket:
                    frames.png(missing.pop(0))
                    loop.call_later(_PULSE, one)

            loop.call_later(10 * _PULSE, one)

    def _guarded(self, act: Callable[[], None]) -> bool:
        """Do something; say in a sentence what went wrong and return whether it did."""
        try:
            act()
            return False
        except DiaworkError as error:
            self._say(str(error))
        except Exception as error:  # a foreign model may raise anything, and the widget has to live on
            self._say(f"this could not be shown ({type(error).__name__}: {error}).")
        self._bar.layout.visibility = "hidden"
        return True

    def _say(self, text: str) -> None:
        self._message.value = f"<p role='alert'>{html.escape(text)}</p>" if text else ""

    def _show_progress(self, share: float) -> None:
        self._bar.value = share if math.isfinite(share) else 0
        self._bar.layout.visibility = "visible" if share < 1 else "hidden"
