"""Every detector by name: what the house knows of it before its code is imported.

Another package adds its own by an entry point of the group ``diawork.detectors`` that names an ``Entry``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from diawork.base.errors import UsageError, pick

_CONTRASTIVE = ("data", "views", "encoder", "loss", "train", "score")


@dataclass(frozen=True)
class Entry:
    """One detector's line."""

    name: str  # in configs and on the command line
    label: str  # in tables and figures
    home: str  # "module:class"
    uses: tuple[str, ...] = ("data",)  # sections of the config; the others are no part of its runs' identity
    control: bool = False
    oracle: bool = False
    seeded: bool = True  # whether its training draws anything
    extra: str = ""  # package that it is a model of, where diawork does not install it

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
        """Import and return the detector's class."""
        self.require()
        module, _, kind = self.home.partition(":")
        return getattr(import_module(module), kind)


_OURS = (
    Entry("dia", "DIA", "diawork.detectors.dia:DIA", (*_CONTRASTIVE, "diffusion", "dissolve")),
    Entry("csi", "CSI", "diawork.detectors.dia:CSI", _CONTRASTIVE),
    Entry("scrd4ad", "SCRD4AD", "diawork.detectors.scrd4ad:SCRD4AD", ("data", "backbone", "scrd4ad")),
    Entry("rd4ad", "RD4AD", "diawork.detectors.rd4ad:RD4AD", ("data", "backbone", "rd4ad")),
    Entry("simsid", "SimSID", "diawork.detectors.simsid:SimSID", ("data", "simsid")),
    Entry("kdad", "KDAD", "diawork.detectors.kdad:KDAD", ("data", "backbone", "kdad")),
    Entry(
        "mean_shift", "mean-shifted contrastive", "diawork.detectors.mean_shift:MeanShift",
        ("data", "backbone", "mean_shift"),
    ),
    Entry("simclr", "SimCLR", "diawork.detectors.simclr:SimCLR", _CONTRASTIVE),
    Entry("deep_knn", "deep kNN", "diawork.detectors.deep_knn:DeepKnn", ("data", "backbone", "deep_knn")),
    Entry("patchcore", "PatchCore", "diawork.detectors.patchcore:PatchCore", ("data", "backbone", "patchcore")),
    Entry("padim", "PaDiM", "diawork.detectors.padim:PaDiM", ("data", "backbone", "padim")),
    Entry(
        "anomalib", "anomalib", "diawork.detectors.anomalib:Anomalib", ("data", "backbone", "anomalib"),
        extra="anomalib",
    ),
    Entry("stats_knn", "5-NN on statistics", "diawork.detectors.controls:StatsKNN", control=True, seeded=False),
    Entry(
        "stats_mahalanobis", "Mahalanobis on statistics", "diawork.detectors.controls:StatsMahalanobis", control=True,
        seeded=False,
    ),
    Entry("pixel_knn", "5-NN on pixels", "diawork.detectors.controls:PixelKNN", control=True, seeded=False),
    Entry(
        "oracle_statistic", "best single statistic (oracle)", "diawork.detectors.controls:OracleStatistic",
        control=True, oracle=True, seeded=False,
    ),
)  # fmt: skip
_OTHERS = (point.load() for point in metadata.entry_points(group="diawork.detectors"))
DETECTORS: dict[str, Entry] = {entry.name: entry for entry in (*_OURS, *_OTHERS)}
NOT_BUILT = {  # detectors that people look for here → what is missing
    "uniad": "it needs ImageNet weights of EfficientNet-B4 (timm's efficientnet_b4), which no package ships, "
    "and anomalib has no UniAD",
    "transformaly": "it needs ImageNet weights of a ViT-B/16 (timm's vit_base_patch16_224), which no package ships, "
    "and anomalib has no Transformaly",
}
CONTROLS = tuple(name for name, entry in DETECTORS.items() if entry.control)


def entry_of(name: str) -> Entry:
    """Return a detector's entry; an unknown name is refused with the nearest one, one not built with the reason."""
    if name in NOT_BUILT and name not in DETECTORS:
        raise UsageError(f"{name!r} is not built: {NOT_BUILT[name]}.", hint=f"There are {', '.join(DETECTORS)}.")
    return pick(DETECTORS, name, "detector")


def is_control(label: str) -> bool:
    """Say whether a detector's label is that of a registered control."""
    return any(entry.label == label and entry.control for entry in DETECTORS.values())
