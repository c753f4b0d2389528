"""``diawork run`` and ``report``: methods × seeds to runs, and runs to a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm.auto import tqdm

from diawork.cli import options
from diawork.cli.options import STOPS, Renamed, ending, parse_overrides, path_option, say

if TYPE_CHECKING:
    from diawork.base.config import ExperimentConfig
    from diawork.runs.run import Run


@click.command(epilog=ending("diawork run --dataset pneumoniamnist --preset cpu --seeds 3", STOPS))
@click.option("--dataset", default="phantom", show_default=True, help="A name from `diawork data list`, or a manifest.")
@click.option("--preset", "preset_name", default="cpu", show_default=True, help="smoke, demo, cpu, paper, repo2023, …")
@click.option("--methods", default="dia,csi,controls", show_default=True, help="e.g. dia,csi,gaussian_blur,controls")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1, 1000), help="How many: 0 … N−1.")
@options.overrides
@options.data_root
@click.option("--acknowledge-leak", default="", metavar="DIGEST", help="Go on with the leaks that `data check` named.")
@click.option("--drop-leaks", is_flag=True, help="Leave out training images that val or test shows, too.")
@options.out
@options.device
@options.precision
@options.processes
@path_option("--report", "page", help="Where the HTML report goes.")
@click.option("--print-config", is_flag=True, help="Print the validated config and stop.")
def run(
    dataset: str, preset_name: str, overrides: tuple[str, ...], drop_leaks: bool, print_config: bool, **suite: Any
) -> None:  # fmt: skip
    """Train and score methods on a data set. Several seeds are possible; a report is written."""
    from diawork.runs.methods import planned
    from diawork.runs.presets import preset

    changes = parse_overrides(overrides) | ({"data.drop_leaks": True} if drop_leaks else {})
    cfg = preset(preset_name, dataset=dataset).override(changes)
    if print_config:
        planned(cfg, suite["methods"])
        say(json.dumps(cfg.model_dump(mode="json"), indent=1))
    else:
        run_methods(cfg, preset_name, **suite)


@click.command(epilog=ending("diawork report runs --html report.html"))
@click.argument("runs", type=click.Path(path_type=Path, exists=True, file_okay=False), nargs=-1, required=True)
@path_option("--html", "--out", "page", cls=Renamed, default=Path("report.html"), show_default=True)
@click.option("--title", default="diawork report", show_default=True)
def report(runs: tuple[Path, ...], page: Path, title: str) -> None:
    """Turn run folders into one page. A folder of runs will do, too; the HTML works offline."""
    from diawork.report.page import write_html

    say(write_html(list(runs), page, title=title, asked=f"diawork report {' '.join(map(str, runs))}"))


def run_methods(
    cfg: ExperimentConfig, preset_name: str, methods: str, seeds: int, *, out: Path | None, page: Path | None = None,
    device: str, precision: str, **suite: Any,
) -> Path:  # fmt: skip
    """Run methods (joined by commas) × seeds, print each result as it comes, write the report and return its path.

    ``suite`` are keywords of ``run_suite``.
    """
    from diawork.base.compute import Compute
    from diawork.base.files import require_room
    from diawork.data.manifests import load_manifest
    from diawork.report.page import write_html
    from diawork.runs.experiment import run_suite
    from diawork.runs.methods import planned
    from diawork.runs.run import runs_root

    named = planned(cfg, methods)
    root, dataset = runs_root(out), load_manifest(cfg.dataset).name
    page = page or root / f"report-{dataset}-{preset_name}.html"
    require_room(root, page.parent)
    compute = Compute.auto(device, precision)
    runs = run_suite(cfg, named, range(seeds), out=root, compute=compute, on_run=tell, **suite)
    page = write_html(
        [run.folder for run in runs], page, title=f"DIA on {dataset}",
        asked=f"diawork run --dataset {cfg.dataset} --preset {preset_name} --seeds {seeds} --methods {methods}",
    )  # fmt: skip
    with tqdm.external_write_mode():  # above a bar, where there is one
        say(f"report: {page}")
    return page


def tell(run: Run) -> None:
    """Say the result of a run in a line of its own."""
    from diawork.evaluation.sentences import interval

    result, split = run.result(), run.primary_split
    metrics = result["metrics"][split]
    ends = interval(metrics["auroc_low"], metrics["auroc_high"])
    area = f"{split} AUROC {metrics['auroc']:.3f} ({ends})"
    with tqdm.external_write_mode():
        say(f"{result['detector']:<28} seed {result['seed']}  {area}")
