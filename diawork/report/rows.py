"""From run folders to the rows of a table: what finished, with intervals, and compared on the same images.

A number enters a row only from a finished run. Runs that differ in more than their seed are never averaged: the
settings in which they differ become part of the row's name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import AfterValidator, AliasChoices, AliasPath, BaseModel, BeforeValidator, Field

from diawork.base.errors import DataError, DiaworkError, UsageError, did_you_mean
from diawork.base.registry import DETECTORS, OLD_NAMES, is_control
from diawork.evaluation.comparison import SIDES, Comparison, adjust, compare_detectors, over_trainings
from diawork.evaluation.diagnostics import Kept, ShiftProbe, by_selection
from diawork.evaluation.metrics import sensitivity_at
from diawork.figures import Named, Styles, styles_of
from diawork.runs.run import Run, find_runs

METRICS = ("auroc", "auprc", "fpr95")  # with an interval each
AT_THRESHOLD = ("f1", "accuracy", "sensitivity", "specificity")
COSTS = ("ddpm_seconds", "bank_seconds", "fit_seconds", "score_seconds", "peak_memory_mb", "parameters")
NOISE = ("noise_share", "noise_auroc")  # what other augmented copies would do, where a detector draws any
NEEDED = ("auroc", "auroc_low", "auroc_high", "n_normal", "n_anomalous")  # a run without any other metric is read
EPOCHS = ("pseudo", "val", "last", "oracle")  # rules by which an epoch could be taken, where test was tracked
OF_A_MAP = ("pixel_auroc", "pixel_auroc_low", "pixel_auroc_high", "aupro", "aupro_low", "aupro_high")
CONTROL_MAPS = 3  # maps without a model, the last of every run's
SEARCHED = "scored on val alone, as part of a search"
OLDER = "scored under draws {}, others here under {}: run its command again, which scores it anew"
ENDS = ("_low", "_high", "_sd")  # of the columns that stand in their value's cell
PRINTED = {
    "auroc": "AUROC", "auprc": "AUPRC", "fpr95": "FPR at 95 % TPR", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO",
    "label": "detector", "a": "detector", "b": "against", "published": "published AUROC",
    "baseline_s": "released scheme, s", "ours_s": "ours, s", "f1": "F1", "low": "from", "high": "to",
    "ms_per_image": "ms an image", "images_per_s": "images/s", "mib": "MiB", "make_s": "s to make",
    "look_up_ms": "ms to look up", "step_s": "training step, s", "score_s": "score, s", "score_gmacs": "score, GMACs",
    "peak_mib": "peak, MiB", "fit_seconds": "training, s", "score_seconds": "scoring, s",
    "peak_memory_mb": "peak memory, MB",
}  # fmt: skip
DDPM_SEED = "diffusion.seed"
DDPM = "ddpm"  # what dissolves in DIA itself; anything else in its place is a method of its own


class Measured(NamedTuple):
    """A value, the ends of its interval and its spread over seeds, and each seed's; what is not known is NaN."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    sd: float = math.nan
    seeds: tuple[float, ...] = ()

    @property
    def known(self) -> bool:
        """Say whether there is a value."""
        return not math.isnan(self.value)

    @property
    def bounded(self) -> bool:
        """Say whether an interval can be given."""
        return not (math.isnan(self.low) or math.isnan(self.high))


class Place(NamedTuple):
    """Where a sweep puts a run: its row's name, the parts of that name, and its extent along x."""

    label: str
    parts: tuple[str, ...]
    x: tuple[float, float] | None


def _numbers(metrics: Any) -> Any:
    """Leave out of a split's metrics what is no number."""
    return {k: v for k, v in metrics.items() if isinstance(v, int | float)} if isinstance(metrics, Mapping) else metrics


