"""A finished run applied to new images: scores, what they mean beside healthy ones, maps, and a table that goes on."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diawork.base.compute import Compute
from diawork.base.config import DRAWS, ExperimentConfig, validated
from diawork.base.errors import CheckpointError, DiaworkError, ResourceError, UsageError, printable
from diawork.base.files import as_json, read_json, write_json, write_text
from diawork.base.locks import locked
from diawork.base.registry import entry_of
from diawork.data.datasets import load
from diawork.data.images import ImageSet, at_once
from diawork.data.manifests import FILE_KINDS, MOST_CUT, load_manifest
from diawork.data.preprocess import Cut, Picture
from diawork.data.readers.listing import image_files
from diawork.data.readers.picture import Preprocessing, file_and_frame, slices
from diawork.data.splits import cell
from diawork.detectors.base import Detector
from diawork.evaluation.conformal import FALSE_ALARMS, Alarm, Calibration, false_discoveries, images_needed
from diawork.runs.resolve import Resolved
from diawork.runs.run import Run

BATCH = 256  # images of 32 px scored at once, fewer of larger ones
COLUMNS = ("image", "score", "share_below", "p_value", "alarm", "nearest")
HEADS = {"left-out": "image,reason", "volumes": "volume,slices,score,highest"}  # of the tables beside the scores
MOST_OF_ONE = 10  # times the share of a set's values that may lie outside the window, in one image


class Scored(NamedTuple):
    """A batch of files: a row for each that could be read, its pixels (n, C, H, W), and why others could not."""

    rows: list[dict[str, Any]]
    images: Tensor
    left_out: dict[str, str]
    cut: Cut  # to the run's intensity window
    said: Counter[str]  # what was done to pictures → to how many


class Outcome(NamedTuple):
    """What a table does not say: its files by name, those left out and why, what was cut and done to pictures."""

    files: dict[str, str]
    left_out: dict[str, str]
    cut: Cut
    said: Counter[str]


class Prediction(NamedTuple):
    """A row an image, in the order asked for, and the files left out with the reason."""

    scores: pd.DataFrame
    left_out: dict[str, str]


@dataclass(frozen=True)
class Predictor:
    """A fitted detector with all it takes to score a loose file as its run scored its own images."""

    run: Run
    detector: Detector
    cfg: ExperimentConfig
    opening: Preprocessing
    calibration: Calibration | None  # by the run's healthy validation images, where it has any
    alarm: Alarm | None  # by them, at ``FALSE_ALARMS``; None where they are too few
    data_root: Path | str | None = None  # where the run's training images lie, if not where they are searched

    def predict(self, images: Any, *, progress: bool = True) -> Prediction:
        """Score files, folders of them, or tables that list them; higher = more anomalous.

        Columns: ``image``, ``score``, ``share_below`` (of healthy validation images), ``p_value`` (conformal),
        ``alarm`` and ``nearest``, the file of the nearest healthy training image (its place, e.g. "train/211", where
        it is no file of its own or the training images are not at hand), where the detector knows it.
        """
        sources = [images] if isinstance(images, str | Path) else list(images)
        rows, (files, left_out) = [], self.files(sources)
        for batch in self.batches(files, progress=progress):
            rows += batch.rows
            left_out |= batch.left_out
        return Prediction(pd.DataFrame(rows, columns=list(COLUMNS)), left_out)

    def files(self, sources: Sequence[Path | str]) -> tuple[list[str], dict[str, str]]:
        """Return the files meant, of volumes "file#z12" for some slices, and of what kind those not used are."""
        unused: dict[str, str] = {}
        files = image_files(sources, unused)
        if self.opening.frame is None:
            files = [part for file in files for part in _slices(file)]
        return files, {cell(file): f"not used: {kind}" for file, kind in unused.items()}

    def read(self, file: str) -> Picture:
        """Return what "path" or "path#z12" names as the run saw its own; what exists under the whole name is a file."""
        return self.opening.read(*file_and_frame(file))

    def batches(self, files: Sequence[str], *, progress: bool = True) -> Iterator[Scored]:
        """Yield the files scored, so many at a time that memory stays the same however many there are."""
        side = self.opening.size
        step = at_once(torch.empty(0, 1, side, side), BATCH)
        with tqdm(total=len(files), desc="scoring", unit="image", disable=None if progress else True) as bar:
            for start in range(0, len(files), step):
                some = files[start : start + step]
                yield self._batch(some)
                bar.update(len(some))

    def _batch(self, files: Sequence[str]) -> Scored:
        names, images, left_out, cut, said = [], [], {}, Cut(), Counter[str]()
        for file in files:
            try:
                picture = self.read(file)
                if self.opening.intensity and picture.cut.n:
                    picture.cut.words(self.opening.intensity, most=min(1.0, MOST_OF_ONE * self.opening.cut))
                cut = cut.plus(picture.cut)
                images.append(picture.image)
                names.append(cell(file))
                said.update([picture.note] if picture.note else [])
            except DiaworkError as error:
                left_out[cell(file)] = printable(f"{error.what} {error.hint}".rstrip())
        if not images:
            return Scored([], torch.empty(0), left_out, cut, said)
        x = torch.from_numpy(np.stack(images))
        return Scored(self._rows(names, x), x, left_out, cut, said)

    def _rows(self, names: Sequence[str], x: Tensor) -> list[dict[str, Any]]:
        scores = self.detector.score(_loose(x))
        total = np.array([float(f"{value:.6g}") for value in scores.total])  # as the run's own are kept
        columns: dict[str, Any] = {"image": names, "score": total}
        if self.calibration is not None:
            known = self.calibration.scores
            columns["share_below"] = np.searchsorted(known, total) / len(known)
            columns["p_value"] = self.calibration.p_values(total)
        if self.alarm is not None:
            columns["alarm"] = [int(value > self.alarm.threshold) for value in total]
        if "nearest" in scores.parts and self.detector.healthy is not None:
            places = self.detector.healthy[scores.parts["nearest"][:, 0].astype(int)]
            columns["nearest"] = [self._training_files.get(int(place), f"train/{place}") for place in places]
        rows = pd.DataFrame(columns, columns=list(COLUMNS))
        return rows.astype({"score": float, "share_below": float, "p_value": float}).to_dict("records")

    def mapper(self) -> tuple[str, Callable[[Tensor], np.ndarray]]:
        """Return the best map of this detector in words, and what makes maps (n, H, W) of images (n, C, H, W)."""
        methods = self.detector.map_methods(None, None if self.detector.has_map else self.training_images)
        if not methods:
            hint = "Leave --maps out, or score with a detector that has maps, e.g. dia, rd4ad or patchcore."
            raise UsageError(f"{entry_of(self.cfg.detector).label} makes no anomaly maps.", hint=hint)
        name, make = next(iter(methods.items()))
        return name, lambda x: make(_loose(x))

    @cached_property
    def training_images(self) -> ImageSet | None:
        """Return the images that the run was fitted on; where they cannot be opened, a warning and None."""
        try:
            return load(self.cfg, self.data_root).train
        except DiaworkError as error:
            warnings.warn(f"the run's training images, which cannot be opened, stay out: {error}", stacklevel=2)
            return None

    @cached_property
    def _training_files(self) -> dict[int, str]:
        """Return place → file of the training images; empty where they have none, or cannot be opened."""
        with contextlib.suppress(DiaworkError):  # a set whose manifest is gone may be one of files
            if load_manifest(self.cfg.dataset).kind not in FILE_KINDS:
                return {}
        train = self.training_images
        if train is None or train.files is None:
            return {}
        return {int(place): cell(file) for place, file in zip(train.index, train.files, strict=True)}

    def neighbours(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the healthy training images (C, H, W) that ``nearest`` names, where they can be opened."""
        names = set(names)
        train = self.training_images if names else None
        if train is None:
            return {}
        named = {self._training_files.get(int(place), f"train/{place}"): row for row, place in enumerate(train.index)}
        return {name: train.images[named[name]].numpy() for name in names if name in named}

    def guarantees(self, p_values: np.ndarray) -> list[str]:
        """Say what holds of the alarms, and of the images of a batch with these p values (m,) that stand out."""
        if self.calibration is None:
            return []
        few = f"No alarm at {FALSE_ALARMS:.0%} of healthy images: that takes {images_needed(FALSE_ALARMS)} of them."
        alarm = f"An alarm is a score above {self.alarm.threshold:.4g}. {self.alarm.guarantee}" if self.alarm else few
        return [alarm, false_discoveries(p_values, self.calibration).sentence]

    @property
    def record(self) -> dict[str, Any]:
        """Return what scores belong to: the run, its draws, and how images are opened."""
        facts = {name: self.run.result().get(name) for name in ("dataset", "detector", "seed", "digest", "draws")}
        facts |= {"run": self.run.folder.name, "threshold": self.alarm and self.alarm.threshold, "healthy": 0}
        if self.calibration is not None:
            facts |= {"healthy": len(self.calibration.scores), "finest_p": self.calibration.finest}
        return facts | {"opening": as_json(self.opening._asdict())}


