"""Sentences computed from the numbers they stand beside: a difference, a family of them, and what limits them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from diawork.base.errors import UsageError
from diawork.evaluation.comparison import CROSSED, Comparison, seen_from

_KNOWN = {"ahead": "ahead of {}", "equal": "equal within {margin:g} to {}", "behind": "behind {}"}  # by verdict


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
    """Return at most three short sentences on a family: what is known, what is open, and on how much it rests.

    ``rivals`` maps a rival's name to the comparison of the focus (a) with it (b), adjusted for the family.
    """
    if not rivals:
        raise UsageError(f"{focus!r} was compared with no rival; a conclusion needs one or more.")
    by: dict[str, list[str]] = {}
    for rival, c in rivals.items():
        by.setdefault(c.verdict, []).append(rival)
    margin = max(c.margin for c in rivals.values())
    known = [text.format(listed(by[v]), margin=margin) for v, text in _KNOWN.items() if v in by]
    unknown = []
    if "open" in by:
        reach = max(rivals[rival].detectable for rival in by["open"])
        unknown.append(f"not told apart from {listed(by['open'])} ({seen_from(reach)})")
    if "undecided" in by:
        unknown.append(f"not decided against {listed(by['undecided'])} (one seed)")
    said = [f"{focus} is {listed(parts)}." for parts in (known, unknown) if parts]
    return [*said, f"This rests on {_basis(rivals)}."]


def _basis(rivals: Mapping[str, Comparison]) -> str:
    first = next(iter(rivals.values()))
    sides = [(n, c.covers) for c in rivals.values() for n in (c.seeds_a, c.seeds_b)]
    seeds = sorted({n for n, covers in sides if n > 1 or covers != CROSSED} or {1})  # a control's one row is no seed
    several = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    family = f", adjusted for {first.family} comparisons" if first.family > 1 else ""
    images = (
        f"{first.n_normal + first.n_anomalous:,} images ({first.n_normal:,} healthy, {first.n_anomalous:,} anomalous)"
    )
    return f"{images} and {several} a side{family}"


def limits(rivals: Mapping[str, Comparison]) -> list[str]:
    """Return what the comparisons cannot say, for the box beside a conclusion."""
    said = ["One data set: the intervals say nothing about images from another hospital, device or selection."]
    few = {name: c for name, c in rivals.items() if c.covers != CROSSED}
    if few:
        said.append(f"One seed on a side ({listed(list(few))}): the interval covers images only, not another training.")
    crossed = [min(c.seeds_a, c.seeds_b) for c in rivals.values() if c.covers == CROSSED]
    if 2 in crossed:
        said.append("With two seeds a false lead comes up in as many as 8 % of cases, not in 5 %.")
    if len(rivals) > 1 and any(c.family == 1 for c in rivals.values()):
        said.append(
            f"{len(rivals)} comparisons, none adjusted for the others: each may lead by chance in 5 % of cases."
        )
    return said


def p_value(p: float) -> str:
    """Return a p value as it stands in a table."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_said(p: float) -> str:
    """Return a p value as it stands in a sentence."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"