def _without_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out of the settings what has a field of its own."""
    return {k: v for k, v in settings.items() if k not in ("dataset", "detector", "seed")}


def _config(*path: str, default: Any) -> Any:
    """Return a field that stands at a path in ``config.json``, where it stands there."""
    return Field(default, validation_alias=AliasPath("config", *path))


class Finished(BaseModel, arbitrary_types_allowed=True):
    """One finished run: what its ``result.json`` and ``config.json`` say, read once.

    What an older version did not write has a default; keys that nobody here knows are passed over.
    """

    run: Run
    place: Place | None = None
    dataset: str
    label: str = Field(validation_alias="detector")  # what people read
    detector: str = Field(  # name in the registry; 0.1 recorded the label alone
        validation_alias=AliasChoices("name", AliasPath("settings", "detector")),
        default_factory=lambda known: OLD_NAMES.get(known["label"], known["label"]),
    )
    operator: str | None = Field(None, validation_alias=AliasPath("settings", "dissolve.operator"))
    seed: int
    data: str = Field(validation_alias=AliasPath("config", "data", "identity"))  # identity of the images
    digest: str
    created: str = _config("created", default="")
    draws: int | None  # scheme of the augmented copies; None where scoring draws nothing
    control: bool = Field(default_factory=lambda known: is_control(known["label"]))
    oracle: bool
    selection: str
    weights: str
    preset: str | None = None  # None where the run does not say, as the two below
    color: str | None = None
    published_share: float | None = None  # of its paper's training steps; None: no training, or not known
    converged: bool = False  # its loss on held-out healthy images stopped falling
    paper_rule: str = Field(default_factory=lambda known: getattr(DETECTORS.get(known["detector"]), "paper_rule", ""))
    metrics: dict[str, Annotated[dict[str, float], BeforeValidator(_numbers)]]  # by split
    cost: dict[str, Any] = {}
    epochs: dict[str, float]  # test AUROC by ``EPOCHS``, where it was tracked
    check: Kept  # without labels
    shift_probe: ShiftProbe | None = None
    diffusion: dict[str, Any]  # on how many images its model learnt, how its strength was matched
    settings: Annotated[dict[str, Any], AfterValidator(_without_names)] = {}
    notes: tuple[str, ...] = _config("data", "notes", default=())
    duplicates: str = _config("data", "duplicates", default="")
    versions: dict[str, str]

    @classmethod
    def read(cls, run: Run) -> Finished:
        """Read a finished run; ``DataError`` where a number is missing or not finite."""
        result, config = run.result(), run.config()
        try:
            trained = "pretrained" if result["pretrained_weights"] else "not pretrained"
            finished = cls.model_validate(result | {
                "run": run, "config": config, "draws": run.draws, "weights": result.get("weights") or trained,
                "epochs": by_selection(run.oracle_epochs()), "check": Kept.of(result.get("self_check") or {}),
                "diffusion": {name: result[name] for name in ("diffusion_images", "matched") if name in result},
                "versions": {k: str(v) for part in ("versions", "compute") for k, v in config.get(part, {}).items()},
            })  # fmt: skip
            numbers = finished.metrics[finished.split]
            needed = [numbers[name] for name in NEEDED]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = " ".join(str(error).split())
            raise DataError(f"result.json or config.json is incomplete ({type(error).__name__}: {what}).") from None
        finished.scores  # noqa: B018 - read here, so that a damaged file costs this run alone
        known = [numbers.get(name, 0.0) for name in (*METRICS, *NOISE)]
        ends = [numbers.get(f"{name}{end}", 0.0) for name in METRICS for end in ("_low", "_high")]
        if not np.isfinite(known).all() or np.isinf([*needed, *ends]).any():  # ends that are NaN: no interval
            raise DataError("result.json holds numbers that are not finite.")
        return finished

    @property
    def method(self) -> str:
        """Return the detector's name, or that of what stands in the dissolver's place."""
        return self.detector if self.operator in (None, "", DDPM) else str(self.operator)

    @property
    def split(self) -> str:
        """Return the split that its numbers are about: test, or val of a search."""
        return "test" if "test" in self.metrics else "val"

    def metric(self, name: str, missing: float = math.nan) -> float:
        """Return a metric on the split that the run is about."""
        return self.metrics[self.split].get(name, missing)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Return the scores of the split that the run is about."""
        return self.run.scores(self.split)

    @cached_property
    def evidence(self) -> dict[str, np.ndarray]:
        """Return the pictures that the run kept, by name."""
        return self.run.evidence()

    @property
    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores, anomalous), as the plots take them."""
        return self.scores["score"].to_numpy(), self.scores["anomalous"].to_numpy()

    def record(self) -> dict[str, Any]:
        """Return what the file of a sweep's numbers says of this run."""
        metrics = {f"{split}.{k}": v for split, metrics in self.metrics.items() for k, v in metrics.items()}
        record = {name: getattr(self, name) for name in ("dataset", "method", "seed", "selection", "digest", "data")}
        record |= {"row": self.place.label if self.place else self.label, "detector": self.label} | metrics
        record |= {f"cost.{name}": value for name, value in self.cost.items()}
        record |= {f"epoch.{rule}": self.epochs.get(rule, math.nan) for rule in EPOCHS}
        return record | {"check.auroc": self.check.auroc, "settings": dict(self.settings)}


