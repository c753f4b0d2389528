"""``diawork data``: list, describe, download and check data sets."""

from __future__ import annotations

from pathlib import Path

import click

from diawork.cli import options
from diawork.cli.options import say


@click.group()
def data() -> None:
    """List, describe, download and check data sets."""


@data.command("list")
def list_all() -> None:
    """List the data sets that have a manifest."""
    from diawork.data import manifests

    for name in manifests.list_manifests():
        manifest = manifests.load_manifest(name)
        say(f"{name:<16} {manifest.title} · {manifest.licence}")


@data.command()
@click.argument("name")
@options.data_root
def show(name: str, data_root: Path | None) -> None:
    """Describe a data set: counts per split and class, licence, notes."""
    _describe(name, data_root)


@data.command()
@click.argument("name")
@options.data_root
def download(name: str, data_root: Path | None) -> None:
    """Download a data set from its published address and verify its checksum."""
    _describe(name, data_root, download=True)


def _describe(name: str, data_root: Path | None, *, download: bool = False) -> None:
    from diawork.data import images

    say(images.describe(images.load(name, data_root, download=download)))


@data.command()
@click.argument("name")
@options.data_root
@options.out
def check(name: str, data_root: Path | None, out: Path | None) -> None:
    """Look for duplicates across splits, constant images and missing roles."""
    from diawork.data import checks, images
    from diawork.runs.run import runs_root

    report = checks.check_splits(images.load(name, data_root), cache=runs_root(out) / "data-checks")
    say(report)
    click.get_current_context().exit(3 if report.errors else 0)
