"""What the explorers share: one base, and labelled controls."""

from __future__ import annotations

import base64
import contextlib
import html
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import ipywidgets as w
from IPython.display import display

from diawork import figures
from diawork.base.errors import DiaworkError, pick

DPI = 100
_ALERT = "<p role='alert'>"
WIDE = {"description_width": "initial"}
WRAP = {"flex_flow": "row wrap"}
BROAD = {"width": "100%", "max_width": "640px"}
_STILL = """<style>body:has(.live-{0}) .still-{0},
body:not(:has(.live-{0})) .jp-OutputArea-child:has(+ .jp-OutputArea-child .still-{0}){{display:none}}</style>
<div class="still-{0}">{1}</div>"""  # shown where no live widget is, in place of the frontend's error


class Explorer:
    """A picture that follows its controls; where none can be drawn stands one sentence, and the widget lives on."""

    still: Callable[..., figures.Figure]  # what is drawn
    controls: dict[str, Any]  # name of a choice → the control that makes it
    unwatched: tuple[str, ...] = ()  # controls that change nothing by themselves
    _build: Callable[[], list[w.Widget]]  # makes the controls and returns their rows
    _follow: Callable[[str], None]  # takes over a change of the control of that name
    _settling = False

    # --- driving it without a browser ------------------------------------------------------------------

    def choose(self, **choice: Any) -> Self:
        """Set controls by name, in the order given, as a user would: ``explorer.choose(split="val", t=100)``."""
        self.widget  # noqa: B018 - builds the controls
        for name, value in choice.items():
            pick(self.controls, name, "control").value = value
        return self

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

    @cached_property
    def widget(self) -> w.Widget:
        """The explorer as a widget: its controls, a message where there is one, and the picture."""
        self._picture = w.Image(format="png", layout={"max_width": "100%", "border": "6px solid white"})
        self._message, self._caption = w.HTML(), w.HTML()
        rows = self._build()
        for name, control in self.controls.items():
            if hasattr(control, "value") and name not in self.unwatched:
                control.observe(partial(self._changed, name), "value")
        self._refresh()
        save = w.Button(description="save figure", icon="save", tooltip="write the picture as PNG and SVG")
        saved = w.HTML()
        save.on_click(lambda _: self._guarded(lambda: setattr(saved, "value", f"{self.save()} and its twin in SVG")))
        below = w.HBox([save, saved])
        return w.VBox([*rows, self._message, self._caption, self._picture, below], layout={"overflow": "hidden"})

    def _ipython_display_(self) -> None:
        """Show the live face and, in the same cell, what a saved or headless notebook shows in its place."""
        name = self.widget.add_class(f"live-{self.widget.model_id}").model_id
        display(self.widget)
        try:
            words = self.fallback()
        except DiaworkError as error:
            words = html.escape(str(error))
        display({"text/html": _STILL.format(name, words), "text/plain": type(self).__name__}, raw=True)

    def fallback(self) -> str:
        """Return the picture of the present choice as HTML that needs no kernel."""
        picture = base64.b64encode(figures.png_bytes(self.still(), DPI)).decode("ascii")
        return f'<img alt="{type(self).__name__}" src="data:image/png;base64,{picture}">'

    def sentence(self) -> str:
        """Return the picture in words; it stands above."""
        return ""

    def shown(self) -> figures.Figure:
        """Return what the widget shows as a figure."""
        return self.still()

    def save(self, path: Path | str = "") -> Path:
        """Write the picture on show as PNG, and as SVG beside it; return the path of the first."""
        path = Path(path or f"{type(self).__name__}.png")
        figure = self.shown()
        for one in (path, path.with_suffix(".svg")):
            figure.savefig(one, bbox_inches="tight")
        return path

    def _take_over(self, *names: str) -> None:
        """Set the attributes of these names to what their controls say."""
        for name in names:
            setattr(self, name, self.controls[name].value)

    def _changed(self, name: str, _: Any) -> None:
        """Take over what the user picked and draw; what controls thereby do to one another is not drawn."""
        if self._settling:
            return
        with self._settle():
            followed = self._guarded(lambda: self._follow(name))
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
        """Show the picture, or say in a sentence why there is none; disable what offers no choice."""
        self._picture.layout.display = None if self._guarded(self._draw) else "none"
        for name, control in self.controls.items():
            if hasattr(control, "options") or hasattr(control, "max"):
                control.disabled = name in self.idle() or not _chooses(control)

    def idle(self) -> set[str]:
        """Return the names of the controls that change nothing at present."""
        return set()

    def _draw(self) -> None:
        self._picture.value = figures.png_bytes(self.shown(), DPI)
        self._caption.value = html.escape(self.sentence())
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


def _chooses(control: Any) -> bool:
    """Say whether a menu has two options, or a slider two places."""
    return len(control.options) > 1 if hasattr(control, "options") else control.max > control.min


def row(*controls: w.Widget) -> w.HBox:
    """Return controls side by side, in several lines where there is no room."""
    return w.HBox(controls, layout=WRAP)


def menu(label: str, options: Sequence, value: Any) -> w.Dropdown:
    """Return a labelled menu."""
    words = {"description": label, "tooltip": label, "style": WIDE}
    return w.Dropdown(options=options, value=value, layout={"width": "auto"}, **words)


def number(label: str, value: int, *, low: int = 0, high: int, live: bool = False, **kw: Any) -> w.IntSlider:
    """Return a labelled slider over whole numbers, which answers when it is let go, or ``live`` while it moves."""
    words = {"description": label, "tooltip": label, "style": WIDE}
    return w.IntSlider(value=value, min=low, max=high, continuous_update=live, **words, **kw)


def line(label: str, value: str = "", **kw: Any) -> w.Text:
    """Return a labelled line of text, which answers when it is finished."""
    return w.Text(value=value, description=label, style=WIDE, continuous_update=False, **kw)


def offer(control: Any, options: Sequence, value: Any) -> None:
    """Give a control other options and choose one of them, or several."""
    if isinstance(control, w.SelectMultiple):
        control.value = ()  # a browser that still has more chosen than there are options stumbles
    control.options = options
    control.value = value