def load_detector(
    run: Run | Path | str, *, compute: Compute | None = None, data_root: Path | str | None = None
) -> Predictor:
    """Return the fitted detector of a finished run, ready to ``predict`` scores of image files."""
    run = run if isinstance(run, Run) else Run(run)
    if run.state() != "done":
        raise UsageError("this is no finished run.", path=run.folder, hint="Name a folder that holds a result.json.")
    result, record = run.result(), run.config()
    cfg = validated(Resolved, record["config"])
    entry = entry_of(cfg.detector)
    if entry.oracle:
        raise UsageError(f"{entry.label} chooses by the labels of the images it scores; new images have none.")
    if run.draws not in (None, DRAWS):
        what = f"the run was scored under draws {run.draws}, new images are scored under {DRAWS}."
        raise CheckpointError(what, path=run.folder, hint="Run its command again: the weights stay.")
    detector = entry.load().load(run.folder, compute=compute or Compute.auto())
    if "opening" in record["data"]:
        opening = Preprocessing.from_record(record["data"]["opening"])
    else:  # of an earlier version: as its manifest says
        opening = Preprocessing.of(load_manifest(cfg.dataset))
        opening = opening._replace(size=cfg.data.size or opening.size)
    val = result["metrics"].get("val")
    calibration = None if val is None else run.calibration()
    enough = calibration is not None and calibration.finest <= FALSE_ALARMS
    return Predictor(run, detector, cfg, opening, calibration, run.alarm(FALSE_ALARMS) if enough else None, data_root)