@dataclass(frozen=True, eq=False)
class Row:
    """A line of a table: runs that differ in nothing but the seed, one a seed.

    Values are means over seeds, with their spread over seeds (training); an interval covers images and training.
    """

    section: str  # the data set, and which images where one name stands for several
    dataset: str
    method: str
    variant: str  # the settings in which it differs from others of its method here; in a sweep, its name there
    label: str  # what people read
    split: str  # that its numbers are about
    seeds: int
    control: bool
    oracle: bool
    n_normal: int
    n_anomalous: int
    draws: int | None
    selection: str
    weights: str
    auroc: Measured
    check: Measured  # AUROC of the self-check without labels
    val: float  # AUROC on val
    runs: tuple[Finished, ...] = ()

    @classmethod
    def of(cls, runs: Sequence[Finished], section: str, variant: str, label: str) -> Row:
        """Return the row of these runs."""
        first = runs[0]
        alone = (first.check.low, first.check.high) if len(runs) == 1 else ()  # no interval is the mean of others
        return cls(
            section, first.dataset, first.method, variant, label, first.split, len(runs),
            control=all(run.control for run in runs), oracle=any(run.oracle for run in runs),
            n_normal=int(first.metric("n_normal")), n_anomalous=int(first.metric("n_anomalous")),
            draws=max((run.draws for run in runs if run.draws is not None), default=None),
            selection=joined([run.selection for run in runs]), weights=joined([run.weights for run in runs]),
            auroc=over_seeds(runs, "auroc", first.split), val=over_seeds(runs, "auroc", "val").value,
            check=Measured(mean(run.check.auroc for run in runs), *alone),
            runs=tuple(runs),
        )  # fmt: skip

    @property
    def named(self) -> Named:
        """Return what its look in figures depends on."""
        return Named(self.label, self.method, not self.variant, self.control, self.runs[0].color if self.runs else None)

    @property
    def unfinished(self) -> str:
        """Return how far a training went that reached neither its published length nor its own end; else nothing."""
        shares = [run.published_share for run in self.runs if run.published_share is not None and not run.converged]
        return f"{min(shares):.0%} of its published steps, not converged" if shares and min(shares) < 1 else ""

    def measured(self, metric: str) -> Measured:
        """Return a metric on the split that the row is about."""
        return self.auroc if metric == "auroc" else over_seeds(self.runs, metric, self.split)

    def sensitivity(self, specificity: float) -> float:
        """Return the share of anomalous images found at a specificity on these images, the mean over seeds."""
        return mean(sensitivity_at(*run.pair, specificity) for run in self.runs)

    def cost(self, name: str) -> float:
        """Return what a run cost, the mean over seeds; NaN where none says."""
        return mean(run.cost.get(name) for run in self.runs)

    def epoch(self, rule: str) -> float:
        """Return the test AUROC of the epoch that a rule would take, where it was tracked."""
        return mean(run.epochs.get(rule) for run in self.runs)

    def record(self) -> dict[str, Any]:
        """Return the row as a table's columns: a value under its name, its ends and spread beside it."""
        said = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)[:14]}
        record = said | {"detector": self.runs[0].label, "val_auroc": self.val}
        for name in (*METRICS, *AT_THRESHOLD):
            ends = dict(zip(("", "_low", "_high", "_sd"), self.measured(name), strict=False))
            record |= {f"{name}{end}": value for end, value in ends.items() if name in METRICS or end in ("", "_sd")}
        record |= dict(zip(("check_auroc", "check_low", "check_high"), self.check, strict=False))
        record |= {name: self.measured(name).value for name in NOISE} | {name: self.cost(name) for name in COSTS}
        return record | {f"epoch_{rule}": self.epoch(rule) for rule in EPOCHS}


