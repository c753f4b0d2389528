"""Many new images, scored into a table that goes on where it was stopped."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from diawork.base.errors import ResourceError, UsageError, printable
from diawork.base.files import read_json, write_json, write_text
from diawork.base.locks import locked
from diawork.data.readers.listing import image_files
from diawork.runs.predict.predictor import COLUMNS, Predictor, Scored


def score_files(
    predictor: Predictor,
    sources: Sequence[Path | str],
    out: Path,
    *,
    on_batch: Callable[[Scored], Any] | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Write a row an image to ``out`` (CSV), keeping those that it already has; return the files left out.

    Beside it stand a JSON file of what the scores belong to and, where there are any, the files left out with
    their reasons. ``on_batch`` sees each batch before its rows are written.
    """
    files = image_files(sources)
    if not files:
        raise UsageError(f"no image among {', '.join(map(str, sources))}.")
    left_out: dict[str, str] = {}
    with _alone(out):
        done = _resumed(out, predictor.facts)
        waiting = [file for file in files if printable(file) not in done]
        for batch in predictor.batches(waiting, progress=progress):
            if on_batch is not None and batch.rows:
                on_batch(batch)
            left_out |= batch.left_out
            _append(out, _lines(batch.rows))
        _write_left_out(out.with_name(f"{out.stem}-left-out.csv"), left_out)
    return left_out


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold ``out`` for this process."""
    folder = out.with_name(f".{out.name}.lock")
    with locked(folder):
        yield
    folder.rmdir()


def _resumed(out: Path, facts: dict[str, Any]) -> set[str]:
    """Return the images that ``out`` has a row of, its torn last line removed; a new file gets its head."""
    record = out.with_suffix(".json")
    if not out.exists():
        write_json(record, facts)
        write_text(out, ",".join(COLUMNS) + "\n")
        return set()
    if not record.exists() or read_json(record) != facts:
        whose = f"is of {read_json(record).get('run')}" if record.exists() else "is not of `diawork score`"
        raise UsageError(f"this file {whose}.", path=out, hint="Name another with --csv, or remove it.")
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(out, len(whole))
    head, *rows = csv.reader(io.StringIO(whole.decode("utf-8"), newline=""))
    if tuple(head) != COLUMNS:
        raise UsageError("this file has other columns.", path=out, hint="Name another with --csv, or remove it.")
    return {row[0] for row in rows}


def _lines(rows: list[dict[str, Any]]) -> str:
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.to_csv(index=False, header=False, float_format="%.6g", lineterminator="\n") if rows else ""


def _append(out: Path, text: str) -> None:
    try:
        with open(out, "a", encoding="utf-8", newline="") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
    except OSError as error:
        hint = "Free some space; the rows already written are kept."
        raise ResourceError(f"cannot be written ({error.strerror or error}).", path=out, hint=hint) from None


def _write_left_out(path: Path, left_out: dict[str, str]) -> None:
    if left_out:
        write_text(path, pd.DataFrame(left_out.items(), columns=["image", "reason"]).to_csv(index=False))
    else:
        path.unlink(missing_ok=True)
