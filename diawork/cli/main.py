"""The command line: ``diawork doctor | data | demo | run | sweep | report | bench | notebook``."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
import warnings
import webbrowser
from pathlib import Path
from typing import Any

import click

from diawork.base.errors import DiaworkError, ResourceError, UsageError, printable
from diawork.base.stopping import StopNow, stop_at_once
from diawork.cli.sweep import sweep

_out = click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for runs [default: $DIAWORK_HOME or ./runs]."
)
_data_root = click.option(
    "--data-root", type=click.Path(path_type=Path), help="Folder with data [default: $DIAWORK_DATA]."
)
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
_precision = click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16")
_override = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="e.g. loss.temperature=0.2")


def _say(text: object, err: bool = False) -> None:
    """Print text whose names nobody vouches for: nothing in it steers the terminal."""
    click.echo(printable(text, keep="\n"), err=err)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="diawork")
def cli() -> None:
    """DIA, Dissolving Is Amplifying: fine-grained anomaly detection in medical images.

    Research only, not for clinical use. Higher score = more anomalous, everywhere.
    """


@cli.command()
@_data_root
@_out
def doctor(data_root: Path | None, out: Path | None) -> None:
    """Say what this machine offers, each line with OK or the fix."""
    from diawork.cli.doctor import doctor as examine

    report = examine(data_root=data_root, out=out)
    _say(str(report))
    click.get_current_context().exit(0 if report.ok else 5)


@cli.group()
def data() -> None:
    """List, describe, download and check data sets."""


@data.command("list")
def data_list() -> None:
    """List the data sets that have a manifest."""
    from diawork.data.manifests import list_manifests, load_manifest

    for name in list_manifests():
        manifest = load_manifest(name)
        _say(f"{name:<16} {manifest.title} · {manifest.licence}")


@data.command("show")
@click.argument("name")
@_data_root
def data_show(name: str, data_root: Path | None) -> None:
    """Describe a data set: counts per split and class, licence, notes."""
    from diawork.data.images import describe, load

    _say(describe(load(name, data_root)))


@data.command("download")
@click.argument("name")
@_data_root
def data_download(name: str, data_root: Path | None) -> None:
    """Download a data set from its published address and verify its checksum."""
    from diawork.data.images import describe, load

    _say(describe(load(name, data_root, download=True)))


@data.command("check")
@click.argument("name")
@_data_root
@_out
def data_check(name: str, data_root: Path | None, out: Path | None) -> None:
    """Look for duplicates across splits, constant images and missing roles."""
    from diawork.data.checks import check_splits
    from diawork.data.images import load
    from diawork.runs.run import runs_root

    report = check_splits(load(name, data_root), cache=runs_root(out) / "data-checks")
    _say(str(report))
    click.get_current_context().exit(3 if report.errors else 0)


@cli.command()
@_out
@_device
@_precision
@click.option("--open/--no-open", "show", default=False, help="Open the report in a browser.")
def demo(out: Path | None, device: str, precision: str, show: bool) -> None:
    """Train DIA on the embedded phantom and write an HTML report: minutes, offline, no account."""
    _suite("phantom", "demo", ("dia", "csi", "controls"), (0,), out=out, device=device, precision=precision, show=show)


@cli.command()
@click.option("--dataset", default="phantom", show_default=True, help="A name from `diawork data list`, or a manifest.")
@click.option("--preset", "preset_name", default="cpu", show_default=True, help="smoke, demo, cpu, paper, repo2023, …")
@click.option("--methods", default="dia,csi,controls", show_default=True, help="e.g. dia,csi,gaussian_blur,controls")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1, 1000), help="How many: 0 … N−1.")
@_override
@_data_root
@click.option("--acknowledge-leak", default="", metavar="DIGEST", help="Go on with the leaks that `data check` named.")
@_out
@_device
@_precision
@click.option("--report", "page", type=click.Path(path_type=Path), help="Where the HTML report goes.")
@click.option("--print-config", is_flag=True, help="Print the validated config and stop.")
def run(
    preset_name: str, methods: str, seeds: int, overrides: tuple[str, ...], print_config: bool, **options: Any
) -> None:
    """Train and score methods on a data set for several seeds, and write the report."""
    changes = parse_overrides(overrides)
    if print_config:
        from diawork.runs.presets import preset

        config = preset(preset_name, dataset=options["dataset"]).override(changes)
        _say(json.dumps(config.model_dump(mode="json"), indent=1))
        return
    _suite(
        options.pop("dataset"), preset_name, tuple(methods.split(",")), tuple(range(seeds)), changes=changes, **options
    )


@cli.command()
@click.argument("runs", type=click.Path(path_type=Path, exists=True, file_okay=False), nargs=-1, required=True)
@click.option("--out", "page", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True)
@click.option("--title", default="diawork report", show_default=True)
def report(runs: tuple[Path, ...], page: Path, title: str) -> None:
    """Turn run folders (or a folder of them) into one offline HTML page."""
    from diawork.report.page import write_html

    _say(write_html(list(runs), page, title=title, asked=f"diawork report {' '.join(map(str, runs))}"))


@cli.command()
@click.option("--quick", is_flag=True, help="Small sizes: does it run?")
@click.option("--compile/--no-compile", "compiled", default=None, help="Compile trainings, too; or nothing.")
@click.option("--accuracy", metavar="DATASET", help="Also train on the fast paths and the plain one, and compare.")
@click.option("--preset", "preset_name", default="cpu", show_default=True, help="Of --accuracy.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 100), help="Of --accuracy.")
@_override
@_data_root
@_device
@_precision
@click.option("--runs", "root", type=click.Path(path_type=Path), help="Folder for the trainings of --accuracy.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench.html"), show_default=True)
def bench(quick: bool, compiled: bool | None, device: str, precision: str, out: Path, **options: Any) -> None:
    """Time every stage against the machine's measured ceiling and the released scheme: HTML and JSON."""
    from diawork.base.compute import Compute
    from diawork.base.files import write_json
    from diawork.bench.costs import measure_all
    from diawork.bench.fidelity import accuracy
    from diawork.bench.page import write_cost_html

    compute = Compute.auto(device, precision, compile=compiled)
    changes = parse_overrides(options.pop("overrides"))
    found = measure_all(quick=quick, compute=compute, say=click.echo)
    if dataset := options.pop("accuracy"):
        found["accuracy"] = accuracy(dataset, options.pop("preset_name"), changes=changes, compute=compute, **options)
    write_json(out.with_suffix(".json"), found)
    _say(f"written: {write_cost_html(found, out)} and {out.with_suffix('.json')}")


