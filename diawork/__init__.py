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
    "compute": ("Compute",),
    "config": ("ExperimentConfig",),
    "datachecks": ("check_splits", "contact_sheet", "pair_images"),
    "detectors": ("CSI", "DETECTORS", "DIA"),
    "diffusion": ("load_ddpm", "pretrain_ddpm", "sample_ddpm", "save_ddpm"),
    "dissolve": ("Dissolver", "build_operator", "preview"),
    "machine": ("doctor",),
    "evidence": ("dissolving_strip",),
    "experiment": ("CONTROLS", "METHODS", "method_config", "resolve", "run_experiment", "run_suite", "shared_ddpm"),
    "figures": ("draw_figure",),
    "images": ("describe", "load"),
    "loss": ("dia_loss", "nt_xent", "pair_roles"),
    "maps": ("AnomalyMaps", "anomaly_map"),
    "metrics": ("summary",),
    "pixel_metrics": ("pixel_summary",),
    "presets": ("preset",),
    "report": ("collect", "write_html"),
    "scoring": ("FeatureBank", "score"),
    "sweepreport": ("write_sweep_html", "write_sweep_json"),
    "notebooks": ("run_notebook",),
    "slots": ("checkpoint_slot", "dissolving_slots", "fit_to"),
    "launch": ("run_sweep",),
    "ledger": ("ledger",),
    "sweep": ("Sweep",),
    "views": ("BranchBuilder",),
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
