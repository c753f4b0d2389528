"""What the explorers share: one base, and groups of labelled controls."""

from __future__ import annotations

import base64
import contextlib
import html
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import ipywidgets as w

from diawork import figures
from diawork.base.errors import DiaworkError, UsageError, pick

DPI = 100
_ALERT = "<p role='alert'>"
WIDE = {"description_width": "initial"}
WRAP = {"flex_flow": "row wrap"}
BROAD = {"width": "100%", "max_width": "640px"}


class Explorer:
    """A picture that follows its controls; where none can be drawn stands one sentence, and the widget lives on."""

    still: Callable[..., figures.Figure]  # what is drawn
    _build: Callable[[], w.Widget]  # the controls, beside picture and message
    _follow: Callable[[w.Widget], None]  # what a change of one of them means
    controls: dict[str, Any]  # name of a choice → the control that makes it; there once ``widget`` was asked for
    _widget: w.Widget | None = None
    _settling = False

    # --- driving it without a browser ------------------------------------------------------------------

    def choose(self, **choice: Any) -> Self:
        """Set controls by name, in the order given, as a user would: ``explorer.choose(split="val", t=100)``."""
        self.widget  # noqa: B018 - builds the controls
        for name, value in choice.items():
            pick(self.controls, name, "control").value = value
        return self

    def press(self, name: str) -> Self:
        """Press a button by name."""
        self.widget  # noqa: B018
        pick(self.controls, name, "control").click()
        return self

    @property
    def state(self) -> dict[str, Any]:
        """Return what every control is set to."""
        self.widget  # noqa: B018
        return {name: control.value for name, control in self.controls.items() if hasattr(control, "value")}

    @property
    def picture(self) -> bytes:
        """Return the picture on show as PNG; empty where none is."""
        self.widget  # noqa: B018
        return b"" if self._picture.layout.display == "none" else bytes(self._picture.value)

    @property
    def message(self) -> str:
        """Return the sentence on show; empty where there is none."""
        self.widget  # noqa: B018
        return html.unescape(self._message.value.removeprefix(_ALERT).removesuffix("</p>"))

    # --- the widget --------------------------------------------------------------------------------------

    @property
    def widget(self) -> w.Widget:
        """The explorer as a widget: its controls, the picture, and a message where there is one."""
        if self._widget is None:
            self._picture = w.Image(format="png", layout={"max_width": "100%", "border": "6px solid white"})
            self._message = w.HTML()
            self._widget = self._build()
            self._refresh()
        return self._widget

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Return the live face and, in the same output, what a saved or headless notebook shows in its place."""
        return self.widget._repr_mimebundle_() | self.fallback()

    def fallback(self) -> dict[str, Any]:
        """Return the picture of the present choice, by MIME type; where there is none, the sentence that says why."""
        try:
            return {"image/png": base64.b64encode(figures.png_bytes(self.still(), DPI)).decode("ascii")}
        except DiaworkError as error:
            return {"text/plain": str(error)}

    def _watch(self, *controls: w.Widget) -> None:
        for control in controls:
            control.observe(self._changed, "value")

    def _changed(self, change: Any) -> None:
        """Take over what the user picked and draw; what controls thereby do to one another is not drawn."""
        if self._settling:
            return
        with self._settle():
            followed = self._guarded(lambda: self._follow(change.owner))
        if followed:
            self._refresh()

    @contextlib.contextmanager
    def _settle(self) -> Iterator[None]:
        """Let controls change one another without a picture each."""
        self._settling = True
        try:
            yield
        finally:
            self._settling = False

    def _refresh(self) -> None:
        """Show the picture, or say in a sentence why there is none."""
        self._picture.layout.display = None if self._guarded(self._draw) else "none"

    def _draw(self) -> None:
        self._picture.value = figures.png_bytes(self.still(), DPI)
        self._say("")

    def _guarded(self, act: Callable[[], None]) -> bool:
        """Do something and return whether it went well; if not, say in a sentence what went wrong."""
        try:
            act()
            return True
        except DiaworkError as error:
            self._say(str(error))
        except Exception as error:  # a foreign model may raise anything, and the widget has to live on
            self._say(f"this could not be shown ({type(error).__name__}: {error}).")
        return False

    def _say(self, text: str) -> None:
        self._message.value = f"{_ALERT}{html.escape(text)}</p>" if text else ""


def menu(label: str, options: Sequence, value: Any) -> w.Dropdown:
    """Return a labelled menu."""
    words = {"description": label, "tooltip": label, "style": WIDE}
    return w.Dropdown(options=options, value=value, layout={"width": "auto"}, **words)


def number(label: str, value: int, *, low: int = 0, high: int, live: bool = False, **kw: Any) -> w.IntSlider:
    """Return a labelled slider over whole numbers, which answers when it is let go, or ``live`` while it moves."""
    words = {"description": label, "tooltip": label, "style": WIDE}
    return w.IntSlider(value=value, min=low, max=high, continuous_update=live, **words, **kw)


def offer(control: Any, options: Sequence, value: Any) -> None:
    """Give a control other options and choose one of them."""
    control.options = options
    control.value = value


class StripControls:
    """Which classes, how many images of each, and whether with the change."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = w.SelectMultiple(
            options=classes, value=classes, rows=min(4, len(classes)), description="classes", tooltip="classes"
        )
        self.n = number("images of each", 2, low=1, high=6)
        self.change = w.Checkbox(value=False, description="with the change", indent=False)
        self.box = w.HBox([self.classes, self.n, self.change], layout=WRAP)


class OwnControls:
    """An image file of the user's own with its intensity window, and another model's folder."""

    def __init__(self) -> None:
        text = {"style": WIDE, "continuous_update": False}
        self.upload = w.FileUpload(accept=".png,.tif,.tiff,.npy", description="image file", tooltip="PNG, TIFF or npy")
        self.path = w.Text(description="or its path", placeholder="scan.tiff", **text)
        self.low = w.Text(description="stored value of black", placeholder="16-bit and float only", **text)
        self.high = w.Text(description="of white", placeholder="e.g. 4095", **text)
        self.open = w.Button(description="show this image", icon="image", tooltip="read the image and show it")
        self.model = w.Text(description="another model's folder", placeholder="runs/ddpm-…", **text)
        self.load = w.Button(description="put it beside", icon="columns", tooltip="load the model and compare")
        image = w.HBox([self.upload, self.path, self.low, self.high, self.open], layout=WRAP)
        self.box = w.VBox([image, w.HBox([self.model, self.load], layout=WRAP)])

    def source(self) -> tuple[bytes | str, str]:
        """Return what to read, and its name where it was uploaded."""
        if self.upload.value:
            return bytes(self.upload.value[0]["content"]), str(self.upload.value[0]["name"])
        if not self.path.value.strip():
            raise UsageError("choose an image file, or write its path.")
        return self.path.value.strip(), ""

    def window(self) -> tuple[float, float] | None:
        """Return the stored values of black and white, None where neither is written."""
        ends = [self.low.value.strip(), self.high.value.strip()]
        if not any(ends):
            return None
        try:
            return float(ends[0]), float(ends[1])
        except ValueError:
            raise UsageError(f"the window {ends} needs two numbers, the stored values of black and white.") from None
