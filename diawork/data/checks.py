"""Is the data set fit for an honest experiment? Duplicates within and across splits, roles, blank images.

A duplicate across splits is an error where the model is fitted on one of the two (a healthy training
image), unless its digest is acknowledged, and a warning elsewhere.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diawork.base.errors import CheckpointError, DataError
from diawork.base.files import digest, read_json, write_json
from diawork.data.images import ImageSet, Splits

SCHEMA = 1
NEAR = 0.97  # correlation from which two images may be the same picture
CLOSER = 30.0  # and how many times closer they are than the median image of the other split
SAME = 0.999  # correlation from which they are the same whatever the other images are like
MOST_PAIRS = 1000  # listed in a report


class Pair(NamedTuple):
    """Two images that are the same picture; ``first`` lies in the earlier split."""

    kind: str  # "exact" or "near"
    first_split: str
    first_index: int
    first_class: str
    second_split: str
    second_index: int
    second_class: str
    similarity: float  # correlation, 1 = equal up to brightness and contrast
    fitted: bool  # across splits, and ``first`` is a healthy training image

    @property
    def across(self) -> bool:
        """Say whether the two lie in different splits."""
        return self.first_split != self.second_split

    def __str__(self) -> str:
        return (
            f"{self.first_split} {self.first_index} ({self.first_class}) and "
            f"{self.second_split} {self.second_index} ({self.second_class})"
        )


class Problem(NamedTuple):
    """One finding in one sentence."""

    severity: str  # "error", "warning" or "acknowledged"
    text: str
    leak: bool = False  # a fitted image stands in an evaluation split, too


@dataclass(frozen=True)
class DataReport:
    """What a check of all splits found."""

    name: str
    identity: str  # of the data
    pairs: tuple[Pair, ...]
    problems: tuple[Problem, ...]
    digest: str  # of the pairs that concern a fitted image; "" where there are none

    @property
    def errors(self) -> list[str]:
        """Return what stands in the way of a run."""
        return [problem.text for problem in self.problems if problem.severity == "error"]

    @property
    def ok(self) -> bool:
        """Say whether nothing stands in the way of a run."""
        return not self.errors

    @property
    def banner(self) -> str:
        """Return what a report must show at its top: the acknowledged errors, or nothing."""
        return " ".join(problem.text for problem in self.problems if problem.severity == "acknowledged")

    @property
    def notes(self) -> list[str]:
        """Return what the report of a run must show: the banner, then the warnings."""
        banner = [f"Leak, acknowledged as {self.digest}: {self.banner}"] if self.banner else []
        return banner + [problem.text for problem in self.problems if problem.severity == "warning"]

    def acknowledge(self, given: str) -> DataReport:
        """Return the report with leaks turned from errors into a banner, where ``given`` is their digest."""
        if not given:
            return self
        if given != self.digest:
            own = self.digest or "there are none"
            note = f"The acknowledged digest {given!a} is not that of this data's leaks ({own})."
            return replace(self, problems=(*self.problems, Problem("warning", note)))
        settled = (p._replace(severity="acknowledged") if p.leak else p for p in self.problems)
        return replace(self, problems=tuple(settled))

    def require(self) -> DataReport:
        """Raise ``DataError`` where a run must not start; return the report otherwise."""
        if self.errors:
            hint = f"To go on knowingly: --acknowledge-leak {self.digest}." if self.digest else ""
            raise DataError(" ".join(self.errors), path=self.name, hint=hint)
        return self

    def __str__(self) -> str:
        lines = [f"{problem.severity:<13}{problem.text}" for problem in self.problems]
        lines += [f"digest       {self.digest} (acknowledges the leaks)"] if self.digest else []
        return "\n".join([f"{self.name}: data {self.identity}", *(lines or ["ok           nothing found"])])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = asdict(self) | {"schema": SCHEMA}
        return plain | {"pairs": [list(p) for p in self.pairs], "problems": [list(p) for p in self.problems]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataReport:
        """Return the report that ``as_dict`` wrote; anything else is a ``CheckpointError``."""
        try:
            if values["schema"] != SCHEMA:
                raise ValueError(f"schema {values['schema']}, wanted {SCHEMA}")
            texts = [str(values[key]) for key in ("name", "identity", "digest")]
            pairs = tuple(Pair(*row) for row in values["pairs"])
            problems = tuple(Problem(*row) for row in values["problems"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"not a data report ({error}).") from None
        return cls(texts[0], texts[1], pairs, problems, texts[2])


def contact_sheet(splits: Splits, each: int = 8) -> tuple[list[Tensor], list[str]]:
    """Return ``each`` images of every split, evenly spaced, and a title for each."""
    spread = {s.split: torch.linspace(0, max(0, len(s) - 1), min(each, len(s))).round().int() for s in splits.all()}
    shown = [(s, row) for s in splits.all() for row in spread[s.split].tolist()]
    return [s.images[row] for s, row in shown], [f"{s.split} · {s.class_names[row]}" for s, row in shown]


def pair_images(report: DataReport, splits: Splits, most: int = 16) -> tuple[list[Tensor], list[str]]:
    """Return the images of the first ``most`` pairs, the two of a pair side by side, and a title for each."""
    sets = {s.split: s for s in splits.all()}
    shown = [(pair.kind, *place) for pair in report.pairs[:most] for place in (pair[1:3], pair[4:6])]
    images = [sets[split].images[sets[split].index == index][0] for _, split, index in shown]
    return images, [f"{kind} · {split} {index}" for kind, split, index in shown]


def check_splits(splits: Splits, *, acknowledged: str = "", cache: Path | str | None = None) -> DataReport:
    """Check roles, duplicates, near duplicates and blank images of all splits.

    ``acknowledged`` is the digest of leaks that the user has seen and accepts; with a folder
    ``cache`` the same data are checked once.
    """
    path = Path(cache) / f"datacheck-{splits.manifest.name}-{splits.identity}.json" if cache else None
    if path and path.exists():
        try:
            return DataReport.from_dict(read_json(path)).acknowledge(acknowledged)
        except CheckpointError as error:
            warnings.warn(f"{path.name}: {error} The data are checked anew.", stacklevel=2)
    report = _checked(splits)
    if path:
        write_json(path, report.as_dict())
    return report.acknowledge(acknowledged)


def _checked(splits: Splits) -> DataReport:
    pairs = list(_exact_pairs(splits))
    known = {pair[1:3] + pair[4:6] for pair in pairs}
    pairs += [pair for pair in _near_pairs(splits) if pair[1:3] + pair[4:6] not in known]
    pairs.sort(key=lambda p: (not p.fitted, not p.across, p.kind, p[1:]))
    leaks = [pair[:7] for pair in pairs if pair.fitted]
    problems = [*_role_problems(splits), *_pair_problems(pairs), *_blank_problems(splits)]
    return DataReport(
        splits.manifest.name,
        splits.identity,
        tuple(pairs[:MOST_PAIRS]),
        tuple(problems),
        digest([splits.identity, leaks]) if leaks else "",
    )


# --- findings in words -------------------------------------------------------------------------------


def _role_problems(splits: Splits) -> Iterator[Problem]:
    if splits.train.anomalous.all():
        yield Problem("error", "train holds no normal image.")
    for images in (splits.val, splits.test):
        ill = int(images.anomalous.sum())
        if not len(images) and images.split == "val":
            yield Problem("warning", "There is no val split: nothing to select on, no threshold.")
        elif ill in (0, len(images)):
            yield Problem("error", f"{images.split} holds {len(images) - ill} normal and {ill} anomalous images.")


def _pair_problems(pairs: Iterable[Pair]) -> Iterator[Problem]:
    groups: dict[tuple, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.fitted, pair.kind, pair.first_split, pair.second_split].append(pair)
    for (fitted, kind, first, second), found in groups.items():
        where = f"between {first} and {second}" if first != second else f"within {first}"
        what = "fitted (healthy training) images are concerned" if fitted else "no fitted image is concerned"
        what = "" if first == second else f"; {what}"
        text = f"{len(found)} {kind} duplicate{'s' if len(found) > 1 else ''} {where}{what}, first {found[0]}."
        yield Problem("error" if fitted else "warning", text, leak=fitted)


def _blank_problems(splits: Splits) -> Iterator[Problem]:
    for images in splits.all():
        flat = images.images.flatten(1)
        blank = (flat.amax(1) == flat.amin(1)).nonzero()[:, 0].tolist() if len(images) else []
        if blank:
            share = f"{len(blank)} of {len(images)} images ({len(blank) / len(images):.1%})"
            yield Problem("warning", f"{images.split}: {share} are constant, first {int(images.index[blank[0]])}.")


# --- duplicates --------------------------------------------------------------------------------------


def _pair(kind: str, a: ImageSet, i: int, b: ImageSet, j: int, *, similarity: float = 1.0) -> Pair:
    fitted = a.split == "train" and b.split != "train" and not a.anomalous[i]
    left = (a.split, int(a.index[i]), str(a.class_names[i]))
    right = (b.split, int(b.index[j]), str(b.class_names[j]))
    return Pair(kind, *left, *right, round(similarity, 4), bool(fitted))


def _exact_pairs(splits: Splits) -> Iterator[Pair]:
    """Yield, for every image seen before, its first twin in its own split and in each earlier one.

    Among the twins in train a healthy one counts, too, even where it is not the first.
    """
    seen: dict[bytes, dict[tuple, tuple[ImageSet, int]]] = defaultdict(dict)
    for images in splits.all():
        for row, pixels in enumerate(images.images.numpy()):
            firsts = seen[hashlib.sha256(pixels.tobytes()).digest()]
            told = False
            for (split, _), (other, i) in firsts.items():
                if split != images.split or not told:
                    yield _pair("exact", other, i, images, row)
                told |= split == images.split
            firsts.setdefault((images.split, bool(images.anomalous[row])), (images, row))


def _near_pairs(splits: Splits) -> Iterator[Pair]:
    """Yield, for every val and test image, the nearest picture of each earlier split if it is the same one."""
    train, val, test = splits.all()
    for reference in (train.normal(), train.take(train.anomalous)):
        for images in (val, test):
            yield from _nearest_twins(reference, images)
    yield from _nearest_twins(val, test)


def _nearest_twins(reference: ImageSet, images: ImageSet, *, rows: int = 512) -> Iterator[Pair]:
    if not len(reference) or not len(images):
        return
    windows = _normalised(_shrunk(reference.images)[:, 1:-1, 1:-1])
    for start in range(0, len(images), rows):
        similarity = _best_over_shifts(_shrunk(images.images[start : start + rows]), windows)
        nearest, position = similarity.max(1)
        median = similarity.median(1).values
        # sets of one anatomy are alike throughout: a twin is far closer than the set's usual image
        twin = (nearest >= SAME) | ((nearest >= NEAR) & ((1 - nearest) * CLOSER <= 1 - median))
        for j in twin.nonzero()[:, 0].tolist():
            i = int(position[j])
            yield _pair("near", reference, i, images, start + j, similarity=min(1.0, float(nearest[j])))


def _shrunk(images: Tensor, most: int = 32) -> Tensor:
    """Return grey images (N, S, S) of at most ``most`` px without fine grain: what survives JPEG."""
    grey = images.mean(1, keepdim=True)
    if grey.shape[-1] > most:
        grey = F.interpolate(grey, (most, most), mode="area")
    bell = torch.tensor([1.0, 2.0, 1.0]) / 4
    return F.conv2d(grey, (bell[:, None] * bell)[None, None])[:, 0]


def _normalised(windows: Tensor) -> Tensor:
    """Return (N, P) rows of mean 0 and length 1; a constant window becomes zeros."""
    flat = windows.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    length = flat.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-4, flat / length.clamp_min(1e-4), torch.zeros_like(flat))


def _best_over_shifts(images: Tensor, windows: Tensor) -> Tensor:
    """Return the correlation (N, M) of images (N, S, S) with inner windows (M, P), the best of 3 × 3 shifts."""
    size, best = images.shape[-1] - 2, None
    for dy in range(3):
        for dx in range(3):
            found = _normalised(images[:, dy : dy + size, dx : dx + size]) @ windows.T
            best = found if best is None else torch.maximum(best, found)
    return best
