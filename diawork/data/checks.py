"""Is the data set fit for an honest experiment? Duplicates within and across splits, roles, blank images.

A duplicate across splits is an error where the model is fitted on one of the two (a healthy training
image), unless its digest is acknowledged, and a warning elsewhere.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from diawork.base.errors import CheckpointError, DataError
from diawork.base.files import digest, read_json, write_json
from diawork.data.duplicates import Pair, find_pairs, shown_by
from diawork.data.images import ImageSet, Splits

MOST_PAIRS = 1000  # listed in a report
RULE = 2  # raised where the same data are judged otherwise than before


class Problem(NamedTuple):
    """One finding in one sentence."""

    severity: str  # "error", "warning" or "acknowledged"
    text: str
    leak: bool = False  # a fitted image stands in an evaluation split, too


@dataclass(frozen=True)
class DataReport:
    """The outcome of a check of all splits."""

    name: str
    identity: str  # of the data
    pairs: tuple[Pair, ...]
    problems: tuple[Problem, ...]
    digest: str  # of the pairs that concern a fitted image; "" where there are none
    schema: Literal[1] = 1

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

    @property
    def duplicates(self) -> str:
        """Say how many duplicates there are: exact ones within and across splits, near ones across."""
        if not self.pairs:
            return "none: exact ones were sought within and across splits, near ones across"
        groups = Counter((pair.kind, pair.first_split, pair.second_split) for pair in self.pairs)
        counts = ", ".join(
            f"{n:,} {kind} {f'within {first}' if first == second else f'between {first} and {second}'}"
            for (kind, first, second), n in groups.items()
        )
        return counts + (f" (of the first {MOST_PAIRS:,} pairs)" if len(self.pairs) == MOST_PAIRS else "")

    def acknowledge(self, leaks: str) -> Self:
        """Return the report with leaks turned from errors into a banner, where ``leaks`` is their digest."""
        if not leaks:
            return self
        if leaks != self.digest:
            present = self.digest or "there are none"
            note = f"The acknowledged digest {leaks!a} is not that of this data's leaks ({present})."
            return replace(self, problems=(*self.problems, Problem("warning", note)))
        settled = (p._replace(severity="acknowledged") if p.leak else p for p in self.problems)
        return replace(self, problems=tuple(settled))

    def require(self) -> Self:
        """Raise ``DataError`` where a run must not start; return the report otherwise."""
        if self.errors:
            hint = f"To leave them out: --drop-leaks; to go on knowingly: --acknowledge-leak {self.digest}."
            raise DataError(" ".join(self.errors), path=self.name, hint=hint if self.digest else "")
        return self

    def __str__(self) -> str:
        lines = [f"{problem.severity:<13}{problem.text}" for problem in self.problems]
        lines += [f"digest       {self.digest} (acknowledges the leaks)"] if self.digest else []
        return "\n".join([f"{self.name}: data {self.identity}", *(lines or ["ok           nothing found"])])

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Return the report whose fields ``values`` are; anything else is a ``CheckpointError``."""
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise CheckpointError(f"not a data report ({first['loc']}: {first['msg']}).") from None


def contact_sheet(splits: Splits, each: int = 8) -> tuple[list[Tensor], list[str]]:
    """Return ``each`` images of every split, evenly spaced, and a title for each."""
    chosen = []
    for images in splits.all():
        rows = torch.linspace(0, max(0, len(images) - 1), min(each, len(images))).round().int()
        chosen += [(images.images[row], f"{images.split} · {images.class_names[row]}") for row in rows]
    return [image for image, _ in chosen], [title for _, title in chosen]


def pair_images(report: DataReport, splits: Splits, most: int = 16) -> tuple[list[Tensor], list[str]]:
    """Return the images of the first ``most`` pairs, the two of a pair side by side, and a title for each."""
    sets = {images.split: images for images in splits.all()}
    places = [(pair.kind, split, index) for pair in report.pairs[:most] for split, index in pair.places]
    pictures = [sets[split].images[sets[split].index == index][0] for _, split, index in places]
    return pictures, [f"{kind} · {split} {index}" for kind, split, index in places]


def check_splits(splits: Splits, *, acknowledged: str = "", cache: Path | str | None = None) -> DataReport:
    """Check roles, duplicates, near duplicates and blank images; with a folder ``cache`` the same data once.

    ``acknowledged`` is the digest of leaks that the user has seen and accepts.
    """
    path = Path(cache) / f"datacheck-{RULE}-{splits.manifest.name}-{splits.identity}.json" if cache else None
    if path and path.exists():
        try:
            return DataReport.from_dict(read_json(path)).acknowledge(acknowledged)
        except CheckpointError as error:
            warnings.warn(f"{path.name}: {error} The data are checked anew.", stacklevel=2)
    report = _checked(splits)
    if path:
        write_json(path, asdict(report))
    return report.acknowledge(acknowledged)


def check_source(report: DataReport, splits: Splits, train: ImageSet) -> DataReport:
    """Add to the report what the images ``train`` of another set, which a diffusion model learns, show of val and test.

    It is a leak as one in the set's own training images is.
    """
    pairs = shown_by(train, splits)
    if not pairs:
        return report
    what = f"The diffusion model's data set {train.name} shows {len(pairs)} of this set's val and test images"
    problem = Problem("error", f"{what}, first {pairs[0]}; name another under diffusion.dataset.", leak=True)
    mark = digest([report.digest, train.identity, len(pairs)])
    return replace(report, problems=(*report.problems, problem), digest=mark)


