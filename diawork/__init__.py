"""diawork: a notebook-first workbench for DIA, "Dissolving Is Amplifying" (ECCV 2024).

Six lines from nothing to numbers::

    import diawork

    data, cfg = diawork.load("phantom"), diawork.preset("demo")
    ddpm = diawork.pretrain_ddpm(data.train, cfg.diffusion)
    dia = diawork.DIA(ddpm, cfg).fit(data.train)
    scores = dia.anomaly_scores(data.test)
    print(diawork.summary(scores, data.test.anomalous))
"""

from importlib import import_module
from typing import Any

_ROOMS = {
    "base.compute": ("Compute",),
    "base.config": ("ExperimentConfig",),
    "data.checks": ("check_splits", "contact_sheet", "pair_images"),
    "detectors.dia": ("CSI", "DIA"),
    "detectors.registry": ("CONTROLS",),
    "method.ddpm": ("load_ddpm", "pretrain_ddpm", "sample_ddpm", "save_ddpm"),
    "method.dissolve": ("Dissolver", "build_operator", "preview"),
    "cli.doctor": ("doctor",),
    "runs.evidence": ("dissolving_strip",),
    "runs.methods": ("METHODS", "method_config", "resolve"),
    "runs.parents": ("run_dissolver", "shared_ddpm"),
    "runs.experiment": (
        "run_experiment",
        "run_suite",
    ),
    "report.paper": ("draw_figure",),
    "data.images": ("describe", "load"),
    "method.loss": ("dia_loss", "nt_xent", "pair_roles"),
    "detectors.maps": ("AnomalyMaps", "anomaly_map"),
    "evaluation.metrics": ("summary",),
    "evaluation.pixels": ("pixel_summary",),
    "runs.presets": ("preset",),
    "report.page": ("collect", "write_html"),
    "method.scoring": ("FeatureBank", "score"),
    "report.sweep": ("write_sweep_html", "write_sweep_json"),
    "runs.notebooks": ("run_notebook",),
    "widgets.slots": ("checkpoint_slot", "dissolving_slots", "fit_to"),
    "sweeps.launch": ("run_sweep",),
    "sweeps.cell": ("ledger",),
    "sweeps.sweep": ("Sweep",),
    "method.views": ("BranchBuilder",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use, so that `import diawork` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'diawork' has no attribute {name!r}")
    return getattr(import_module(f"diawork.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