def over_seeds(runs: Sequence[Finished], metric: str, split: str) -> Measured:
    """Return a metric over seeds. One seed has its interval over images; of several, AUROC has one over both."""
    names = (metric, f"{metric}_low", f"{metric}_high")
    known = np.array([[run.metrics.get(split, {}).get(name, math.nan) for name in names] for run in runs])
    values, (low, high) = known[:, 0], known[0, 1:]
    if len(runs) > 1:
        low, high = over_trainings(values, known[:, 1:]) if metric == "auroc" else (math.nan, math.nan)
    return Measured(mean(values), float(low), float(high), float(pd.Series(values).std(ddof=1)), tuple(values.tolist()))


def mean(values: Iterable[float | None]) -> float:
    """Return the mean of what is known; NaN where nothing is."""
    return float(pd.Series(list(values), dtype=float).mean())


def joined(rules: Sequence[str]) -> str:
    """Join selection rules over seeds: "fixed epoch 10", "best validation AUROC, epoch 7, 9"."""
    parted = [str(rule).rpartition(" ") for rule in rules]
    if len({head for head, _, _ in parted}) == 1 and all(tail.isdigit() for _, _, tail in parted):
        return f"{parted[0][0]} {', '.join(sorted({tail for _, _, tail in parted}, key=int))}"
    return "; ".join(dict.fromkeys(map(str, rules)))


@dataclass(frozen=True)
class Results:
    """Finished runs, how many folders were found, and (name, reason) of those that give no number."""

    runs: tuple[Finished, ...]
    found: int = 0
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def split(self) -> str:
        """Return the split that the tables are about: "test", or "val" for a search."""
        return self.runs[0].split if self.runs else "test"

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Return the rows, data set by data set, best AUROC first, oracles last."""
        return tuple(sorted(self.in_order, key=lambda row: (row.section, row.oracle, -row.auroc.value)))

    @cached_property
    def in_order(self) -> tuple[Row, ...]:
        """Return the rows in the order of their runs, a sweep's in that of its file."""
        return tuple(rows_of(self.runs))

    @cached_property
    def sections(self) -> dict[str, list[Row]]:
        """Return the rows of each data set."""
        return {name: list(rows) for name, rows in groupby(self.rows, lambda row: row.section)}

    @cached_property
    def styles(self) -> Styles:
        """Return the look of each row by its label, and by its name among the curves; the same in every figure."""
        looks = styles_of(row.named for row in self.rows)
        return {**looks, **{name: looks[row.label] for row, name in self._names.items()}}

    @property
    def _names(self) -> dict[Row, str]:
        """Return what each row is called where all stand together: of several sections, with its own."""
        several = len(self.sections) > 1
        return {row: f"{row.section}: {row.label}" if several else row.label for row in self.rows}

    def summary(self) -> pd.DataFrame:
        """Return one line a row: ``auroc``, ``auroc_low``, ``auroc_high``, ``auroc_sd`` and so on."""
        return pd.DataFrame([row.record() for row in self.rows])

    def table(self, *columns: str) -> pd.DataFrame:
        """Return the rows for the eye: each of ``columns`` (default: the metrics) with its interval and spread."""
        table = self.summary()
        names = [f"{name}{end}" for name in ("label", *(columns or (*METRICS, "seeds"))) for end in ("", *ENDS)]
        return readable(table[[name for name in names if name in table]])

    def _repr_html_(self) -> str:
        return self.table().to_html() if self.runs else "no finished run"

    def curves(self) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        """Return one (scores, anomalous) a seed for each label, as ``figures.roc`` takes them."""
        return {name: [run.pair for run in row.runs] for row, name in self._names.items()}

    def paired(self, a: str, b: str) -> pd.DataFrame:
        """Return, for each data set with both, mean AUROC of a minus that of b over images and seeds, and a reading.

        ``a`` and ``b`` are names of methods ("dia") or labels of rows; how seeds are treated is said in ``compare``.
        """
        known = {text for row in self.rows for text in (row.label, row.method)}
        for name in (a, b):
            if name not in known:
                raise UsageError(f"{name!r} is in no finished run.", hint=did_you_mean(name, known))
        tests = []
        for rows in self.sections.values():
            plain = sorted(rows, key=lambda row: row.variant != "")
            sides = [next((r for r in plain if name in (r.label, r.method)), None) for name in (a, b)]
            if sides[0] and sides[1]:
                tests.append(Compared(sides[0], sides[1], compare(sides[0], sides[1])))
        return pd.DataFrame([test.record() for test in tests])

    def maps(self) -> pd.DataFrame:
        """Return ``map_table`` of the rows, for the eye."""
        return readable(map_table(self.rows))


