"""Explorers for JupyterLab: thin ipywidgets over tested figures, each with a still twin.

Models arrive as callables. What is slow is computed once an image and kept; a slider only looks up.
"""

from __future__ import annotations

import html
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
import numpy as np

from diawork import plots
from diawork.errors import DataError, DiaworkError, NumericError, UsageError, did_you_mean

Images = Mapping[str, tuple[np.ndarray, np.ndarray]]  # split → images (N, [C,] H, W), class names (N,)
Stack = Callable[[np.ndarray, Sequence[int]], np.ndarray]  # x ([C,] H, W), T steps → (T, [C,] H, W)
# fine where the paper works (10-400), coarse beyond
STEPS = (*range(0, 200, 10), *range(200, 400, 25), *range(400, 1000, 100), 999)
ALL = "all classes"
KEPT = 32  # images whose stacks are kept


def energy_removed(x: np.ndarray, stack: np.ndarray) -> np.ndarray:
    """Return (T,): the mean squared change of ``x`` ([C,] H, W) at each step, as a share of its variance."""
    change = np.square(stack - x).reshape(len(stack), -1).mean(1)
    return change / max(float(np.var(x)), 1e-8)


@dataclass
class _Dissolved:
    """One image, dissolved at every step; the frames are drawn when a widget first asks for them."""

    x: np.ndarray
    stack: np.ndarray
    energy: np.ndarray
    frames: list[bytes] = field(default_factory=list)


