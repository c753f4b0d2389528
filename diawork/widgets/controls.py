"""Groups of labelled controls of the dissolving explorer: the strip of images, and what the user brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets as w

from diawork.base.errors import UsageError

WIDE = {"description_width": "initial"}
_WRAP = {"flex_flow": "row wrap"}


def menu(label: str, options: Sequence[str], value: str) -> w.Dropdown:
    """Return a labelled menu."""
    return w.Dropdown(
        options=options, value=value, description=label, tooltip=label, style=WIDE, layout={"width": "auto"}
    )


def offer(control: w.Dropdown, options: Sequence[str], value: str) -> None:
    """Give a menu other options and choose one of them."""
    control.options = options
    control.value = value


class StripControls:
    """Which classes, how many images of each, and whether with the change."""

    def __init__(self, classes: Sequence[str], changed: Callable) -> None:
        self.classes = w.SelectMultiple(
            options=classes, value=classes, rows=min(4, len(classes)), description="classes", tooltip="classes"
        )
        self.n = w.IntSlider(
            value=2, min=1, max=6, description="images of each", tooltip="images of each class", style=WIDE,
            continuous_update=False,
        )  # fmt: skip
        self.change = w.Checkbox(value=False, description="with the change", indent=False)
        for control in (self.classes, self.n, self.change):
            control.observe(changed, "value")
        self.box = w.HBox([self.classes, self.n, self.change], layout=_WRAP)

    def offer(self, classes: Sequence[str]) -> None:
        """Offer other classes and choose them all."""
        self.classes.options = classes
        self.classes.value = classes


class OwnControls:
    """An image file of the user's own with its intensity window, and another model's folder."""

    def __init__(self, take_image: Callable[[], None], take_model: Callable[[], None]) -> None:
        text = {"style": WIDE, "continuous_update": False}
        self.upload = w.FileUpload(accept=".png,.tif,.tiff,.npy", description="image file", tooltip="PNG, TIFF or npy")
        self.path = w.Text(description="or its path", placeholder="scan.tiff", **text)
        self.low = w.Text(description="stored value of black", placeholder="16-bit and float only", **text)
        self.high = w.Text(description="of white", placeholder="e.g. 4095", **text)
        self.open = w.Button(description="show this image", icon="image", tooltip="read the image and show it")
        self.model = w.Text(description="another model's folder", placeholder="runs/ddpm-…", **text)
        self.load = w.Button(description="put it beside", icon="columns", tooltip="load the model and compare")
        self.open.on_click(lambda _: take_image())
        self.load.on_click(lambda _: take_model())
        first = w.HBox([self.upload, self.path, self.low, self.high, self.open], layout=_WRAP)
        self.box = w.VBox([first, w.HBox([self.model, self.load], layout=_WRAP)])

    def source(self) -> tuple[bytes | str, str]:
        """Return what to read, and its name where it was uploaded."""
        if self.upload.value:
            return bytes(self.upload.value[0]["content"]), str(self.upload.value[0]["name"])
        if not self.path.value.strip():
            raise UsageError("choose an image file, or write its path.")
        return self.path.value.strip(), ""

    def window(self) -> tuple[float, float] | None:
        """Return the stored values of black and white, None where neither is given."""
        given = [self.low.value.strip(), self.high.value.strip()]
        if not any(given):
            return None
        try:
            return float(given[0]), float(given[1])
        except ValueError:
            raise UsageError(f"the window {given} needs two numbers, the stored values of black and white.") from None
