"""Run folders: config, status, metrics, scores, result; found again by the digest of config and data."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from diawork.base.config import DRAWS, ExperimentConfig
from diawork.base.errors import CheckpointError, DataError, DiaworkError, Interrupted, UsageError
from diawork.base.files import (
    PACKAGE,
    digest,
    nulled,
    read_arrays,
    read_json,
    read_record,
    remove_orphans,
    write_arrays,
    write_json,
    write_text,
)
from diawork.base.locks import locked
from diawork.base.registry import BUILT_IN, is_control
from diawork.base.shown import Shown
from diawork.evaluation.conformal import Alarm, Calibration, alarm, calibrate

SCHEMA = 1
ORACLE = "oracle_epochs.json"  # test AUROC by epoch and what could choose one, where train.track_test asked for it
OPEN = ConfigDict(extra="allow")  # keys of other versions, which nobody here knows, are passed over
_PACKAGES = ("torch", "torchvision", "denoising-diffusion-pytorch", "ema-pytorch", "kornia", "timm", "numpy")


def _numbers(metrics: Any) -> Any:
    """Return a split's metrics without what is no number; ends of an interval that are null are NaN."""
    if not isinstance(metrics, dict):
        return metrics
    ends = {key: math.nan for key, one in metrics.items() if one is None and key.endswith(("_low", "_high"))}
    return {key: one for key, one in metrics.items() if isinstance(one, int | float)} | ends


@with_config(OPEN)
class Metrics(TypedDict):
    """What a split's scores are worth; with the other metrics, and the ends of their intervals."""

    auroc: float
    auroc_low: float
    auroc_high: float
    threshold: NotRequired[float]


@with_config(OPEN)
class Result(TypedDict):
    """``result.json``; what an older version did not write need not be there."""

    schema: Literal[1]
    detector: str  # its label
    seed: int
    digest: NotRequired[str]
    oracle: NotRequired[bool]
    control: NotRequired[bool]
    draws: NotRequired[int | None]
    metrics: dict[str, Annotated[Metrics, BeforeValidator(_numbers)]]
    settings: NotRequired[dict[str, Any]]


@with_config(OPEN)
class Data(TypedDict):
    """What a run records about its data."""

    name: str
    identity: str
    opening: NotRequired[dict[str, Any]]  # how its images were read, for images to come


@with_config(OPEN)
class Asked(TypedDict):
    """``config.json``."""

    config: dict[str, Any]
    data: Data
    digest: str
    versions: NotRequired[dict[str, Any]]
    compute: NotRequired[dict[str, Any]]


@with_config(OPEN)
class Status(TypedDict):
    """``status.json``."""

    state: str
    error: NotRequired[str]


def runs_root(root: Path | str | None = None) -> Path:
    """Return where runs live: ``root``, else $DIAWORK_HOME, else ./runs."""
    return Path(root or os.environ.get("DIAWORK_HOME") or "runs")


@cache
def code_version() -> str:
    """Return the digest of the package's own source: two runs with the same one ran the same code."""
    files = sorted(PACKAGE.rglob("*.py"))
    return digest([(str(p.relative_to(PACKAGE)), p.read_text("utf-8")) for p in files], 10)


