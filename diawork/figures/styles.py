"""The colours of a page: a detector has one everywhere, a variant one on its page; controls are grey and hatched."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

Styles = Mapping[str, Mapping[str, Any]]  # name → color, linestyle, hatch

# Okabe-Ito and Tol colours: told apart with any common colour blindness.
DETECTOR_COLORS = {
    "DIA": "#0072B2", "CSI": "#E69F00", "Gaussian blur": "#009E73", "Median blur": "#CC79A7",
    "Resize": "#56B4E9", "Noise": "#882255", "Identity": "#999933", "RD4AD": "#332288", "SCRD4AD": "#AA4499",
    "SimSID": "#117733", "KDAD": "#44AA99", "PatchCore": "#DDCC77", "PaDiM": "#CC6677", "deep kNN": "#88CCEE",
    "mean-shifted contrastive": "#661100", "SimCLR": "#6699CC",
}  # fmt: skip
_CONTROL_LOOKS = {  # first word that fits; grey, line, hatch
    "oracle": ("#3d3d3d", ":", "xxx"), "pixel": ("#a3a3a3", "--", "..."), "mahalanobis": ("#7f7f7f", "-.", "\\\\\\"),
    "statistic": ("#5c5c5c", (0, (5, 1, 1, 1)), "///"), "control": ("#8f8f8f", "-.", "++"),
    "nn": ("#8f8f8f", "--", "++"), "neighbour": ("#8f8f8f", "--", "++"),
}  # fmt: skip
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


def detector_style(name: str) -> dict[str, Any]:
    """Return ``color``, ``linestyle`` and ``hatch`` of a detector, the same in every figure.

    A variant ("DIA (loss.mask naive)", "gaussian blur in the slot") has its family's colour and a dashed line.
    """
    words = re.split(r"[^a-z]+", name.lower())
    if look := next((look for key, look in _CONTROL_LOOKS.items() if any(w.startswith(key) for w in words)), None):
        return dict(zip(("color", "linestyle", "hatch"), look, strict=True))
    family = next((k for k in DETECTOR_COLORS if re.match(rf"{k}\b", name, re.IGNORECASE)), "")
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16)  # Python's own hash changes with the process
    color = DETECTOR_COLORS[family] if family else _SPARE[number % len(_SPARE)]
    return {"color": color, "linestyle": "-" if name == family else _DASHED, "hatch": ""}


def styles_of(names: Iterable[str]) -> Styles:
    """Return the look of each name on one page: no two variants alike, whatever the order of the names.

    A detector by its plain name keeps its colour. A variant takes its family's where no name before it has it, else
    the next colour that is free; where none is, the next colour with other dashes.
    """
    looks = {name: detector_style(name) for name in sorted(set(names))}
    variants = [name for name, look in looks.items() if look["linestyle"] == _DASHED]
    pairs = {(look["color"], look["linestyle"]) for name, look in looks.items() if name not in variants}
    for name in variants:
        colors = {color for color, _ in pairs}
        choices = [(looks[name]["color"], _DASHED), *_VARIANTS]
        fresh = [pair for pair in choices if pair[0] not in colors] or [pair for pair in choices if pair not in pairs]
        color, dashes = (fresh or choices)[0]
        looks[name] |= {"color": color, "linestyle": dashes}
        pairs.add((color, dashes))
    return looks
