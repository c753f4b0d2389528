"""Every detector by name: what the house knows of it before its code is imported.

Another package adds its own by an entry point of the group ``diawork.detectors`` that names an ``Entry``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from diawork.base.errors import pick

if TYPE_CHECKING:
    from diawork.detectors.face import Detector

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

    def load(self) -> type[Detector]:
        """Import and return the detector's class."""
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
CONTROLS = tuple(name for name, entry in DETECTORS.items() if entry.control)


def entry_of(name: str) -> Entry:
    """Return a detector's entry; an unknown name is refused with the nearest one."""
    return pick(DETECTORS, name, "detector")


def is_control(label: str) -> bool:
    """Say whether a detector's label is that of a registered control."""
    return any(entry.label == label and entry.control for entry in DETECTORS.values())