def versions() -> dict[str, str]:
    """Return the versions that a run records."""
    known = {"diawork": "not installed", "code": code_version(), "python": platform.python_version()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        known["diawork"] = metadata.version("diawork")
    return known | {name: metadata.version(name) for name in _PACKAGES}


def slug(text: str) -> str:
    """Return a harmless, short folder name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "x"


def find_runs(root: Path | str) -> list[Run]:
    """Return the runs at or below a folder, finished or not, in the order of their names."""
    if not Path(root).is_dir():
        raise UsageError("this folder of runs does not exist.", path=root)
    files = [path for name in ("config.json", "status.json", "result.json") for path in Path(root).rglob(name)]
    files = [path for path in files if not any((folder / "model_index.json").exists() for folder in path.parents[:2])]
    return [Run(folder) for folder in sorted({path.parent for path in files})]  # none of a model of diffusers


def known_patients(patients: np.ndarray | None) -> np.ndarray | None:
    """Return the patient of each image, or None where one is not known: each image then stands for itself."""
    return patients if patients is not None and all(patients) else None


class Run(Shown):
    """One run's folder. Its ``result.json`` says that it is done; nothing else does."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @classmethod
    def create(cls, root: Path | str, cfg: ExperimentConfig, *, data: dict[str, Any], label: str, compute: dict) -> Run:
        """Open the run of this config on this data under ``root``, or make it.

        A difference in code or arithmetic since it was made is warned about, not refused.
        """
        identity = cfg.digest(data["identity"])
        run = cls(Path(root) / f"{slug(data['name'])}-{slug(label)}-s{cfg.seed}-{identity}")
        made_with = {"versions": versions(), "compute": compute}
        if (run.folder / "config.json").exists():
            then = run.config()
            changed = [
                f"{name} {then.get(part, {}).get(name)} → {value}"
                for part, values in made_with.items()
                for name, value in values.items()
                if then.get(part, {}).get(name) != value
            ]
            if changed:
                warnings.warn(f"run {run.folder.name} was made with {', '.join(changed)}", stacklevel=2)
            return run
        created = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"config": cfg.model_dump(mode="json"), "data": data, "created": created, "label": label}
        write_json(run.folder / "config.json", record | {"digest": identity} | made_with)
        return run

    def shown(self) -> tuple[str, Mapping[str, object]]:
        """Return what was run, its AUROC where it is finished, and its folder."""
        known = self.config()
        rows: dict[str, object] = {"data set": known["data"]["name"], "state": "not finished"}
        if (self.folder / "result.json").exists():
            split, metrics = self.primary_split, self.result()["metrics"][self.primary_split]
            ends = f"95 % interval {metrics['auroc_low']:.3f} to {metrics['auroc_high']:.3f}"
            rows["state"] = f"finished: {split} AUROC {metrics['auroc']:.3f}, {ends}"
        return f"run of {known.get('label', self.folder.name)}", rows | {"folder": self.folder}

    def config(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        return dict(read_record(Asked, self.folder / "config.json"))

    def result(self) -> dict[str, Any]:
        """Return the content of ``result.json``; ``CheckpointError`` where the run is not finished.

        The ends of an interval that cannot be given, null in the file, are NaN.
        """
        result: dict[str, Any] = dict(read_record(Result, self.folder / "result.json"))
        settings = result.get("settings", {})  # of older versions: with the sections of all detectors
        own = str(settings.get("detector"))
        kept = (key for key in settings if (section := key.partition(".")[0]) == own or section not in BUILT_IN)
        return result | {"settings": {key: settings[key] for key in kept}}

    @property
    def done(self) -> bool:
        """Say whether a valid result was committed."""
        with contextlib.suppress(DiaworkError):
            return bool(self.result())
        return False

    @property
    def draws(self) -> int | None:
        """Return the scheme that a finished run's scores were drawn by; None where scoring draws nothing."""
        result = self.result()
        control = result.get("control", is_control(result["detector"]))
        return None if control else result.get("draws", 1)

    @property
    def current(self) -> bool:
        """Say whether the run is done and its images were scored as they are scored today."""
        return self.done and self.draws in (None, DRAWS)

    @property
    def files(self) -> list[Path]:
        """Return what says what was asked and what came of it: config, result and, in a cell's run, its notebook."""
        return [self.folder / name for name in ("config.json", "result.json", "executed.ipynb")]

    def state(self) -> str:
        """Return "done" where there is a result, else why there is none, e.g. "failed: out of memory"."""
        if (self.folder / "result.json").exists():
            return "done"
        if not (self.folder / "status.json").exists():
            return "never started"
        try:
            status = read_record(Status, self.folder / "status.json")
        except CheckpointError:
            return "unknown"
        state = "no result" if status["state"] == "done" else status["state"]
        return f"{state}: {status['error']}" if status.get("error") else state

    @contextlib.contextmanager
    def working(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the run's lock and keep ``status.json`` true: running, then done, interrupted or failed.

        With ``wait`` another process that makes the same run is waited for; the run may be done then.
        """
        with locked(self.folder, wait=wait):
            remove_orphans(self.folder)
            self._status("running")
            try:
                yield
            except (Interrupted, KeyboardInterrupt):
                self._status("interrupted")
                raise
            except BaseException as error:
                with contextlib.suppress(DiaworkError):
                    self._status("failed", error=f"{type(error).__name__}: {error}")
                raise
            self._status("done" if self.done else "failed")

    def _status(self, state: str, **more: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"state": state, "updated": now, "pid": os.getpid(), "host": socket.gethostname(), **more}
        write_json(self.folder / "status.json", row)

    def write_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write ``metrics.jsonl``, one row a line."""
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    @property
    def primary_split(self) -> str:
        """Return the split that this run's numbers are about: test, or val where test was not scored (a search)."""
        return "test" if "test" in self.result()["metrics"] else "val"

    def scores(self, split: str | None = None) -> pd.DataFrame:
        """Return ``scores.csv`` of a split (default: the primary one), a row an image, ordered by index.

        Columns: index, class_name, anomalous (bool), score, the parts of detectors that have any, and p_value: small
        where few healthy validation images score as high (NaN where they calibrate, and in older runs).
        Raises ``DataError`` where the file is missing or damaged.
        """
        path = self.folder / "scores.csv"
        try:
            words = dict.fromkeys(("class_name", "patient", "split"), object)  # plain strings are read twice as fast
            scores = pd.read_csv(path, dtype=words, keep_default_na=False)
            scores = scores[scores.pop("split") == (split or self.primary_split)].sort_values(
                "index", ignore_index=True
            )
            p_value = pd.to_numeric(scores.pop("p_value")) if "p_value" in scores else math.nan
            truth = scores["anomalous"].astype(int).astype(bool)
            numbers = {"index": scores["index"].astype(int), "score": scores["score"].astype(float)}
            return scores.assign(anomalous=truth, p_value=p_value, **numbers)
        except (OSError, ValueError, LookupError) as error:
            raise DataError(f"the scores cannot be read ({error}).", path=path.name) from None

    def alarm(self, rate: float = 0.05, *, confidence: float | None = None) -> Alarm:
        """Return the threshold of ``conformal.alarm`` for at most ``rate`` of healthy images, with its guarantee."""
        if self.result().get("oracle"):
            raise UsageError("an oracle has no threshold to carry over.", path=self.folder.name)
        return alarm(self.calibration(), rate, confidence=confidence)

    def calibration(self) -> Calibration:
        """Return the scores of the healthy validation images, by patient where known, for p values of others."""
        val = self.scores("val")
        healthy = val[~val["anomalous"]]
        patients = known_patients(healthy["patient"].to_numpy() if "patient" in healthy else None)
        return calibrate(healthy["score"].to_numpy(), patients)

    def parts(self, split: str | None = None) -> dict[str, np.ndarray]:
        """Return the parts of the scores (N, K) by name, in the order of ``scores``; of a control there are none."""
        scores = self.scores(split)
        names = [column.rpartition("_")[0] for column in scores.columns if re.fullmatch(r"[a-z]+_\d+", column)]
        return {name: scores.filter(regex=rf"^{name}_\d+$").to_numpy(float) for name in dict.fromkeys(names)}

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl``, none of a detector without steps; a torn line is passed over."""
        path = self.folder / "metrics.jsonl"
        rows = []
        for line in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def decided(self, name: str, decide: Callable[[], Any]) -> Any:
        """Return what ``decide`` gave when it was called first for this run; the file ``name`` (JSON) keeps it."""
        path = self.folder / name
        if not path.exists():
            write_json(path, decide())
        return read_json(path)

    def track(self, epoch: int, aurocs: dict[str, float]) -> None:
        """Note AUROCs of an epoch, test's among them, in a file that nothing but tables named oracle reads."""
        write_json(self.folder / ORACLE, self.oracle_epochs() | {str(epoch): aurocs})

    def oracle_epochs(self) -> dict[str, dict[str, float]]:
        """Return the AUROCs by epoch, where test's was tracked: for tables named oracle, never for ours."""
        path = self.folder / ORACLE
        read = read_record(dict[str, float | dict[str, float]], path) if path.exists() else {}
        return {epoch: one if isinstance(one, dict) else {"test": one} for epoch, one in read.items()}

    def evidence(self) -> dict[str, np.ndarray]:
        """Return the pictures saved with the run, by name; of a control, which saves none, {}."""
        path = self.folder / "evidence.npz"
        return read_arrays(path) if path.exists() else {}

    def write_evidence(self, arrays: dict[str, np.ndarray]) -> None:
        """Write ``evidence.npz``."""
        write_arrays(self.folder / "evidence.npz", arrays)

    def write_scores(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write ``scores.csv``, one image a row; a result that spoke of other scores is withdrawn."""
        (self.folder / "result.json").unlink(missing_ok=True)
        write_text(self.folder / "scores.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))

    def finish(self, result: dict[str, Any]) -> None:
        """Commit the result; from here on the run is done."""
        write_json(self.folder / "result.json", nulled({"schema": SCHEMA, **result}))
