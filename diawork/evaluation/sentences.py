"""Sentences computed from the numbers they stand beside: a difference, a family of them, and what limits them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from diawork.base.errors import UsageError
from diawork.evaluation.comparison import BORROWED, CELLS, IMAGES, MARGIN, S0, Comparison, seen_from

_KNOWN = {"ahead": "ahead of {}", "equal": f"equal within {MARGIN:g} to {{}}", "behind": "behind {}"}  # by verdict


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign: +0.012 or −0.012."""
    return f"{value:+.{digits}f}".replace("-", "−")


def interval(low: float, high: float, *, lead: str = "", sign: bool = False) -> str:
    """Return "0.850 to 0.920" after ``lead``, or "no interval" where none can be given (NaN)."""
    if math.isnan(low) or math.isnan(high):
        return "no interval"
    ends = [signed(end) if sign else f"{end:.3f}" for end in (low, high)]
    return f"{lead}{' to '.join(ends)}"


def listed(names: list[str], most: int = 3) -> str:
    """Return "a", "a and b", "a, b and c", "a, b, c and 4 more"."""
    names = names if len(names) <= most else [*names[:most], f"{len(names) - most} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(n: int, thing: str) -> str:
    """Return "1 seed", "2 seeds", "1,214 images"."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def conclusion(focus: str, rivals: Mapping[str, Comparison]) -> list[str]:
    """Return short sentences on a family: what is known, what is open, and on how much it rests.

    ``rivals`` maps a rival's name to the comparison of the focus (a) with it (b), adjusted for the family.
    """
    if not rivals:
        raise UsageError(f"{focus!r} was compared with no rival; a conclusion needs one or more.")
    by: dict[str, list[str]] = {}
    for rival, c in rivals.items():
        by.setdefault(c.verdict, []).append(rival)
    known = [text.format(listed(by[verdict])) for verdict, text in _KNOWN.items() if verdict in by]
    said = [f"{focus} is {listed(known)}."] if known else []
    if "open" in by:
        reach = max(rivals[rival].detectable for rival in by["open"])
        said.append(f"{focus} is not told apart from {listed(by['open'])} ({seen_from(reach)}).")
    if "withheld" in by:
        why = "seeds scatter too far, or training ended before its published length and before it converged"
        said.append(f"No verdict against {listed(by['withheld'])}: {why}.")
    if "undecided" in by:
        said.append(f"One seed gives no verdict on the methods {focus} and {listed(by['undecided'])}.")
        leads = [rival for rival in by["undecided"] if rivals[rival].found == "ahead"]
        said += [f"This trained {focus} is ahead of {listed(leads)} (DeLong, over images)."] if leads else []
    first = next(iter(rivals.values()))
    seeds = sorted({len(x) for c in rivals.values() for x in c.areas if len(x) > 1 or c.covers == IMAGES} or {1})
    several = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    images = f"{first.n_normal:,} healthy and {first.n_anomalous:,} anomalous images"
    family = f", adjusted for {first.family} comparisons" if first.family > 1 else ""
    return [*said, f"This rests on {images} and {several} a side{family}."]


def limits(rivals: Mapping[str, Comparison]) -> list[str]:
    """Return what the comparisons cannot say, for the box beside a conclusion."""
    said = ["One data set: the intervals say nothing about images from another hospital, device or selection."]
    few = [name for name, c in rivals.items() if c.covers == IMAGES]
    if few:
        said.append(f"One seed on a side ({listed(few)}): the interval covers images only, not another training.")
    if any(c.covers == BORROWED for c in rivals.values()):
        said.append(
            "Two seeds show little of how much trainings differ. Part of that variance is borrowed from "
            f"{CELLS} cells of earlier reports (standard deviation {S0:g} of the logit of the AUROC)."
        )
    return said


def p_value(p: float) -> str:
    """Return a p value as it stands in a table."""
    return "< 0.001" if p < 0.001 else "–" if math.isnan(p) else f"{p:.3f}"


def p_said(p: float) -> str:
    """Return a p value as it stands in a sentence."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"
