"""The errors a user can meet: one sentence each, with a code, an exit status and a way out."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

_Choice = TypeVar("_Choice")


class DiaworkError(Exception):
    """Base of all errors meant for the user; anything else is a bug of ours.

    ``what`` is one sentence naming the value and the allowed set, ``hint`` the next step;
    ``path`` and ``field`` say where the trouble is. ``code`` is stable and documented.
    """

    code = "E100"
    exit_code = 1

    def __init__(self, what: str, *, hint: str = "", path: object = None, field: str = "") -> None:
        self.what, self.hint, self.path, self.field = what, hint, path, field
        super().__init__(what)

    def __str__(self) -> str:
        where = "".join(f"{printable(part)}: " for part in (self.path, self.field) if part)
        return printable(f"{where}{self.what} {self.hint}".rstrip(" "), keep="\n")

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows in place of a traceback."""
        return [str(self)]


class UsageError(DiaworkError):
    """A parameter, preset, manifest or argument is not what it may be."""

    code, exit_code = "U200", 2


class DataError(DiaworkError):
    """A data set is missing, damaged, mislabelled or unfit for the protocol."""

    code, exit_code = "D300", 3


class CheckpointError(DiaworkError):
    """A checkpoint or another of our artefacts is damaged or belongs to something else."""

    code, exit_code = "C400", 4


class ResourceError(DiaworkError):
    """Disk, memory, permission or device does not allow what was asked."""

    code, exit_code = "R500", 5


class NumericError(DiaworkError):
    """A loss, gradient, input or score stopped being finite."""

    code, exit_code = "N600", 6


class BusyError(DiaworkError):
    """Another process is working on this run."""

    code, exit_code = "B800", 8


class ProcessDied(DiaworkError):
    """One of several processes of a training was killed or ended by a bug; ``exit_code`` is its own."""

    code, exit_code = "P900", 1


class Interrupted(DiaworkError):
    """Stopped on request with everything saved; the same command goes on."""

    code, exit_code = "S750", 75

    def _render_traceback_(self) -> list[str]:
        return [f"{self.what} Run this cell again to go on."]


def out_of_memory(error: Exception) -> ResourceError | None:
    """Return what a user can do about an error that says memory ran out; None for any other."""
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")  # on CPUs
    said = isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)
    if not said and not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
        return None
    hint = "Lower train.batch_size or diffusion.batch_size; the last checkpoint is intact."
    return ResourceError(f"out of memory ({error}).", hint=hint)


def printable(text: object, keep: str = "") -> str:
    """Return text that is harmless in a terminal: what does not print, or turns its direction, is spelt out."""
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """Return a hint with the nearest allowed names, or all of them where none is near."""
    allowed = sorted(str(a) for a in allowed)
    near = difflib.get_close_matches(str(name), allowed, n=2, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Allowed: {', '.join(allowed)}."


def pick(choices: Mapping[str, _Choice], name: str, what: str) -> _Choice:
    """Return ``choices[name]``; a name that is not a ``what`` is a ``UsageError`` with the nearest one."""
    if name not in choices:
        raise UsageError(f"{name!r} is not a {what}.", hint=did_you_mean(name, choices))
    return choices[name]