def _checked(splits: Splits) -> DataReport:
    pairs, train = find_pairs(splits), splits.train
    leaking = np.flatnonzero(seen_again(splits) & ~train.anomalous)  # rows whose patient is evaluated, too
    leaks: list[Any] = [pair[:7] for pair in pairs if pair.fitted]
    leaks += [["patient", int(index)] for index in train.index[leaking]]
    leak_digest = digest([splits.identity, leaks]) if leaks else ""
    problems = (*_problems(splits, pairs, leaking), *_constant_images(splits))
    return DataReport(splits.manifest.name, splits.identity, tuple(pairs[:MOST_PAIRS]), problems, leak_digest)


def _problems(splits: Splits, pairs: list[Pair], leaking: np.ndarray) -> Iterator[Problem]:
    """Yield what is wrong with roles, labels, duplicates and patients, in this order."""
    for what in missing_roles(splits):
        yield Problem("error", what)
    if not len(splits.val):
        yield Problem("warning", "There is no val split: nothing to select on, no threshold.")
    twice = [pair for pair in pairs if pair.kind == "exact" and pair.first_class != pair.second_class]
    if twice:
        count = f"{len(twice)} image{'s stand' if len(twice) > 1 else ' stands'} under two labels, first {twice[0]}"
        yield Problem("error", f"{count}; name the wrong one under drop in the manifest.")
    groups: dict[tuple, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.fitted, pair.kind, pair.first_split, pair.second_split].append(pair)
    for (fitted, kind, first, second), alike in groups.items():
        if kind == "alike":
            what = f"Pairs between {first} and {second} that look alike and differ in their fine texture"
            yield Problem("warning", f"{what}: {len(alike)}, first {alike[0]}. They are not one picture; look at them.")
            continue
        count = f"{len(alike)} {kind} duplicate{'s' if len(alike) > 1 else ''}"
        concerned = "fitted (healthy training) images are concerned" if fitted else "no fitted image is concerned"
        where = f"within {first}" if first == second else f"between {first} and {second}; {concerned}"
        yield Problem("error" if fitted else "warning", f"{count} {where}, first {alike[0]}.", leak=fitted)
    if len(leaking) and splits.train.patients is not None:
        patients = np.unique(splits.train.patients[leaking])
        who = f"{len(patients)} patient{'s' if len(patients) > 1 else ''} of {len(leaking)} healthy training images"
        yield Problem("error", f"{who} stand in val or test, too, first {patients[0]}.", leak=True)


def _constant_images(splits: Splits) -> Iterator[Problem]:
    for images in splits.all():
        if not len(images):
            continue
        flat = (rows.flatten(1) for rows in images.batches())
        blank = images.index[torch.cat([rows.amax(1) == rows.amin(1) for rows in flat]).numpy()]
        if len(blank):
            share = f"{len(blank)} of {len(images)} images ({len(blank) / len(images):.1%})"
            yield Problem("warning", f"{images.split}: {share} are constant, first {blank[0]}.")


def missing_roles(splits: Splits) -> Iterator[str]:
    """Say which splits the protocol cannot use: train needs normal images, an evaluation both roles."""
    if splits.train.anomalous.all():
        yield "train holds no normal image."
    for images in (splits.val, splits.test):
        anomalous = int(images.anomalous.sum())
        absent = images.split == "val" and not len(images)
        if anomalous in (0, len(images)) and not absent:
            yield f"{images.split} holds {len(images) - anomalous} normal and {anomalous} anomalous images."


def seen_again(splits: Splits) -> np.ndarray:
    """Say of each training image (N,) whether its patient stands in val or test, too."""
    others = [images.patients for images in (splits.val, splits.test) if images.patients is not None]
    if splits.train.patients is None or not others:
        return np.zeros(len(splits.train), bool)
    return np.isin(splits.train.patients, np.setdiff1d(np.concatenate(others), [""]))


def without_leaks(splits: Splits, *, cache: Path | str | None = None) -> Splits:
    """Return the splits without the healthy training images that stand, or whose patients stand, in val or test."""
    whole = splits
    while (report := check_splits(splits, cache=cache)).digest:
        train = splits.train
        duplicated = [pair.first_index for pair in report.pairs if pair.fitted]
        leaking = np.isin(train.index, duplicated) | (seen_again(splits) & ~train.anomalous)
        splits = replace(splits, train=train.take(~leaking))
    rows = np.setdiff1d(whole.train.index, splits.train.index)
    if not len(rows):
        return whole
    names = rows if whole.train.files is None else whole.train.files[np.isin(whole.train.index, rows)]
    some = ", ".join(map(str, names[:10])) + (", …" if len(rows) > 10 else "")
    what = f"{len(rows)} of {len(whole.train.normal())} healthy training images, which val or test shows, too"
    return replace(splits, notes=[*splits.notes, f"Left out with data.drop_leaks: {what} (train {some})."])


class Finding(NamedTuple):
    """What was found of a set on disk, and whether it is as the manifest says."""

    good: bool
    text: str


def verify(splits: Splits) -> list[Finding]:
    """Say of splits that were read and counted in full whether their checksum is the published one."""
    manifest, md5, n = splits.manifest, splits.md5, sum(len(images) for images in splits.all())
    for images in splits.all():
        for _ in images.batches():  # what a store holds is held against its digests as it is read
            pass
    counts = "counts as in the manifest" if manifest.sizes else "the manifest states no counts"
    read = Finding(True, f"{n:,} images of {manifest.name}, every one readable; {counts}")
    if md5 is None or manifest.md5 is None:
        return [read, Finding(True, "no checksum is published")]
    same = "as published" if md5 == manifest.md5 else f"published {manifest.md5}"
    return [read, Finding(md5 == manifest.md5, f"{manifest.place}: MD5 {md5}, {same}")]