@cli.command()
@click.argument("name")
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="KEY=VALUE", help="e.g. preset=smoke")
@click.option("--out", type=click.Path(path_type=Path), help="The executed copy [default: ./NAME.executed.ipynb].")
def notebook(name: str, parameters: tuple[str, ...], out: Path | None) -> None:
    """Run a numbered notebook headless, e.g. `diawork notebook 03 -p preset=smoke`."""
    from diawork.runs.notebooks import find_notebook, run_notebook

    given = dict(_split(item) for item in parameters)
    _say(run_notebook(name, out or f"{find_notebook(name).stem}.executed.ipynb", parameters=given))


cli.add_command(sweep)


def _split(item: str) -> tuple[str, str]:
    key, sign, value = item.partition("=")
    if not sign:
        raise UsageError(f"{item!r} is not of the form KEY=VALUE.")
    return key.strip(), value.strip()


def parse_overrides(items: tuple[str, ...]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` pairs; values are JSON where they can be read so, else text."""
    changes = {}
    for key, value in map(_split, items):
        try:
            changes[key] = json.loads(value)
        except ValueError:
            changes[key] = value
    return changes


def _suite(dataset: str, preset_name: str, methods: tuple[str, ...], seeds: tuple[int, ...], *,
           out: Path | None = None, data_root: Path | None = None, device: str = "auto", precision: str = "auto",
           page: Path | None = None, changes: dict[str, Any] | None = None, acknowledge_leak: str = "",
           show: bool = False) -> None:  # fmt: skip
    """Run methods × seeds and write the report; shared by ``demo`` and ``run``."""
    from diawork.base.compute import Compute
    from diawork.data.manifests import load_manifest
    from diawork.detectors.registry import CONTROLS
    from diawork.report.page import write_html
    from diawork.runs.experiment import run_suite
    from diawork.runs.methods import method_config
    from diawork.runs.presets import preset
    from diawork.runs.run import runs_root

    named = [m for method in methods for m in (CONTROLS if method == "controls" else (method.strip(),))]
    cfg = preset(preset_name, dataset=dataset).override(changes or {})
    for method in named:
        method_config(cfg, method)  # a misspelt method is refused before any work
    root, name = runs_root(out), load_manifest(dataset).name
    runs = run_suite(
        cfg, named, seeds, root=root, data_root=data_root, acknowledge_leak=acknowledge_leak,
        compute=Compute.auto(device, precision),
        on_run=lambda r: _say(f"{r.result()['detector']:<28} seed {r.result()['seed']}  {_line(r.result())}"),
    )  # fmt: skip
    asked = f"diawork run --dataset {dataset} --preset {preset_name} --seeds {len(seeds)} --methods {','.join(methods)}"
    page = write_html(
        [r.folder for r in runs], page or root / f"report-{name}-{preset_name}.html",
        title=f"DIA on {name}", asked=asked,
    )  # fmt: skip
    _say(f"report: {page}")
    if show:
        webbrowser.open(page.absolute().as_uri())


def _line(result: dict[str, Any]) -> str:
    test = result["metrics"]["test"]
    return f"test AUROC {test['auroc']:.3f} [{test['auroc_low']:.3f}, {test['auroc_high']:.3f}]"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; a user's error is one sentence and an exit code, a bug of ours a saved traceback."""
    warnings.showwarning = lambda message, *_, **__: _say(f"note: {message}", err=True)
    try:
        with stop_at_once():
            return cli.main(args=argv, standalone_mode=False) or 0
    except click.exceptions.Abort as stop:  # click's word for an interrupt
        _say("Stopped; the same command goes on.", err=True)
        return 75 if isinstance(stop.__cause__, StopNow) else 130
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        _say(text.getvalue().rstrip(), err=True)
        return 2
    except Exception as error:
        if os.environ.get("DIAWORK_DEBUG"):
            raise
        return _failed(error)


def _failed(error: Exception) -> int:
    """Say in one sentence what went wrong; return the exit code."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        hint = "Lower train.batch_size or diffusion.batch_size; the last checkpoint is intact."
        error = ResourceError(f"out of memory ({error}).", hint=hint)
    if isinstance(error, DiaworkError):
        _say(f"error[{error.code}] {error}", err=True)
        return error.exit_code
    crash = Path(f"crash-{os.getpid()}.txt")
    try:
        crash.write_text(traceback.format_exc(), "utf-8", "backslashreplace")
        where = f"the traceback is in {crash}"
    except OSError:
        where = "set DIAWORK_DEBUG=1 to see the traceback"
    _say(f"error[E100] a bug of ours ({type(error).__name__}: {error}); {where}.", err=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
