"""``diawork sweep``: a table, figure or ablation of the paper, or a file of your own, cell by cell."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from diawork.base.errors import UsageError
from diawork.cli import options
from diawork.cli.options import STOPS, ending, parse_overrides, say

say = partial(say, keep="")  # a line each: no name in it begins another


@click.command(epilog=ending("diawork sweep heuristics --size cpu --slots 2", STOPS))
@click.argument("file", required=False)
@click.option("--table", "--figure", "name", help="A sweep that comes with the package: t1, t2, heuristics, f4, …")
@click.option("--size", help="A size that the sweep names: smoke, cpu, paper [default: cpu].")
@options.overrides
@click.option("--slots", default=1, show_default=True, type=click.IntRange(1, 1000), help="Cells at a time.")
@click.option("--executor", default="local", show_default=True, help="local, slurm, submitit-local, debug")
@click.option("--slurm", multiple=True, metavar="KEY=VALUE", help="e.g. slurm_partition=gpu")
@click.option("--dry-run", is_flag=True, help="Expand, validate and list the cells; run nothing.")
@options.out
@options.data_root
@options.device
@options.processes
def sweep(
    file: str | None,
    name: str | None,
    size: str | None,
    overrides: tuple[str, ...],
    slurm: tuple[str, ...],
    dry_run: bool,
    **where: Any,
) -> None:
    """Run the cells of a sweep. Those that are finished are kept; then the report is written, and its numbers."""
    from diawork.sweeps.file import list_sweeps
    from diawork.sweeps.launch import run_sweep, sweep_folder
    from diawork.sweeps.sweep import Sweep

    sources = [source for source in (file, name) if source is not None]
    if len(sources) != 1:
        raise UsageError("give a FILE, or --table or --figure.", hint=f"Known: {', '.join(list_sweeps())}.")
    asked = Sweep.load(sources[0], size, parse_overrides(overrides))
    say(f"{asked.title}: {len(asked.cells)} cells, size {asked.size or 'as written'}")
    for missing in asked.needs:
        say(f"not in this build: {missing}; the published row stands alone")
    if dry_run:
        for cell in asked.cells:
            values = cell.parameters | cell.overrides
            shown = [key for key in values if key in ("dataset", "preset", *cell.point) and key != "seed"]
            telling = [f"{key}={values[key]}" for key in (*shown, *(["seed"] if "seed" in values else []))]
            say(f"{cell.digest}  {cell.label:<40} {', '.join(telling)}")
        return
    from diawork.report.sweep import write_sweep_html, write_sweep_json

    cells = run_sweep(asked, options=parse_overrides(slurm), **where)
    folder = sweep_folder(asked, where["out"])
    if (cells["state"] == "done").any():
        say(f"report: {write_sweep_html(folder)}, its numbers: {write_sweep_json(folder).name}")
    _end(cells, folder)


def _end(cells: Any, folder: Path) -> None:
    """Say what failed, and count; exit code 7 where not all is done."""
    undone = cells[cells["state"] != "done"]
    for cell in undone.to_dict("records"):
        say(f"{cell['state']:<11} {cell['label']}, seed {cell['seed']}: {cell['error']}", err=True)
    say(f"{len(cells) - len(undone)} of {len(cells)} cells done: {folder}")
    if len(undone):
        say("The same command tries the others again.", err=True)
        click.get_current_context().exit(7)
