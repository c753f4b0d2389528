"""Detectors by name. What a detector declares stands in its class, which is imported when it is first asked for.

Another package adds its own by an entry point of the group ``diawork.detectors``: ``name = "module:class"``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from diawork.base.errors import UsageError, pick

GROUP = "diawork.detectors"
BUILT_IN = {
    "dia": "diawork.detectors.dia:DIA",
    "csi": "diawork.detectors.dia:CSI",
    "scrd4ad": "diawork.detectors.scrd4ad:SCRD4AD",
    "rd4ad": "diawork.detectors.rd4ad:RD4AD",
    "simsid": "diawork.detectors.simsid:SimSID",
    "kdad": "diawork.detectors.kdad:KDAD",
    "mean_shift": "diawork.detectors.mean_shift:MeanShift",
    "simclr": "diawork.detectors.simclr:SimCLR",
    "deep_knn": "diawork.detectors.deep_knn:DeepKnn",
    "patchcore": "diawork.detectors.patchcore:PatchCore",
    "padim": "diawork.detectors.padim:PaDiM",
    "anomalib": "diawork.detectors.anomalib:Anomalib",
    "stats_knn": "diawork.detectors.controls:StatsKNN",
    "stats_mahalanobis": "diawork.detectors.controls:StatsMahalanobis",
    "pixel_knn": "diawork.detectors.controls:PixelKNN",
    "oracle_statistic": "diawork.detectors.controls:OracleStatistic",
}
CONTROLS = ("stats_knn", "stats_mahalanobis", "pixel_knn", "oracle_statistic")  # the word "controls" on a command line
NOT_BUILT = {  # detectors that people look for here → what is missing
    "uniad": "it needs ImageNet weights of EfficientNet-B4 (timm's efficientnet_b4), which no package ships, "
    "and anomalib has no UniAD",
    "transformaly": "it needs ImageNet weights of a ViT-B/16 (timm's vit_base_patch16_224), which no package ships, "
    "and anomalib has no Transformaly",
}


@dataclass(frozen=True)
class Entry:
    """What a detector declares: the attributes of these names in its class."""

    name: str  # in configs and on the command line
    kind: Any  # its class
    label: str = ""  # in tables and figures
    uses: tuple[str, ...] = ("data",)  # sections of the config; the others are no part of its runs' identity
    control: bool = False
    oracle: bool = False  # looks at the labels that it is evaluated on
    seeded: bool = True  # whether its training draws anything
    extra: str = ""  # package that it is a model of, where diawork does not install it
    color: str = ""  # in every figure; "": one that is free
    paper_rule: str = ""  # metric that its paper's threshold maximises on the test images
    revision: int = 1  # of what it computes at equal settings: a run of another one is other work
    paper: dict[str, Any] = field(default_factory=dict)  # its paper's settings, where its section's defaults are others
    length: str = ""  # knob of its section that says how long it trains
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)  # preset → knobs of its section
    Section: Any = None  # its section of the config, a ``Frozen``, which has the detector's name
    problem: str = ""  # why nothing is known of it

    @property
    def installed(self) -> bool:
        """Whether what it needs is there."""
        return not self.extra or find_spec(self.extra) is not None

    def require(self) -> None:
        """Say what to install, where its package is missing."""
        if not self.installed:
            what = f"{self.label} is a model of {self.extra}, which is not installed."
            raise UsageError(what, hint=f"pip install 'diawork[{self.extra}]'.")

    def load(self) -> Any:
        """Return the detector's class; where what it needs is missing, say what to install."""
        self.require()
        return self.kind


@cache
def _homes() -> dict[str, str]:
    """Return name → "module:class" of all detectors; another package's never takes the place of one of ours."""
    homes = dict(BUILT_IN)
    for point in metadata.entry_points(group=GROUP):
        if point.name in homes:
            what = f"the detector {point.name!r} of another package ({point.value}) is passed over: the name is taken."
            warnings.warn(what, stacklevel=2)
        else:
            homes[point.name] = point.value
    return homes


@cache
def _entry(name: str) -> Entry:
    module, _, kind = _homes()[name].partition(":")
    try:
        detector = getattr(import_module(module), kind)
    except Exception as error:  # of another package: whatever its module raises
        if name in BUILT_IN:
            raise
        reason = " ".join(str(error).split())[:200]
        what = f"the detector {name!r} of another package cannot be loaded ({type(error).__name__}: {reason})."
        return Entry(name, None, label=name, problem=what)
    declared = {one.name: getattr(detector, one.name) for one in fields(Entry) if hasattr(detector, one.name)}
    return Entry(**({"label": name} | declared | {"name": name, "kind": detector}))


class _Detectors(Mapping[str, Entry]):
    """Name → entry, read when it is asked for."""

    def __iter__(self) -> Iterator[str]:
        return iter(_homes())

    def __len__(self) -> int:
        return len(_homes())

    def __getitem__(self, name: str) -> Entry:
        if name not in _homes():
            raise KeyError(name)
        return _entry(name)


DETECTORS = _Detectors()


def entry_of(name: str) -> Entry:
    """Return a detector's entry; an unknown name is refused with the nearest one, one not built with the reason."""
    if name in NOT_BUILT and name not in DETECTORS:
        raise UsageError(f"{name!r} is not built: {NOT_BUILT[name]}.", hint=f"There are {', '.join(DETECTORS)}.")
    entry = pick(DETECTORS, name, "detector")
    if entry.problem:
        raise UsageError(entry.problem)
    return entry


# the word by which files of older versions name a detector → its name
OLD_NAMES = {
    "DIA": "dia", "CSI": "csi", "SCRD4AD": "scrd4ad", "RD4AD": "rd4ad", "SimSID": "simsid", "KDAD": "kdad",
    "mean-shifted contrastive": "mean_shift", "SimCLR": "simclr", "deep kNN": "deep_knn", "PatchCore": "patchcore",
    "PaDiM": "padim", "5-NN on statistics": "stats_knn", "Mahalanobis on statistics": "stats_mahalanobis",
    "5-NN on pixels": "pixel_knn", "best single statistic (oracle)": "oracle_statistic",
}  # fmt: skip


def name_of(kind: str) -> str:
    """Return the name that stands in today's files for what a file says that it holds, such as "DIA training"."""
    word, space, rest = (kind, "", "") if kind in OLD_NAMES else kind.rpartition(" ")
    return OLD_NAMES.get(word, word) + space + rest if word else kind


def is_control(label: str) -> bool:
    """Say whether the detector of this label, in a record of an older version, is a control."""
    return OLD_NAMES.get(label, label) in CONTROLS