class DissolveExplorer:
    """Pick an image, move ``t``, and see input, dissolved image, what changed and how much.

    ``widget`` is the live face, ``still()`` the same picture as a figure; both read one cache. Bad input
    becomes a sentence in the widget, which lives on.
    """

    def __init__(
        self, images: Images, stack: Stack, *, ts: Sequence[int] = STEPS, split: str | None = None,
        class_name: str = ALL, index: int = 0, t: int = 100,
    ) -> None:  # fmt: skip
        if not images or not len(ts):
            raise UsageError("an explorer needs at least one split of images and one step.")
        self.images, self._stack, self.ts = dict(images), stack, [int(step) for step in ts]
        self._kept: OrderedDict[tuple[str, int], _Dissolved] = OrderedDict()
        self.split = split or ("test" if "test" in images else next(iter(images)))
        self.class_name, self.index = class_name, index
        self._pick(dict.fromkeys(self.classes()), class_name, "class")
        self.t = min(self.ts, key=lambda step: abs(step - t))
        self._widget: ipywidgets.Widget | None = None

    @classmethod
    def of(cls, data: Any, dissolver: Any, **choice: Any) -> DissolveExplorer:
        """Return the explorer of a data set's splits and a ``Dissolver``, over the steps its model knows."""
        import torch  # only here: everywhere else this room knows arrays alone

        splits = {name: getattr(data, name) for name in ("train", "val", "test")}
        images = {name: (s.images.numpy(), s.class_names) for name, s in splits.items() if len(s)}
        known = dissolver.ddpm.num_timesteps

        def stack(x: np.ndarray, ts: Sequence[int]) -> np.ndarray:
            return dissolver.stack(torch.from_numpy(x)[None], ts)[:, 0].cpu().numpy()

        return cls(images, stack, **{"ts": [t for t in STEPS if t < known]} | choice)

    # --- what is shown ---------------------------------------------------------------------------------

    def classes(self) -> list[str]:
        """Return what the class picker offers in the chosen split."""
        return [ALL, *sorted(set(map(str, self._pick(self.images, self.split, "split")[1])))]

    def rows(self) -> np.ndarray:
        """Return the positions of the chosen class's images in the chosen split."""
        names = np.asarray(self._pick(self.images, self.split, "split")[1]).astype(str)
        return np.arange(len(names)) if self.class_name == ALL else np.flatnonzero(names == self.class_name)

    def still(self, t: int | None = None) -> plots.Figure:
        """Return the chosen image's picture at the chosen step, or at ``t``."""
        t = self.t if t is None else t
        if t not in self.ts:
            near = min(self.ts, key=lambda step: abs(step - t))
            raise UsageError(f"t={t} is not one of this explorer's steps.", hint=f"The nearest is {near}.")
        d = self._dissolved()
        return plots.dissolve_frame(d.x[None], d.stack[None], self.ts, at=self.ts.index(t), energy=d.energy)

    def frame(self) -> bytes:
        """Return the same picture as PNG bytes, looked up."""
        d = self._dissolved()
        if not d.frames:
            d.frames = plots.dissolve_frames(d.x[None], d.stack[None], self.ts, energy=d.energy)
        return d.frames[self.ts.index(self.t)]

    @staticmethod
    def _pick(choices: Mapping[str, Any], name: str, what: str) -> Any:
        if name not in choices:
            raise UsageError(f"{name!r} is not a {what} here.", hint=did_you_mean(name, choices))
        return choices[name]

    def _dissolved(self) -> _Dissolved:
        rows = self.rows()
        if not 0 <= self.index < len(rows):
            raise DataError(f"image {self.index} of {self.class_name!r} in {self.split!r}: there are {len(rows)}.")
        key = (self.split, int(rows[self.index]))
        if key not in self._kept:
            self._kept[key] = self._compute(np.asarray(self.images[self.split][0][key[1]], np.float32))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _compute(self, x: np.ndarray) -> _Dissolved:
        stack = np.asarray(self._stack(x, self.ts), np.float32)
        if stack.shape != (len(self.ts), *x.shape):
            raise DataError(f"the model returned {stack.shape} for {len(self.ts)} steps of an image {x.shape}.")
        if not np.isfinite(stack).all():
            raise NumericError("the dissolved image holds values that are not finite.")
        return _Dissolved(x, stack, energy_removed(x, stack))

    # --- the live face ---------------------------------------------------------------------------------

    @property
    def widget(self) -> ipywidgets.Widget:
        """The explorer as a widget: pickers, slider, picture, message."""
        if self._widget is None:
            self._widget = self._build()
            self._refresh()
        return self._widget

    def _build(self) -> ipywidgets.Widget:
        w, wide = ipywidgets, {"description_width": "initial"}
        self._splits = w.Dropdown(options=list(self.images), value=self.split, description="split")
        self._classes = w.Dropdown(options=self.classes(), value=self.class_name, description="class")
        self._images = w.IntSlider(value=self.index, max=max(len(self.rows()) - 1, 0), description="image")
        self._steps = w.SelectionSlider(
            options=self.ts, value=self.t, description=plots.STEP_LABEL, style=wide,
            layout={"width": "100%", "max_width": "640px"},
        )  # fmt: skip
        self._picture, self._message = w.Image(format="png", layout={"max_width": "100%"}), w.HTML()
        for control in (self._splits, self._classes, self._images, self._steps):
            control.observe(self._changed, "value")
        pickers = w.HBox([self._splits, self._classes, self._images], layout={"flex_flow": "row wrap"})
        return w.VBox([pickers, self._steps, self._picture, self._message])

    def _changed(self, change: Any) -> None:
        """Take over what the user picked; a new split keeps the class where it has it, and restarts the images."""
        if change.owner is self._splits and self.split != change.new:
            self.split, wanted = change.new, self.class_name
            self._classes.options = self.classes()
            self._classes.value = wanted if wanted in self.classes() else ALL
        self.class_name, self.t = self._classes.value, self._steps.value
        if change.owner in (self._splits, self._classes):
            self.index = 0
            self._images.value, self._images.max = 0, max(len(self.rows()) - 1, 0)
        self.index = self._images.value
        self._refresh()

    def _refresh(self) -> None:
        """Show the picture, or say in a sentence why there is none."""
        said = ""
        try:
            self._picture.value = self.frame()
        except DiaworkError as error:
            said = str(error)
        except Exception as error:  # a foreign model may raise anything, and the widget has to live on
            said = f"this image could not be dissolved ({type(error).__name__}: {error})."
        self._picture.layout.display = "none" if said else None
        self._message.value = f"<p role='alert'>{html.escape(said)}</p>" if said else ""
