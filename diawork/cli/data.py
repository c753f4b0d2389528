"""``diawork data``: list, describe, get, verify, check, scan and split data sets."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from diawork.cli import options
from diawork.cli.options import Group, Renamed, ending, path_option, say

SHEET = 320  # pictures of a contact sheet, 8 a class or fewer
OURS = b"diawork data scan"  # stands in the contact sheet's file


@click.group(cls=Group, epilog=ending("diawork data list"))
def data() -> None:
    """List, describe, get, verify, check, scan and split data sets."""


@data.command("list", epilog=ending("diawork data list"))
def list_all() -> None:
    """List the data sets that have a manifest."""
    from diawork.data import manifests

    for name in manifests.list_manifests():
        manifest = manifests.load_manifest(name)
        say(f"{name:<16} {manifest.title} · {manifest.licence}")
    say(f"{len(manifests.PHANTOMS)} other anatomies and lesions of the phantom: {', '.join(manifests.PHANTOMS)}")


@data.command(epilog=ending("diawork data show pneumoniamnist"))
@click.argument("name")
@options.data_root
def show(name: str, data_root: Path | None) -> None:
    """Describe a data set: counts, licence, notes."""
    _describe(name, data_root)


@data.command(epilog=ending("diawork data get pneumoniamnist"))
@click.argument("name")
@options.data_root
def get(name: str, data_root: Path | None) -> None:
    """Download a data set. It comes from its published address, and its checksum is verified."""
    _describe(name, data_root, download=True)


data.add_command(get, "download")  # its name of old


@data.command(epilog=ending("diawork data scan scans --manifest mine.yaml"))
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@path_option("--manifest", "--out", "written", cls=Renamed, help="Its path [default: beside the folder, by its name].")
@click.option("--normal", default="", metavar="CLASS", help="The healthy class, where its name does not say so.")
def scan(folder: Path, written: Path | None, normal: str) -> None:
    """Guess the manifest of a folder. What was assumed is said, and a contact sheet lies beside it."""
    from diawork import figures
    from diawork.base.files import write_bytes
    from diawork.data.annotations import counted
    from diawork.data.scan import guess_manifest, write_guess

    guess = guess_manifest(folder.absolute(), normal=normal)
    path = write_guess(guess, folder.absolute(), written)
    each = min(8, max(1, SHEET // len(guess.examples)))
    shown = [(name, guess.opened[file]) for name, files in guess.examples.items()
             for file in [file for file in files if file in guess.opened][:each]]  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a class name beyond the font, shown as a box
        grid = figures.image_grid([image for _, image in shown], [name for name, _ in shown])
        picture = figures.png_bytes(grid, maker=OURS.decode())
    sheet = path.with_suffix(".png")
    if sheet.exists() and OURS not in sheet.read_bytes()[:200]:
        say(f"no contact sheet: {sheet.name} is a picture of yours", err=True)
    else:
        write_bytes(sheet, picture)
    for (split, name), n in sorted(guess.counts.items()):
        say(f"{split:<6} {name:<24} {n:>9,} images")
    for text in guess.assumed:
        say(f"assumed: {text}")
    for text in counted(guess.left_out.values()):
        say(f"left out: {text}, named in {path.stem}-left-out.csv")
    say(f"written: {path}, contact sheet {sheet.name}; read both, then: diawork data show {path}")


@data.command(epilog=ending("diawork data split mine.yaml --val 0.1 --test 0.2"))
@click.argument("name")
@click.option(
    "--val", default=0.1, show_default=True, type=click.FloatRange(0, 1, max_open=True), help="Share of train."
)
@click.option(
    "--test", default=0.0, show_default=True, type=click.FloatRange(0, 1, max_open=True), help="Share of train."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1))
@click.option("--name", "new", default="", metavar="NEW", help="Of the new set [default: NAME-split].")
@options.data_root
def split(name: str, val: float, test: float, seed: int, new: str, data_root: Path | None) -> None:
    """Divide the train images of a set, patient by patient. Classes keep their shares; a manifest says how."""
    from diawork.data.manifests import Recipe, load_manifest
    from diawork.data.readers.listing import list_items
    from diawork.data.splits import write_split

    manifest = load_manifest(name)
    listing = list_items(manifest, data_root)
    path = write_split(manifest, listing, Recipe(seed=seed, val=val, test=test), name=new)
    _describe(str(path), None)
    say(f"written: {path} and {path.with_suffix('.csv').name}, which travel with the images")


@data.command(epilog=ending("diawork data verify pneumoniamnist"))
@click.argument("name")
@options.data_root
def verify(name: str, data_root: Path | None) -> None:
    """Hold a set on disk against its manifest. Images, counts and the published checksum are looked at."""
    from diawork.data import checks, datasets

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another checksum is a finding of its own here
        findings = checks.verify(datasets.load(name, data_root))
    for finding in findings:
        say(f"{'ok' if finding.good else 'differs':<8} {finding.text}")
    click.get_current_context().exit(0 if all(finding.good for finding in findings) else 3)


def _describe(name: str, data_root: Path | None, *, download: bool = False) -> None:
    from diawork.data import datasets, images

    say(images.describe(datasets.load(name, data_root, download=download)))


@data.command(epilog=ending("diawork data check pneumoniamnist"))
@click.argument("name")
@options.data_root
@options.out
def check(name: str, data_root: Path | None, out: Path | None) -> None:
    """Look for duplicates across splits. Constant images and missing roles are found, too."""
    from diawork.data import checks, datasets
    from diawork.runs.run import runs_root

    splits = datasets.load(name, data_root)
    report = checks.check_splits(splits, cache=runs_root(out) / "data-checks")
    say(report)
    for note in splits.notes:
        say(f"note         {note}")
    click.get_current_context().exit(3 if report.errors else 0)
