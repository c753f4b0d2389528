"""The command line: ``diawork doctor | data | demo | lab | run | score | sweep | report | bench | notebook``."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import click

from diawork.base.errors import DiaworkError, ResourceError, out_of_memory
from diawork.base.stopping import StopNow, stop_at_once
from diawork.cli import options
from diawork.cli.data import data
from diawork.cli.demo import demo
from diawork.cli.lab import lab
from diawork.cli.options import STOPS, Group, Renamed, ending, pairs, parse_overrides, path_option, say
from diawork.cli.run import report, run
from diawork.cli.score import score
from diawork.cli.sweep import sweep

COMPLETION = 'Shell completion: eval "$(_DIAWORK_COMPLETE=bash_source diawork)"; also zsh_source and fish_source.'


@click.group(
    cls=Group, epilog=ending("diawork demo", COMPLETION),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)  # fmt: skip
@click.version_option(package_name="diawork")
def cli() -> None:
    """DIA, Dissolving Is Amplifying: fine-grained anomaly detection in medical images.

    Research only, not for clinical use. Higher score = more anomalous, everywhere.
    """


for command in (data, demo, lab, run, report, score, sweep):
    cli.add_command(command)


@cli.command(epilog=ending("diawork doctor"))
@options.data_root
@options.out
def doctor(data_root: Path | None, out: Path | None) -> None:
    """Say what this machine offers, each line with OK or the fix."""
    from diawork.cli.doctor import doctor as examine

    checks = examine(data_root=data_root, out=out)
    say(str(checks))
    click.get_current_context().exit(0 if checks.ok else 5)


@cli.command(epilog=ending("diawork bench --quick --html bench.html", STOPS))
@click.option("--quick", is_flag=True, help="Small sizes: does it run?")
@click.option("--compile/--no-compile", "compiled", default=None, help="Compile trainings, too; or nothing.")
@click.option("--accuracy", metavar="DATASET", help="Also train on the fast paths and the plain one, and compare.")
@click.option("--preset", "preset_name", default="cpu", show_default=True, help="Of --accuracy.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 100), help="Of --accuracy.")
@options.overrides
@options.data_root
@options.device
@options.precision
@path_option("--out", "--runs", cls=Renamed, help="Folder for the trainings of --accuracy.")
@path_option("--beside", multiple=True, metavar="JSON", help="What a bench of another machine wrote: shown beside.")
@path_option("--html", "page", default=Path("bench.html"), show_default=True)
def bench(
    quick: bool, compiled: bool | None, accuracy: str | None, preset_name: str, overrides: tuple[str, ...],
    device: str, precision: str, beside: tuple[Path, ...], page: Path, **where: Any,
) -> None:  # fmt: skip
    """Time every stage on this machine. A page (HTML) and its numbers (JSON) are written.

    Each stage stands against the machine's measured ceiling and against the released scheme.
    """
    from diawork.base.compute import Compute
    from diawork.base.files import require_room
    from diawork.bench import fidelity
    from diawork.bench.page import read_costs, write_costs
    from diawork.bench.stages import measure_cost
    from diawork.data.datasets import load
    from diawork.runs.presets import preset
    from diawork.runs.resolve import resolve

    require_room(page.parent)
    others = [read_costs(path) for path in beside]
    compute = Compute.auto(device, precision, compile=compiled)
    cfg = preset(preset_name, dataset=accuracy or "phantom").override(parse_overrides(overrides))
    if accuracy:  # refused before anything is timed
        splits = load(cfg, where["data_root"])
        resolved = resolve(cfg, splits)
        fidelity.require_paths(resolved, splits)
    costs = measure_cost(quick=quick, compute=compute, say=click.echo)
    if accuracy:
        costs["accuracy"] = fidelity.accuracy(resolved, splits, compute=compute, **where)
    costs["beside"] = others
    say(f"written: {write_costs(costs, page)} and {page.with_suffix('.json')}")


@cli.command(epilog=ending("diawork notebook 03 -p preset=smoke", STOPS))
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="All numbered notebooks, one after another.")
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="KEY=VALUE", help="e.g. preset=smoke")
@path_option(
    "--copy",
    "--out",
    cls=Renamed,
    help="The executed copy [default: ./NAME.executed.ipynb]; with --all, a folder [./executed].",
)
@path_option("--html", help="A folder for HTML pages of them, with an index; they work offline.")
def notebook(name: str | None, every: bool, parameters: tuple[str, ...], copy: Path | None, html: Path | None) -> None:
    """Run a numbered notebook headless."""
    from diawork.base.errors import UsageError
    from diawork.runs.notebooks import find_notebook, list_notebooks, run_notebook, shared_parameters

    if every == bool(name):
        raise UsageError("name one notebook, or say --all.", hint="For instance `diawork notebook 03`.")
    if name:
        sources = [find_notebook(name)]
        copies = [copy or Path(f"{sources[0].stem}.executed.ipynb")]
        shares = [pairs(parameters)]
    else:
        sources = list_notebooks()
        copies = [(copy or Path("executed")) / source.name for source in sources]
        shares = shared_parameters(sources, pairs(parameters))
    for source, executed, share in zip(sources, copies, shares, strict=True):
        say(run_notebook(source, executed, parameters=share))
    if html:
        from diawork.report.site import write_site

        say(f"written: {write_site(copies, html, note=' '.join(parameters))}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; a user's error is one sentence and an exit code, a bug of ours a saved traceback."""
    warnings.showwarning = lambda message, *_, **__: say(f"note: {message}", err=True)
    try:
        with stop_at_once():
            return cli.main(args=argv, standalone_mode=False) or 0
    except click.exceptions.Abort as stop:  # click's word for an interrupt
        say("Stopped; the same command goes on.", err=True)
        return 75 if isinstance(stop.__cause__, StopNow) else 130
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        say(text.getvalue().rstrip(), err=True)
        return 2
    except Exception as error:
        if os.environ.get("DIAWORK_DEBUG"):
            raise
        return _failed(error)


def _failed(error: Exception) -> int:
    """Say in one sentence what went wrong; return the exit code."""
    error = out_of_memory(error) or error
    if isinstance(error, OSError) and error.strerror:
        hint = "Mend it, or choose another place; DIAWORK_DEBUG=1 shows the traceback."
        error = ResourceError(f"{error.strerror}.", path=error.filename, hint=hint)
    if isinstance(error, DiaworkError):
        say(f"error[{error.code}] {error}", err=True)
        return error.exit_code
    crash = Path(f"crash-{os.getpid()}.txt")
    try:
        crash.write_text(traceback.format_exc(), "utf-8", "backslashreplace")
        where = f"the traceback is in {crash}"
    except OSError:
        where = "set DIAWORK_DEBUG=1 to see the traceback"
    say(f"error[E100] a bug of ours ({type(error).__name__}: {error}); {where}.", err=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
