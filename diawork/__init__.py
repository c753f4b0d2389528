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

_ROOMS = {  # what the notebooks type; the rest is imported from its room
    "base.compute": ("Compute",),
    "bench.page": ("write_costs",),
    "bench.stages": ("measure_cost",),
    "cli.doctor": ("doctor",),
    "data.checks": ("check_splits", "contact_sheet", "pair_images"),
    "data.datasets": ("load",),
    "data.images": ("describe",),
    "data.readers.picture": ("write_pngs",),
    "data.scan": ("guess_manifest", "write_guess"),
    "detectors.dia": ("DIA",),
    "evaluation.metrics": ("summary",),
    "evaluation.diagnostics": ("dissolving_strength",),
    "method.ddpm": ("load_ddpm", "pretrain_ddpm", "sample_ddpm"),
    "method.dissolve": ("Dissolver", "dissolve"),
    "method.encoder": ("build_encoder",),
    "method.loss": ("dia_loss", "pair_roles"),
    "method.operators": ("matched_operator", "preview"),
    "method.scoring": ("FeatureBank", "extract_features", "score"),
    "method.views": ("BranchBuilder",),
    "report.page": ("write_html",),
    "report.rows": ("collect", "readable"),
    "report.published": ("paper_comparison",),
    "report.sweep": ("collect_sweep", "write_sweep_html"),
    "runs.artifacts": ("ddpm_folder", "run_dissolver", "shared_ddpm"),
    "runs.experiment": ("run_experiment", "run_suite"),
    "runs.predict": ("load_detector",),
    "runs.presets": ("banner", "preset"),
    "runs.resolve": ("resolve",),
    "runs.run": ("runs_root",),
    "sweeps.launch": ("run_sweep", "sweep_folder"),
    "sweeps.sweep": ("Sweep",),
    "sweeps.file": ("KNOBS", "write_vary"),
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