def collect(runs: Path | str | Iterable[Path | str]) -> Results:
    """Read the finished runs of a folder of runs, or of several run folders.

    A table is about test, or about val where no run scored test (a search); beside runs that did, such runs are
    missing, and so are runs scored under older draws beside newer ones.
    """
    roots = [runs] if isinstance(runs, str | Path) else runs
    folders = {run.folder: run for root in roots for run in find_runs(root)}
    done, unfinished, unreadable = [], [], []
    for folder, run in folders.items():
        try:
            state = run.state()
            if state == "done":
                done.append(Finished.read(run))
            else:
                unfinished.append((folder.name, state))
        except DiaworkError as error:
            unreadable.append((folder.name, error.what))
    if any(run.split == "test" for run in done):
        unfinished += [(run.run.folder.name, SEARCHED) for run in done if run.split == "val"]
        done = [run for run in done if run.split == "test"]
    newest = max((run.draws for run in done if run.draws), default=None)
    older = [run for run in done if run.draws not in (None, newest)]
    unfinished += [(run.run.folder.name, OLDER.format(run.draws, newest)) for run in older]
    kept = sorted((run for run in done if run not in older), key=lambda r: (r.dataset, r.label, r.seed, r.created))
    return Results(tuple(kept), len(folders), (*unfinished, *unreadable))


def rows_of(runs: Sequence[Finished]) -> list[Row]:
    """Return the rows of these runs; of equal runs the newest counts. What a sweep placed is in the row it names."""
    rows: dict[tuple, list[Finished]] = {}
    names: dict[tuple, tuple[str, str, str]] = {}  # section, variant, label
    seen: dict[str, set[tuple[str, Any]]] = {}  # data set → identity of its images, and the size they were opened at
    for run in runs:
        seen.setdefault(run.dataset, set()).add((run.data, run.settings.get("data.size")))
    several = {name for name, found in seen.items() if len(found) > len({size for _, size in found})}
    for run, differing, settings in _told_apart(runs):
        section = run.dataset
        if run.place:
            key: tuple = (section, run.place.label)
            beside = {r.place.label for r in runs if r.place and (r.dataset, r.method) == (section, run.method)}
            names[key] = (
                section,
                "" if len(beside) == 1 or run.place.label == run.label else run.place.label,
                run.place.label,
            )
        else:
            section += f" [data {run.data[:6]}]" if section in several else ""
            key = (section, run.method, run.data, settings)
            names[key] = section, differing, f"{run.label} ({differing})" if differing else run.label
        rows.setdefault(key, []).append(run)
    ordered = {}
    for key, alike in rows.items():
        newest = {run.seed: run for run in sorted(alike, key=lambda run: run.created)}
        ordered[key] = [newest[seed] for seed in sorted(newest)]
    return [Row.of(alike, *names[key]) for key, alike in ordered.items()]


def _told_apart(runs: Sequence[Finished]) -> Iterator[tuple[Finished, str, str]]:
    """Yield each run with the settings in which it differs from others of its method here, and with all of them.

    A diffusion model of each run's own seed is no difference.
    """
    groups: dict[tuple, list[Finished]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.method, run.settings.get("dissolve.model")), []).append(run)
    for group in groups.values():
        settings = [dict(run.settings) for run in group]
        if all(run.settings.get(DDPM_SEED) == run.seed for run in group):
            settings = [{key: value for key, value in one.items() if key != DDPM_SEED} for one in settings]
        keys = sorted({key for one in settings for key in one})
        differing = [key for key in keys if len({_spelt(one.get(key)) for one in settings}) > 1]
        for run, one in zip(group, settings, strict=True):
            yield run, ", ".join(f"{key} {one.get(key)}" for key in differing), _spelt(one)


