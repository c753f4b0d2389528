"""``diawork lab``: the notebooks copied to where the user works, and JupyterLab opened there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click

from diawork.base.errors import ResourceError
from diawork.cli.options import ending, say


@click.command(epilog=ending("diawork lab work"))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--open/--no-open", "show", default=True, help="Start JupyterLab; without it only copy.")
def lab(folder: Path, show: bool) -> None:
    """Copy the notebooks and open JupyterLab. They go to FOLDER (default: here); files that are there are kept."""
    from diawork.runs.notebooks import list_notebooks

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in list_notebooks():
            if not (folder / source.name).exists():
                shutil.copyfile(source, folder / source.name)
                say(f"copied {folder / source.name}")
    except OSError as error:
        raise ResourceError(f"the notebooks cannot be copied ({error.strerror}).", path=folder) from None
    if show:
        command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}"]
        click.get_current_context().exit(subprocess.call(command))
