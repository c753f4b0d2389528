"""The reader of tables, CSV or parquet: a row an image, with its label and, where known, split, patient and mask."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from diawork.base.errors import DataError, did_you_mean, printable
from diawork.data.facts import SPLITS, Columns, inside_root
from diawork.data.manifests import Manifest
from diawork.data.readers.collection import Listing, read_items
from diawork.data.readers.folder import meaning, patient_of
from diawork.data.readers.pixels import decoding
from diawork.data.readers.splitting import Item
from diawork.data.readers.types import Content
from diawork.data.sources import find_file, root_of

MOST_BYTES, MOST_ROWS = 512 * 2**20, 5_000_000
PARQUET = b"PAR1"


def read(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read the images that a manifest's table lists; their paths begin at its folder, or at the manifest's."""
    return read_items(manifest, list_items(manifest, root, download=download))


def list_items(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Listing:
    """List the images that a manifest's table names."""
    path = find_file(manifest, root, download=download)
    base = path.parent
    if manifest.folder is not None:
        base = manifest.path_in(root_of(path, manifest), manifest.folder)
    with decoding(path, "this table is damaged"):
        return Listing(base, list(_items(read_rows(path), manifest)), {})


def _items(rows: Iterator[dict[str, str]], manifest: Manifest) -> Iterator[Item]:
    columns, seen = manifest.columns or Columns(), dict[str, Item]()
    for number, row in enumerate(rows, 2):
        if number == 2:
            _refuse_missing(columns, row)
        path = row[columns.image] + (columns.suffix or "")
        try:
            inside_root(path)
        except ValueError as error:
            raise DataError(f"row {number}: the path {printable(path)!r} {error}.", field=columns.image) from None
        label = row[columns.label]
        class_name = meaning(_named(label, manifest), manifest.classes.values(), manifest, f"class (row {number})")
        split = meaning(row.get(columns.split) or "train", SPLITS, manifest, f"split (row {number})")
        if path in seen:  # a table of findings has a row for each
            _refuse_another(number, seen[path], class_name, split)
            continue
        seen[path] = item = Item(path, class_name, split, mask=row.get(columns.mask) or "")
        if manifest.roles[class_name] != "unused":
            patient = row.get(columns.patient) or patient_of(path.rpartition("/")[2], manifest)
            yield item._replace(patient=patient)


def _refuse_another(number: int, item: Item, class_name: str, split: str) -> None:
    for words, one, other in (("labels", item.class_name, class_name), ("splits", item.split, split)):
        if one != other:
            raise DataError(f"row {number}: {printable(item.path)} stands under two {words}, {one} and {other}.")


def _refuse_missing(columns: Columns, row: dict[str, str]) -> None:
    for wanted in (columns.image, columns.label):
        if wanted not in row:
            what = f"the column {wanted!r} is missing; there are {', '.join(map(printable, row))}."
            raise DataError(what, hint=f"{did_you_mean(wanted, row)} Name it under columns in the manifest.")


def _named(label: str, manifest: Manifest) -> str:
    """Return the class name of a label that is a number; another is a name, or an alias of one."""
    if label in manifest.aliases or label in manifest.classes.values():
        return label
    return manifest.classes.get(int(label), label) if label.isdecimal() and len(label) < 6 else label


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a table as text by column."""
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path.stat().st_size:,} bytes are too many for a table (at most {MOST_BYTES:,}).")
    data = path.read_bytes()
    yield from _parquet(path) if data.startswith(PARQUET) else _csv(data)


def _csv(data: bytes) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file in UTF-8; separated as its first line is: comma, semicolon or tab."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte {error.start}).", hint="Save the table as UTF-8.") from None
    if "\0" in text:
        raise DataError("holds a NUL character; this is no CSV file.")
    head = text.partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    names = [name.strip() for name in next(lines, [])]
    if len(set(names)) < len(names) or not names:
        raise DataError("the first row must name the columns, each once.")
    for number, cells in enumerate(lines, 2):
        if not cells:
            continue
        if len(cells) != len(names) or number > MOST_ROWS:
            raise DataError(f"row {number} has {len(cells)} cells, the first row {len(names)}.")
        yield {name: cell.strip() for name, cell in zip(names, cells, strict=True)}


def _parquet(path: Path) -> Iterator[dict[str, str]]:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except ImportError:
        hint = "Install pyarrow, or save the table as CSV."
        raise DataError("a parquet table needs the package pyarrow.", hint=hint) from None
    for row in table.itertuples(index=False):
        yield {str(k): "" if pd.isna(v) else str(v) for k, v in zip(table.columns, row, strict=True)}
