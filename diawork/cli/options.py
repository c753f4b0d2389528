"""The options that several verbs share, how their values are read, and how the command line speaks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from diawork.base.errors import UsageError, printable
from diawork.base.files import read_value

STOPS = (
    "Ctrl-C, SIGTERM or SIGUSR1 stops it after saving, and the same command goes on. Where Ctrl-C is ignored "
    "(nohup, & in a script), `kill PID` does the same."
)


def ending(example: str, more: str = "") -> str:
    """Return what stands at the end of a verb's help: one example, and what else is to be known."""
    return f"Example: {example}\n\n{more}".rstrip()


class Group(click.Group):
    """A group whose --help lists a verb by its name alone; other names of the same verb work."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the verbs, each once."""
        return [name for name in super().list_commands(ctx) if self.commands[name].name == name]


class Renamed(click.Option):
    """An option with older spellings, which still work and which --help does not list."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the line of --help, with the first spelling alone."""
        known, self.opts = self.opts, self.opts[:1]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = known


def path_option(*names: str, **more: Any) -> Callable:
    """Return an option that takes a path."""
    return click.option(*names, type=click.Path(path_type=Path), **more)


out = path_option("--out", help="Folder for runs [default: $DIAWORK_HOME or ./runs].")
data_root = path_option("--data-root", help="Folder with data [default: $DIAWORK_DATA].")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
precision = click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16")
processes = click.option(
    "--processes", default=0, type=click.IntRange(0, 1000), show_default="$DIAWORK_PROCESSES, or 1",
    help="How many share each training of a DDPM, DIA or CSI, on a card or some of the cores each.",
)  # fmt: skip
overrides = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="e.g. loss.temperature=0.2")


def say(text: object, *, err: bool = False, keep: str = "\n") -> None:
    """Print text whose names nobody vouches for: nothing in it steers the terminal."""
    click.echo(printable(text, keep=keep), err=err)


def pairs(items: tuple[str, ...]) -> dict[str, str]:
    """Split ``KEY=VALUE`` items."""
    for item in items:
        if "=" not in item:
            raise UsageError(f"{item!r} is not of the form KEY=VALUE.")
    return {key.strip(): value.strip() for key, _, value in (item.partition("=") for item in items)}


def parse_overrides(items: tuple[str, ...]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` pairs; values are JSON or Python where they can be read so, else text."""
    values: dict[str, Any] = pairs(items)
    for key, text in pairs(items).items():
        with contextlib.suppress(ValueError):
            values[key] = read_value(text)
    return values