def _loose(x: Tensor) -> ImageSet:
    """Return images of which nothing is known as a set."""
    n = len(x)
    return ImageSet(x, np.full(n, ""), np.zeros(n, bool), np.arange(n), "new", "new images")


def _slices(file: str) -> list[str]:
    """Return the pictures of a file to score; one that cannot be read stands for itself."""
    try:
        return slices(file) if os.path.exists(file) else [file]
    except DiaworkError:
        return [file]


def of_volumes(scores: pd.DataFrame) -> pd.DataFrame:
    """Return a row a volume of which slices were scored: the mean of the highest tenth, at least of one."""
    parts = scores["image"].str.extract(r"^(?P<volume>.+)#[xyz]?\d+$").join(scores[["image", "score"]])
    rows = []
    for volume, of_one in parts.dropna(subset="volume").groupby("volume", sort=False):
        ranked = of_one.sort_values("score", ascending=False)
        score = ranked["score"].head(math.ceil(len(ranked) / 10)).mean()
        rows.append((volume, len(ranked), score, ranked["image"].iloc[0]))
    return pd.DataFrame(rows, columns=["volume", "slices", "score", "highest"])


def score_files(
    predictor: Predictor,
    sources: Sequence[Path | str],
    out: Path,
    *,
    on_batch: Callable[[Scored], Any] | None = None,
    again: Callable[[str], bool] = lambda image: False,
    progress: bool = True,
) -> Outcome:
    """Write a row an image to ``out`` (CSV), keeping those that it already has; return what is not in it.

    Beside it stand a JSON file of what the scores belong to and, where there are any, the files left out with
    their reasons and a row for each volume. ``on_batch`` sees each batch before its rows are written; an image that
    has its row already is scored once more where ``again`` says so. Nothing that is not of ``score`` is replaced.
    """
    files, left_out = predictor.files(sources)
    if not files:
        raise UsageError(f"no image among {', '.join(map(str, sources))}.")
    beside = {name: out.with_name(f"{out.stem}-{name}.csv") for name in HEADS}
    for name, path in beside.items():
        if path.exists() and not path.read_bytes().startswith(HEADS[name].encode()):
            raise UsageError("this file is not of `diawork score`.", path=path, hint="Name another table with --csv.")
    cut, said, lock = Cut(), Counter[str](), out.with_name(f".{out.name}.lock")
    with locked(lock):
        done = _resumed(out, predictor.record)
        waiting = [file for file in files if cell(file) not in done or again(cell(file))]
        for batch in predictor.batches(waiting, progress=progress):
            if on_batch is not None and batch.rows:
                on_batch(batch)
            left_out |= batch.left_out
            cut = cut.plus(batch.cut)
            said.update(batch.said)
            rows = pd.DataFrame([row for row in batch.rows if row["image"] not in done], columns=list(COLUMNS))
            _append(out, rows.to_csv(index=False, header=False, float_format="%.6g", lineterminator="\n"))
        reasons = pd.DataFrame(left_out.items(), columns=["image", "reason"])
        for name, rows in (("left-out", reasons), ("volumes", of_volumes(read_scores(out)))):
            beside[name].unlink(missing_ok=True)
            if len(rows):
                write_text(beside[name], rows.to_csv(index=False, float_format="%.6g"))
    lock.rmdir()
    return Outcome({cell(file): file for file in files}, left_out, cut, said)


