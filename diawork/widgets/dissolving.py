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
import torch

from diawork import figures
from diawork.base.compute import Compute
from diawork.base.config import DissolveConfig, ExperimentConfig
from diawork.base.errors import DiaworkError, UsageError, pick
from diawork.data.datasets import load
from diawork.data.images import Splits
from diawork.data.locations import on_disk
from diawork.data.manifests import list_manifests
from diawork.data.preprocess import resized
from diawork.data.readers.picture import read_image
from diawork.method.ddpm import DDPM
from diawork.method.dissolve import Dissolver
from diawork.widgets.controls import WIDE, Explorer, line, menu, number, offer, row
from diawork.widgets.stacks import ALL, NOTHING, STEPS, Images, Stacks, saved_operator, shown_operators

VIEWS = ("one image", "strip of images", "your own image or model")
OWN, KINDS = "your own", ".png,.jpg,.jpeg,.tif,.tiff,.npy,.dcm"
PLAYED = (10, 30, 50, 75, 100, 130, 160, 200, 300, 400, 600)  # stops of the slider that stays when the kernel is gone
_PULSE = 0.004  # s between two pictures drawn ahead, so that the kernel stays ready to answer


class DissolveExplorer(Explorer):
    """Pick data set, split, class and image, move ``t``, and put another operator beside it.

    ``sets`` name → images, or a callable that opens them; ``operators`` name → operator. ``widget`` is the live
    face; ``still()`` and ``strip()`` return the same pictures as figures.
    """

    unwatched = ("play", "upload", "path", "low", "high", "model")

    def __init__(
        self, sets: Mapping[str, Images | Callable[[], Any]], operators: Mapping[str, Any], *,
        ts: Sequence[int] = STEPS, dataset: str | None = None, split: str | None = None, class_name: str = ALL,
        index: int = 0, operator: str | None = None, beside: str = NOTHING, t: int = 100,
        fit: Callable[[np.ndarray], np.ndarray] | None = None, open_model: Callable[[str], Any] | None = None,
    ) -> None:  # fmt: skip
        self.stacks = Stacks(sets, operators, ts)
        self.ts = self.stacks.ts
        self.dataset = dataset or next(iter(self.stacks.sets))
        splits = self.stacks.images(self.dataset)
        self.split = split or ("test" if "test" in splits else next(iter(splits)))
        self.class_name, self.index = class_name, index
        pick(dict.fromkeys(self.stacks.classes(self.dataset, self.split)), class_name, "class")
        self.operator, self.beside = operator or next(iter(operators)), beside
        for name in (self.operator, self.beside):
            pick({NOTHING: None, **operators}, name, "operator")
        self.t = self._nearest(t)
        self.fit, self.open_model = fit, open_model
        self.remarks: list[str] = []  # on the image of one's own, for as long as it is shown

    @classmethod
    def of(
        cls, data: Splits, ddpm: DDPM, cfg: DissolveConfig | None = None, *, data_root: Path | str | None = None,
        compute: Compute | None = None, beside: str = "", **choice: Any,
    ) -> DissolveExplorer:  # fmt: skip
        """Return the explorer of an opened data set and a model, with the alternatives beside it.

        Other data sets on this disk are opened when they are chosen, at the model's size; images and models of one's
        own when they are named.
        """
        cfg = cfg or DissolveConfig()
        sets: dict[str, Any] = {data.manifest.name: data}
        at = ExperimentConfig().override({"data.size": ddpm.config.image_size})
        for name in list_manifests():
            if name not in sets and on_disk(name, data_root):
                sets[name] = partial(load, at.but(dataset=name), data_root)
        operators = shown_operators(ddpm, cfg, compute=compute)
        blur = next(name for name in operators if "blur" in name)
        return cls(
            sets, operators, beside=beside or blur, fit=partial(resized, size=ddpm.config.image_size, rule="pad"),
            open_model=partial(saved_operator, like=ddpm, cfg=cfg, compute=compute), **choice,
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

    def fallback(self) -> str:
        """Return the same picture on a slider that needs no kernel."""
        ats = [self.ts.index(t) for t in dict.fromkeys(map(self._nearest, PLAYED))]
        frames, labels = [self.frames().png(at) for at in ats], [self.ts[at] for at in ats]
        start = min(range(len(ats)), key=lambda i: abs(labels[i] - self.t))
        return str(figures.player_html(frames, labels, figures.STEP_LABEL, start=start))

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
        columns, titles = [x, *self.stacks.dissolved(x, ts, self.operator)], list[int | str](ts)
        model = self.stacks.made(self.operator)
        if isinstance(model, Dissolver) and (resized := model.resized(torch.from_numpy(x))) is not None:
            columns.insert(1, resized.numpy())
            titles.insert(0, f"{model.size} px,\nnot dissolved")
        return figures.dissolve_strip(np.stack(columns, 1), titles, labels, difference=difference)

    def add_image(self, source: Any, *, name: str = "", window: tuple[float, float] | None = None) -> list[str]:
        """Add an image of one's own (a path or bytes) at the model's size; return notes."""
        read = read_image(source, name=name, window=window)
        image = self.fit(read.image) if self.fit else read.image
        self.stacks.add(OWN, {"file": (image[None], np.array([read.name]))})
        sizes = [" × ".join(map(str, shape[-2:])) for shape in (read.image.shape, image.shape)]
        self.remarks = [*read.notes, f"The model learnt from {next(iter(self.stacks.sets))}, perhaps of other organs."]
        self.remarks += [f"Your image of {sizes[0]} px was brought to {sizes[1]} px."] if sizes[0] != sizes[1] else []
        return self.remarks

    def frames(self) -> figures.DissolveFrames:
        """Return the pictures of the chosen image at all steps, each drawn when first asked for."""
        at = self.stacks.row(self.dataset, self.split, self.class_name, self.index)
        operators = (self.operator,) if self.beside in (NOTHING, self.operator) else (self.operator, self.beside)
        return self.stacks.frames(self.dataset, self.split, at, operators)

    # --- the live face ---------------------------------------------------------------------------------

    def _build(self) -> list[w.Widget]:
        stacks, classes = self.stacks, self.stacks.classes(self.dataset, self.split)
        last = max(len(stacks.rows(self.dataset, self.split, self.class_name)) - 1, 0)
        show = w.ToggleButtons(options=VIEWS, description="show", style=WIDE | {"button_width": "auto"})
        image = {
            "dataset": menu("data set", list(stacks.sets), self.dataset),
            "split": menu("split", list(stacks.images(self.dataset)), self.split),
            "class_name": menu("class", classes, self.class_name),
            "index": number("image", self.index, high=last),
        }
        operators = {
            "operator": menu("operator", list(stacks.operators), self.operator),
            "beside": menu("beside it", [NOTHING, *stacks.operators], self.beside),
        }
        steps = {
            "play": w.Play(value=self.ts.index(self.t), max=len(self.ts) - 1, interval=250, tooltip="play the steps"),
            "t": w.SelectionSlider(
                options=self.ts, value=self.t, description=figures.STEP_LABEL, style=WIDE, tooltip=figures.STEP_LABEL,
                layout={"flex": "1 1 320px", "max_width": "760px"},
            ),
        }  # fmt: skip
        self.link = w.jslink((steps["play"], "value"), (steps["t"], "index"))  # in the browser, without the kernel
        names, shown = classes[1:], min(4, len(classes) - 1)
        strip = {
            "classes": w.SelectMultiple(
                options=names, value=names, rows=shown, description="classes", tooltip="classes"
            ),
            "n": number("images of each", 2, low=1, high=6),
            "change": w.Checkbox(value=False, description="with the change", indent=False),
        }
        own = {
            "upload": w.FileUpload(accept=KINDS, description="image file", tooltip=KINDS),
            "path": line("or its path", placeholder="scan.tiff"),
            "low": line("stored value of black", placeholder="16-bit and float only"),
            "high": line("of white", placeholder="e.g. 4095"),
            "open": w.Button(description="show this image", icon="image", tooltip="read the image and show it"),
        }
        model = {
            "model": line("another model's folder", placeholder="runs/ddpm-…"),
            "load": w.Button(description="put it beside", icon="columns", tooltip="load the model and compare"),
        }
        own["open"].on_click(lambda _: self._guarded(self._take_image))
        model["load"].on_click(lambda _: self._guarded(self._take_model))
        self._bar = w.FloatProgress(max=1, layout={"width": "100%", "height": "8px", "visibility": "hidden"})
        stacks.on_progress = self._show_progress
        self.controls = {"show": show, **image, **operators, **steps, **strip, **own, **model}
        moved = w.HBox(list(steps.values()), layout={"align_items": "center"})
        self._panes = [moved, row(*strip.values()), w.VBox([row(*own.values()), row(*model.values())])]
        return [show, row(*image.values()), row(*operators.values()), *self._panes, self._bar]

    # --- what the user did -------------------------------------------------------------------------------

    def _follow(self, name: str) -> None:
        """Take over what was picked; what it makes impossible falls back to what there is."""
        stacks, controls = self.stacks, self.controls
        if name == "dataset":
            dataset, controls[name].value = controls[name].value, self.dataset  # chosen once it has been opened
            splits = list(stacks.images(dataset))
            self.dataset = controls[name].value = dataset
            offer(controls["split"], splits, self.split if self.split in splits else splits[-1])
        if name in ("dataset", "split"):
            self._take_over("split")
            classes = stacks.classes(self.dataset, self.split)
            offer(controls["class_name"], classes, self.class_name if self.class_name in classes else ALL)
            offer(controls["classes"], classes[1:], classes[1:])
        self._take_over("class_name")
        if name in ("dataset", "split", "class_name"):
            controls["index"].value = 0
            controls["index"].max = max(len(stacks.rows(self.dataset, self.split, self.class_name)) - 1, 0)
        self._take_over("index", "operator", "beside", "t")

    def _take_image(self) -> None:
        """Read the image that was uploaded, or whose path was written, and show it."""
        uploaded = self.controls["upload"].value
        path, low, high = (self.controls[name].value.strip() for name in ("path", "low", "high"))
        if not uploaded and not path:
            raise UsageError("choose an image file, or write its path.")
        try:
            window = (float(low), float(high)) if low or high else None
        except ValueError:
            what = f"the window {[low, high]} needs two numbers, the stored values of black and white."
            raise UsageError(what) from None
        source, name = (bytes(uploaded[0]["content"]), str(uploaded[0]["name"])) if uploaded else (path, "")
        self.add_image(source, name=name, window=window)
        with self._settle():
            offer(self.controls["dataset"], list(self.stacks.sets), OWN)
            self._follow("dataset")
            self.controls["show"].value = VIEWS[0]
        self._refresh()

    def _take_model(self) -> None:
        """Open the model whose folder was written and put it beside."""
        folder = self.controls["model"].value.strip()
        if self.open_model is None or not folder:
            raise UsageError("no model can be loaded here." if folder else "write the folder of a saved model.")
        self.stacks.operators[folder] = self.open_model(folder)
        with self._settle():
            offer(self.controls["operator"], list(self.stacks.operators), self.operator)
            offer(self.controls["beside"], [NOTHING, *self.stacks.operators], folder)
            self.beside, self.controls["show"].value = folder, VIEWS[0]
        self._refresh()

    # --- showing -----------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        view = VIEWS.index(self.controls["show"].value)
        for i, pane in enumerate(self._panes):
            pane.layout.display = None if i == view or (i == 0 and view == 2) else "none"
        super()._refresh()

    def idle(self) -> set[str]:
        """Return what changes nothing: a strip shows several classes, and one operator."""
        return {"class_name", "beside"} if self.controls["show"].value == VIEWS[1] else set()

    def shown(self) -> figures.Figure:
        """Return what the widget shows as a figure: one image, or the strip."""
        view, classes, n, change = (self.controls[name].value for name in ("show", "classes", "n", "change"))
        return self.strip(classes, n, difference=change) if view == VIEWS[1] else self.still()

    def _draw(self) -> None:
        if self.controls["show"].value == VIEWS[1]:
            super()._draw()
        else:
            self._picture.value = self.frames().png(self.ts.index(self.t))
            self._draw_ahead()
        self._say(" ".join(self.remarks) if self.dataset == OWN else "")

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
