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

from diawork.runs.cores import keep_memory, share_cores

share_cores()  # these two are all that an import does: OpenMP and torch would not hear of it later
keep_memory()

_ROOMS = {  # what a notebook types; the rest is imported from its room
    "base.compute": ("Compute",),
    "base.config": ("ExperimentConfig",),
    "bench.page": ("write_costs",),
    "bench.stages": ("measure_cost",),
    "cli.doctor": ("doctor",),
    "data.checks": ("check_splits",),
    "data.datasets": ("load",),
    "data.images": ("describe",),
    "detectors.dia": ("CSI", "DIA"),
    "evaluation.metrics": ("summary",),
    "method.ddpm": ("load_ddpm", "pretrain_ddpm", "save_ddpm"),
    "method.dissolve": ("Dissolver",),
    "method.encoder": ("build_encoder",),
    "method.loss": ("dia_loss", "pair_roles"),
    "method.scoring": ("FeatureBank", "extract_features", "score"),
    "method.views": ("BranchBuilder",),
    "report.page": ("write_html",),
    "report.rows": ("collect", "readable"),
    "runs.experiment": ("run_experiment", "run_suite"),
    "runs.methods": ("METHODS",),
    "runs.artifacts": ("run_dissolver", "shared_ddpm"),
    "runs.predict": ("load_detector",),
    "runs.presets": ("preset",),
    "runs.run": ("runs_root",),
    "sweeps.launch": ("run_sweep",),
    "sweeps.sweep": ("Sweep",),
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