def read_scores(path: Path) -> pd.DataFrame:
    """Return the table that ``score_files`` writes."""
    return pd.read_csv(path, dtype={"image": str, "nearest": str}, keep_default_na=False, na_values=[""])


def _resumed(out: Path, record: dict[str, Any]) -> set[str]:
    """Return the images that ``out`` has a row of, its torn last line removed; a new file gets its head."""
    beside = out.with_suffix(".json")
    found = read_json(beside) if beside.exists() else {}
    known: dict[str, Any] = found if isinstance(found, dict) else {"": found}
    ours = {"run", "opening"} <= known.keys() and isinstance(known["opening"], dict)
    if out == beside or (known and not ours):
        hint = "Name another table with --csv, in a folder of its own."
        raise UsageError("this file is not of `diawork score`, which would replace it.", path=beside, hint=hint)
    if not out.exists():
        write_json(beside, record)
        write_text(out, ",".join(COLUMNS) + "\n")
        return set()
    if not ours or known | {"opening": {"cut": MOST_CUT} | known["opening"]} != record:
        whose = f"is of {known['run']}" if ours else "is not of `diawork score`"
        raise UsageError(f"this file {whose}.", path=out, hint="Name another with --csv, or remove it.")
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(out, len(whole))
    head, *rows = csv.reader(io.StringIO(whole.decode("utf-8"), newline=""))
    if tuple(head) != COLUMNS:
        raise UsageError("this file has other columns.", path=out, hint="Name another with --csv, or remove it.")
    return {row[0] for row in rows}


def _append(out: Path, text: str) -> None:
    try:
        with open(out, "a", encoding="utf-8", newline="") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
    except OSError as error:
        hint = "Free some space; the rows already written are kept."
        raise ResourceError(f"cannot be written ({error.strerror or error}).", path=out, hint=hint) from None
