"""``diawork sweep``: a table, figure or ablation of the paper, or a file of your own, cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from diawork.base.errors import UsageError, printable


@click.command()
@click.argument("file", required=False)
@click.option("--table", "--figure", "name", help="A sweep that comes with the package: t1, t2, heuristics, f4, …")
@click.option("--size", help="A size that the sweep names: smoke, cpu, paper [default: cpu].")
@click.option("--slots", default=1, show_default=True, type=click.IntRange(1, 1000), help="Cells at a time.")
@click.option("--executor", default="local", show_default=True, help="local, slurm, submitit-local, debug")
@click.option("--slurm", "options", multiple=True, metavar="KEY=VALUE", help="e.g. slurm_partition=gpu")
@click.option("--dry-run", is_flag=True, help="Expand, validate and list the cells; run nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for runs [default: $DIAWORK_HOME or ./runs].")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder with data [default: $DIAWORK_DATA].")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
def sweep(file: str | None, name: str | None, size: str | None, dry_run: bool, **options: Any) -> None:
    """Run every cell of a sweep that is not finished, then write its report; the same command goes on later."""
    from diawork.report.sweep import write_sweep_html, write_sweep_json
    from diawork.sweeps.launch import run_sweep, sweep_folder
    from diawork.sweeps.sweep import Sweep, list_sweeps

    if (file is None) == (name is None):
        raise UsageError("give a FILE, or --table or --figure.", hint=f"Known: {', '.join(list_sweeps())}.")
    found = Sweep.load(file or name, size)
    click.echo(printable(f"{found.title}: {len(found.cells)} cells, size {found.size or 'as written'}"))
    for missing in found.needs:
        click.echo(printable(f"not in this build: {missing}; the published row stands alone"))
    if dry_run:
        for cell in found.cells:
            click.echo(printable(f"{cell.digest}  {cell.label:<40} {_settings(cell)}"))
        return
    pairs = [item.partition("=") for item in options.pop("options")]
    frame = run_sweep(found, options={key.strip(): _number(value) for key, _, value in pairs}, **options)
    folder = sweep_folder(found, options["out"])
    if (frame["state"] == "done").any():
        click.echo(printable(f"report: {write_sweep_html(folder)}, its numbers: {write_sweep_json(folder).name}"))
    _end(frame, folder)


def _settings(cell: Any) -> str:
    seed = cell.parameters.get("seed")
    given = cell.parameters | cell.overrides
    shown = {k: v for k, v in given.items() if k in ("dataset", "preset") or k in cell.point}
    return ", ".join(f"{k}={v}" for k, v in (shown | ({} if seed is None else {"seed": seed})).items())


def _number(value: str) -> Any:
    return int(value) if value.strip().lstrip("-").isdigit() else value.strip()


def _end(frame: Any, folder: Path) -> None:
    """Say what failed, and count; exit code 7 where not all is done."""
    for row in frame[frame["state"] != "done"].to_dict("records"):
        click.echo(printable(f"{row['state']:<11} {row['label']}, seed {row['seed']}: {row['error']}"), err=True)
    done = int((frame["state"] == "done").sum())
    click.echo(printable(f"{done} of {len(frame)} cells done: {folder}"))
    if done < len(frame):
        click.echo("The same command tries the others again.", err=True)
        click.get_current_context().exit(7)