def _spelt(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


# --- rows compared on the same images -------------------------------------------------------------------


class Compared(NamedTuple):
    """What the comparison of rows a and b says."""

    a: Row
    b: Row
    test: Comparison

    @property
    def reading(self) -> str:
        """Return what the comparison says in words."""
        return self.test.reading(self.a.label, self.b.label)

    def record(self) -> dict[str, Any]:
        """Return the comparison as a table's columns."""
        names = {"a": self.a.label, "b": self.b.label, "section": self.a.section}
        return names | dataclasses.asdict(self.test) | {"verdict": self.test.verdict, "reading": self.reading}


def compare(a: Row, b: Row, family: int = 1) -> Comparison:
    """Return the comparison of two rows on the same images, one of a ``family``.

    Variants of one detector share the draws of a seed; a control, which draws nothing, counts for every seed.
    """
    schemes: dict[int, list[str]] = {}
    for run in (*a.runs, *b.runs):
        if run.draws is not None:
            schemes.setdefault(run.draws, []).append(run.run.folder.name)
    if len(schemes) > 1:
        what = "; ".join(f"draws {draws}: {', '.join(dict.fromkeys(schemes[draws]))}" for draws in sorted(schemes))
        hint = "Run the commands of the older ones again, which scores them anew and trains nothing."
        raise DataError(f"these runs were scored under different draws ({what}).", hint=hint)
    images = a.runs[0].scores[["index", "anomalous"]]
    if any(not run.scores[["index", "anomalous"]].equals(images) for run in (*a.runs, *b.runs)):
        raise DataError("they did not score the same images.")
    left, right = (np.stack([run.scores["score"].to_numpy() for run in row.runs]) for row in (a, b))
    fixed = [side for side, row in zip(SIDES, (a, b), strict=True) if row.control and row.seeds == 1]
    draws = [[(run.detector, run.seed) for run in row.runs] for row in (a, b)]
    truth = images["anomalous"].to_numpy()
    test = compare_detectors(left, right, truth, paired_seeds=draws[0] == draws[1], fixed=fixed, family=family)
    return dataclasses.replace(test, doubts=(a.unfinished, b.unfinished))


def compare_all(pairs: Iterable[tuple[Row, Row]]) -> tuple[list[Compared], list[str]]:
    """Compare each pair, adjusted for their number, and say why some could not be compared."""
    tests, failures, pairs = [], [], list(pairs)
    for a, b in pairs:
        try:
            tests.append(Compared(a, b, compare(a, b, len(pairs))))
        except DiaworkError as error:
            failures.append(f"{a.label} and {b.label} could not be compared: {error.what}")
    adjusted = adjust([one.test for one in tests])
    return [one._replace(test=test) for one, test in zip(tests, adjusted, strict=True)], failures


# --- tables for the eye ---------------------------------------------------------------------------------


def pixel_table(arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return a line a map with pixel AUROC, AUPRO and their intervals, from a run's evidence; without maps, none."""
    table = pd.DataFrame(arrays.get("maps_table", ()), columns=list(OF_A_MAP))
    table.insert(0, "map", [str(name) for name in arrays["maps_names"]] if "maps_table" in arrays else [])
    return table


def map_table(rows: Iterable[Row]) -> pd.DataFrame:
    """Return ``pixel_table`` of each row's first run, where it keeps maps: label and map, the controls last."""
    lines, controls = [], pixel_table({})
    for row in rows:
        table = pixel_table(row.runs[0].evidence)
        if len(table):
            own, controls = table[:-CONTROL_MAPS], table[-CONTROL_MAPS:]
            lines.append(own.assign(map=f"{row.label}: " + own["map"]))
    return pd.concat([*lines, controls], ignore_index=True)


def readable(rows: pd.DataFrame | Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return a table for the eye: a value with its interval and spread in one cell, columns named as in print.

    The first column becomes the row's name; columns without any value are left out.
    """
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    table = table[list(columns) or list(table)].dropna(axis="columns", how="all")
    cells = {}
    for name in table.columns:
        if not name.endswith(ENDS):
            cells[PRINTED.get(name, name.replace("_", " "))] = [_cell(row, name) for row in table.to_dict("records")]
    printed = pd.DataFrame(cells)
    return printed.set_index(printed.columns[0])


def _cell(row: Mapping[Any, Any], name: str) -> str:
    """Return e.g. "0.903 ± 0.010 [0.881, 0.924]"."""
    value, low, high, spread = (row.get(f"{name}{end}", math.nan) for end in ("", "_low", "_high", "_sd"))
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if math.isnan(value):
        return "–"
    digits = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    text = f"{value:,.{digits}f}".replace("-", "−") + ("" if math.isnan(spread) else f" ± {spread:.3f}")
    return text if math.isnan(low) or math.isnan(high) else f"{text} [{low:.3f}, {high:.3f}]"
