"""How an object shows itself at the end of a notebook's cell: a title and a short table, as text and as HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping

LINES, WIDTH = 5, 100  # of the text


class Shown:
    """Shows what ``shown()`` says: a title, and name → value."""

    def shown(self) -> tuple[str, Mapping[str, object]]:
        """Return the title and the rows of the table."""
        raise NotImplementedError

    def __repr__(self) -> str:
        title, rows = self.shown()
        width = max(map(len, rows), default=0)
        return "\n".join([title, *(f"  {name:<{width}}  {str(value)[:WIDTH]}" for name, value in rows.items())][:LINES])

    __str__ = __repr__

    def _repr_html_(self) -> str:
        title, rows = self.shown()
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
            for name, value in rows.items()
        )
        return f"<p>{html.escape(title)}</p><table>{cells}</table>"
