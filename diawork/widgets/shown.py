"""A picture that becomes one plain sentence when it cannot be drawn, so that a widget lives on."""

from __future__ import annotations

import html
from collections.abc import Callable

import ipywidgets

from diawork import figures
from diawork.base.errors import DiaworkError

DPI = 100
WIDE = {"description_width": "initial"}


class Shown:
    """An image above a message; ``show`` fills the one or the other."""

    def __init__(self, what: str) -> None:
        self.what = what  # the sentence's subject, where something foreign fails
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.message = ipywidgets.HTML()
        self.box = ipywidgets.VBox([self.picture, self.message])

    def show(self, draw: Callable[[], figures.Figure], remark: Callable[[], str] = str) -> None:
        """Show the figure that ``draw`` returns with a remark under it, or say in a sentence why there is none."""
        said, drawn = "", False
        try:
            self.picture.value = figures.png_bytes(draw(), DPI)
            said, drawn = remark(), True
        except DiaworkError as error:
            said = str(error)
        except Exception as error:  # a foreign model may raise anything, and the widget has to live on
            said = f"{self.what} could not be shown ({type(error).__name__}: {error})."
        self.picture.layout.display = None if drawn else "none"
        self.message.value = f"<p role='alert'>{html.escape(said)}</p>" if said else ""
