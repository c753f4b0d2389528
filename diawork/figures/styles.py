"""The colours of a page: a detector has one everywhere, a variant one on its page; controls are grey and hatched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from diawork.base.registry import DETECTORS
from diawork.method.operators import OPERATORS

Styles = Mapping[str, Mapping[str, Any]]  # label → color, linestyle, hatch

CONTROL_LOOKS = {  # grey, line, hatch
    "oracle_statistic": ("#3d3d3d", ":", "xxx"), "pixel_knn": ("#a3a3a3", "--", "..."),
    "stats_mahalanobis": ("#7f7f7f", "-.", "\\\\\\"), "stats_knn": ("#5c5c5c", (0, (5, 1, 1, 1)), "///"),
}  # fmt: skip
ANOTHER_CONTROL = ("#8f8f8f", "--", "++")
# Okabe-Ito and Tol colours, as those that detectors declare: told apart with any common colour blindness.
_SPARE = ("#44AA99", "#DDCC77", "#CC6677", "#88CCEE", "#661100", "#6699CC")
_DASHED = (0, (6, 1.5))
_VARIANTS = [  # colours and dashes in the order in which variants on one page take them
    (color, dashes)
    for dashes in (_DASHED, (0, (2, 1)), (0, (6, 1.5, 1, 1.5)))
    for color in (
        "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#332288", "#999933", "#882255", "#44AA99", "#661100", "#DDCC77",
        "#117733", "#AA4499", "#6699CC",
    )
]  # fmt: skip


class Named(NamedTuple):
    """A line of a figure: its label, the method behind it, whether it is that method as it is, or a control."""

    label: str
    method: str
    plain: bool = True
    control: bool = False
    color: str | None = None  # "": none of its own; None: what the method declares


def color_of(method: str) -> str:
    """Return the colour that an operator or a detector of this name declares; "" where none does."""
    return getattr(OPERATORS.get(method) or DETECTORS.get(method), "color", "")


def method_of(label: str) -> Named:
    """Return the registered detector of this label or name; another label stands for a method of its own."""
    for entry in DETECTORS.values():
        if label in (entry.label, entry.name):
            return Named(label, entry.name, control=entry.control)
    return Named(label, label)


def styles_of(lines: Iterable[Named | str]) -> Styles:
    """Return the look of each label on one page: no two alike but those of controls, whatever their order.

    A method as it is has its colour, the same on every page. A variant takes that colour where nothing before it has
    it, else the next that is free; where none is, the next with other dashes.
    """
    known = {line.label: line for line in (one if isinstance(one, Named) else method_of(one) for one in lines)}
    looks: dict[str, dict[str, Any]] = {}
    pairs: set[tuple[str, Any]] = set()
    for label, line in sorted(known.items(), key=lambda one: (not one[1].plain, one[0])):
        if line.control:
            control = CONTROL_LOOKS.get(line.method, ANOTHER_CONTROL)
            looks[label] = dict(zip(("color", "linestyle", "hatch"), control, strict=True))
            continue
        number = int(hashlib.sha256(line.method.encode()).hexdigest(), 16)  # Python's own changes with the process
        color = color_of(line.method) if line.color is None else line.color
        own: tuple[str, Any] = (color or _SPARE[number % len(_SPARE)], "-" if line.plain else _DASHED)
        if not line.plain or own in pairs:
            colors = {color for color, _ in pairs}
            choices = [own, *_VARIANTS]
            fresh = [pair for pair in choices if pair[0] not in colors]
            own = (fresh or [pair for pair in choices if pair not in pairs] or choices)[0]
        looks[label] = {"color": own[0], "linestyle": own[1], "hatch": ""}
        pairs.add(own)
    return looks
