"""``diawork ddpm``: a pretrained DDPM in the layout of diffusers, and back."""

from __future__ import annotations

from pathlib import Path

import click

from diawork.cli import options
from diawork.cli.options import say

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.group()
def ddpm() -> None:
    """Exchange a pretrained DDPM with the library diffusers."""


@ddpm.command()
@click.argument("source", type=_FOLDER)
@click.argument("out", type=click.Path(path_type=Path))
@options.data_root
def export(source: Path, out: Path, data_root: Path | None) -> None:
    """Write the DDPM in SOURCE, its own folder or that of a run, to OUT as diffusers reads it."""
    from diawork.base.checkpoints import has_checkpoint
    from diawork.method.ddpm import load_ddpm
    from diawork.method.pipelines.exchange import export_ddpm
    from diawork.runs.artifacts import ddpm_of_run

    model = load_ddpm(source) if has_checkpoint(source / "ddpm") else ddpm_of_run(source, data_root)
    folder = export_ddpm(model, out)
    bridge = f" --set dissolve.bridge={model.data['bridge']}" if model.data.get("bridge") else ""
    say(f"written: {folder}; in the slot: --methods diffusers --set dissolve.model={folder}{bridge}")


@ddpm.command("import")
@click.argument("source", type=_FOLDER)
@click.argument("out", type=click.Path(path_type=Path))
def import_(source: Path, out: Path) -> None:
    """Write the DDPM that was exported to SOURCE back to OUT, bit for bit."""
    from diawork.base.checkpoints import has_checkpoint
    from diawork.base.errors import UsageError
    from diawork.method.ddpm import save_ddpm
    from diawork.method.pipelines.exchange import import_ddpm

    if has_checkpoint(out / "ddpm"):
        raise UsageError("this folder holds a DDPM already.", path=out, hint="Choose another one.")
    save_ddpm(out, import_ddpm(source))
    say(f"written: {out}")
