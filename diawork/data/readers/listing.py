"""The reader of sets whose images are files of their own, listed by folders, by a table or by a split list.

    folder      levels of folders that say split, class and patient, as the manifest lists them
    table       CSV or parquet: a row an image, with its label and, where known, split, patient and mask
    splitlist   JSON as MedIAnomaly keeps it: {"train": {"0": [files]}, "test": {"0": […], "1": […]}}

Each kind has one function that lists the files (``SOURCES``); decoding, splits and the store are the same for all.
"""

import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diawork.base.errors import DataError, UsageError, did_you_mean, printable
from diawork.base.files import digest
from diawork.data.locations import cache_root, find_file, find_folder
from diawork.data.manifests import SPLITS, Columns, Manifest, inside_root
from diawork.data.preprocess import IN_COLOUR, Picture, decoding, resized
from diawork.data.readers.picture import Preprocessing, file_and_frame, is_image, read_mask
from diawork.data.splits import FileStat, Item, Listing, kept_items, shared_patients, split_items
from diawork.data.store import Content, Part, Store, StoredMasks, open_store

TABLES = (".csv", ".tsv", ".parquet", ".xlsx")
IMAGE_COLUMNS = ("image_path", "image", "path", "file", "filename")
MOST_BYTES = 512 * 2**20  # of a table or list
MOST_CELLS = 2e7
OF_PROGRAMS = {
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "lost+found",
    "system volume information",
    "thumbnails",
}
MOST_TINTED = 0.05  # share of a grey set's files that may be in colour
MOST_DEPTH = 16  # of folders; links may lead in circles
DECODER = 3  # raised where the same file gives other values than before


def read(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Content:
    """Read a set of listed image files: drop, divide, and decode once into the store."""
    base, listed, stats = list_items(manifest, root, download=download)
    if not listed:
        raise DataError("there is no image of a known class.", path=base)
    every, preprocessing = sorted(listed), Preprocessing.of(manifest)._replace(levels=0)

    def decode_image(path: str) -> Picture:
        file, frame = file_and_frame(path, base)
        return preprocessing.read(base / file, frame)

    def decode_masks(cell: str) -> Picture:
        return Picture(np.maximum.reduce([decode_mask(path) for path in cell.split("|")]))

    def decode_mask(path: str) -> np.ndarray:
        file, frame = file_and_frame(path, base)
        values = read_mask(base / file, manifest.frame if frame is None else frame)
        return resized(values, manifest.image.size, manifest.resize).round()

    files = [stats.get(item.path) or _file_stat(base, item.path) for item in every]
    store = _stored(manifest, base, "images", files, decode_image)
    images, notes = store.images, [f"{n:,} of {len(files):,}: {text}." for text, n in store.said.items()]
    if (tinted := store.said.get(IN_COLOUR, 0)) > MOST_TINTED * len(files):
        what = f"{tinted:,} of {len(files):,} images are in colour, and the set is grey."
        raise DataError(what, path=base, hint="Say image: {channels: 3} in the manifest.")
    if manifest.intensity and store.cut.n:
        with decoding(base, "cannot be used"):
            notes.append(store.cut.words(manifest.intensity, most=manifest.most_cut))
    kept = kept_items(manifest, every)
    _refuse_bad({item.path: store.bad[item.path] for item in kept if item.path in store.bad}, len(kept), base)
    kept = split_items(kept, manifest.recipe) if manifest.recipe else kept
    mask_paths = sorted({item.mask for item in kept if item.mask})
    masks = None
    if mask_paths:
        drawn = _stored(manifest, base, "masks", [_file_stat(base, path) for path in mask_paths], decode_masks)
        _refuse_bad(drawn.bad, len(mask_paths), base)
        masks = drawn.images
    row_of = {item.path: row for row, item in enumerate(every)}
    mask_row_of = {path: row for row, path in enumerate(mask_paths)}

    def part(items: list[Item]) -> Part:
        lesions = None
        if masks:
            mask_rows = np.array([mask_row_of.get(item.mask, -1) for item in items], np.int64)
            lesions = StoredMasks(masks.values, masks.all_digests, mask_rows)
        rows = np.array([row_of[item.path] for item in items], np.int64)
        names, paths, patients = (
            np.array([getattr(item, column) for item in items], dtype=str)
            for column in ("class_name", "path", "patient")
        )
        return Part(images.take(rows), names, lesions, paths, patients)

    splits = dict.fromkeys(("train", *sorted({item.split for item in kept})))
    parts = {split: part([item for item in kept if item.split == split]) for split in splits}
    whole = "patient" if any(item.patient for item in kept) else "image"
    made = f", splits made by {whole} with seed {manifest.recipe.seed}" if manifest.recipe else ""
    return Content(parts, f"files under {manifest.place}{made}", (*notes, *_notes(manifest, kept)), base)


def list_items(manifest: Manifest, root: Path | str | None = None, *, download: bool = False) -> Listing:
    """List the image files of a set, those of unused classes left out, without opening any."""
    if manifest.kind not in SOURCES:
        what = f"{manifest.name!r} is of kind {manifest.kind}: its images are no files that a list could name."
        raise UsageError(what, hint=f"What can be listed: {', '.join(SOURCES)}.")
    return SOURCES[manifest.kind](manifest, root, download)


def _file_stat(base: Path, path: str) -> FileStat:
    """Return what the disk knows of a file, or of the files joined by "|"."""
    try:
        stats = [os.stat(base / file_and_frame(part, base)[0]) for part in path.split("|")]
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path=base / path) from None
    return FileStat(path, sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats))


def _stored(
    manifest: Manifest, base: Path, what: str, files: Sequence[FileStat], decode: Callable[[str], Picture]
) -> Store:
    """Return the store of "images" or "masks" of a set."""
    spec = {"decoder": DECODER, "resize": manifest.resize, "intensity": manifest.intensity, "frame": manifest.frame}
    key = [what, str(base), manifest.kind, manifest.file, manifest.image.model_dump(), spec]
    channels, size = 1 if what == "masks" else manifest.image.channels, manifest.image.size
    deep = manifest.intensity is not None and what == "images"
    return open_store(
        cache_root() / "store" / f"{manifest.name}-{digest(key)}", files, decode, shape=(channels, size, size),
        dtype="uint16" if deep else "uint8", spec=spec,
    )  # fmt: skip


def _refuse_bad(bad: dict[str, str], n: int, base: Path) -> None:
    if bad:
        path, reason = next(iter(bad.items()))
        what = f"{len(bad):,} of {n:,} images cannot be used, first {printable(path)}: {reason}"
        hint = "Mend or remove them, or name them under drop in the manifest."
        raise DataError(what, path=base, hint=hint)


def _notes(manifest: Manifest, kept: Sequence[Item]) -> tuple[str, ...]:
    def some(names: Sequence[str], most: int = 5) -> str:
        return ", ".join(names[:most]) + (", …" if len(names) > most else "")

    notes, n = [], len(manifest.drop)
    if n:
        notes.append(f"Left out by the manifest: {n} image{'s' if n > 1 else ''} ({some(manifest.drop)}).")
    patients, trained, evaluated = shared_patients(kept)
    if patients:
        who = f"{len(patients)} patient{'s stand' if len(patients) > 1 else ' stands'} in train and in val or test"
        what = f"({trained} and {evaluated} images; {some(patients)})"
        notes.append(f"{who} {what}: kept out of splits made of train, and of contamination.")
    return tuple(notes)


# --- what folders, tables and lists say of an image ----------------------------------------------------


def _item(path: str, manifest: Manifest, *, split: str, label: str, patient: str = "", where: str = "") -> Item:
    """Return an item by the words for its split and class; ``where`` names the row in errors."""
    name = manifest.aliases.get(label, label)
    if label.isdecimal() and len(label) < 6 and name == label and label not in manifest.roles:
        name = manifest.classes.get(int(label), label)
    class_name = _meaning(name, manifest.roles, manifest, "class", where)
    split = _meaning(manifest.aliases.get(split, split), SPLITS, manifest, "split", where)
    if manifest.roles[class_name] != "unused" and manifest.patient is not None and not patient:
        patient = _patient_of(path.rpartition("/")[2], manifest)
    return Item(path, class_name, split, patient)


def _meaning(name: str, allowed: Iterable[str], manifest: Manifest, what: str, where: str) -> str:
    if name not in allowed:
        hint = f"{did_you_mean(name, allowed)} A word of another meaning goes into the manifest's aliases."
        field = f"{what} ({where})" if where else what
        raise DataError(f"{name!r} is not a {field} of the set.", path=manifest.name, field=field, hint=hint)
    return name


def _patient_of(name: str, manifest: Manifest) -> str:
    match = re.search(str(manifest.patient), name)
    patient = next((group for group in match.groups() if group), "") if match else ""
    if not patient:
        what = f"{printable(name)} names no patient by the pattern {manifest.patient!r}."
        raise DataError(what, path=manifest.name, field="patient", hint="Widen the pattern, or leave the image out.")
    return patient


def _used(items: Iterable[Item], manifest: Manifest) -> list[Item]:
    return [item for item in items if manifest.roles[item.class_name] != "unused"]


def _list_folder(manifest: Manifest, root: Path | str | None, download: bool) -> Listing:
    base, layout = find_folder(manifest, root), manifest.layout or ()
    stats, items = {file.path: file for file in walk(base)}, []
    for path in stats:
        folders = path.split("/")[:-1]
        if len(folders) != len(layout):
            wanted = "/".join(f"<{level}>" for level in layout)
            what = f"{printable(path)} lies {len(folders)} folders deep; the layout is {wanted}/<file>."
            hint = "Set layout in the manifest, one word a level: split, class, patient, any."
            raise DataError(what, path=base, hint=hint)
        words = dict(zip(layout, folders, strict=True))
        split, patient = words.get("split", "train"), words.get("patient", "")
        items.append(_item(path, manifest, split=split, label=words["class"], patient=patient))
    return Listing(base, _used(items, manifest), stats)


def _find_list(manifest: Manifest, root: Path | str | None, download: bool, what: str) -> tuple[Path, Path]:
    """Return the file that lists the images, and the folder where their paths begin."""
    path = find_file(manifest, root, download=download)
    with decoding(path, f"this {what} cannot be read"):
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path.stat().st_size:,} bytes are too many for a {what} (at most {MOST_BYTES:,}).")
    return path, path.parent if manifest.folder is None else find_folder(manifest, root)


def _list_table(manifest: Manifest, root: Path | str | None, download: bool) -> Listing:
    path, base = _find_list(manifest, root, download, "table")
    columns, seen = manifest.columns or Columns(), dict[str, Item]()
    with decoding(path, "this table is damaged"):
        for number, row in enumerate(read_rows(path), 2):
            for wanted in (columns.image, columns.label):
                if wanted not in row:
                    what = f"the column {wanted!r} is missing; there are {', '.join(map(printable, row))}."
                    raise DataError(what, hint=f"{did_you_mean(wanted, row)} Name it under columns in the manifest.")
            file, where = row[columns.image].removeprefix("./") + (columns.suffix or ""), f"row {number}"
            split = row.get(columns.split)
            mask = row.get(columns.mask) or ""
            for column, cell in ((columns.image, file), *((columns.mask, part) for part in mask.split("|") if part)):
                try:
                    inside_root(cell)
                except ValueError as error:
                    raise DataError(f"{where}: the path {printable(cell)!r} {error}.", field=column) from None
            patient = row.get(columns.patient) or ""
            item = _item(file, manifest, split=split or "train", label=row[columns.label], patient=patient, where=where)
            first = seen.setdefault(file, item._replace(mask=mask))
            # a table of findings has several rows an image
            if first.class_name != item.class_name:
                labels = f"{first.class_name} and {item.class_name}"
                raise DataError(f"{where}: {printable(file)} stands under two labels, {labels}.")
            if first.split != item.split:
                raise DataError(f"{where}: {printable(file)} stands under two splits, {first.split} and {item.split}.")
    return Listing(base, _used(seen.values(), manifest))


def _list_splitlist(manifest: Manifest, root: Path | str | None, download: bool) -> Listing:
    path, base = _find_list(manifest, root, download, "split list")
    class_of, items = dict[str, str](), list[Item]()

    def pairs(values: Any, what: str) -> Iterable[tuple[str, Any]]:
        if not isinstance(values, dict):
            raise DataError(f"holds {type(values).__name__} where a mapping of {what} should stand.")
        return values.items()

    with decoding(path, "this split list is damaged"):
        for split, by_label in pairs(json.loads(path.read_bytes()), "splits"):
            _meaning(manifest.aliases.get(split, split), SPLITS, manifest, "split", "")
            for label, files in pairs(by_label, "labels"):
                if label == "unlabeled":
                    continue
                for file in files if isinstance(files, list) else [files]:
                    if not isinstance(file, str):
                        raise DataError(f"names {file!r} where a file should stand.")
                    try:
                        inside_root(file)
                    except ValueError as error:
                        raise DataError(f"the path {printable(file)!r} {error}.") from None
                    item = _item(file, manifest, split=split, label=label)
                    other = class_of.setdefault(file, item.class_name)
                    if other != item.class_name:
                        what = f"{printable(file)} stands under two labels, {other} and {item.class_name}."
                        raise DataError(what)
                    items.append(item)
    return Listing(base, _used(items, manifest))


SOURCES = {"folder": _list_folder, "table": _list_table, "splitlist": _list_splitlist}


# --- files and rows ------------------------------------------------------------------------------------


def walk(base: Path, unused: dict[str, str] | None = None) -> Iterator[FileStat]:
    """Yield every image file under a folder, whatever its depth; hidden ones are passed over.

    ``unused`` takes the other files, and the folders of other programs: path → of what kind each is.
    """
    unused = {} if unused is None else unused
    folders = [""]
    while folders:
        inside = folders.pop()
        try:
            entries = sorted(os.scandir(base / inside), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror}).", path=base / inside) from None
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir() and entry.name.casefold() in OF_PROGRAMS:
                unused[path] = "a folder of another program"
            elif entry.is_dir():
                if path.count("/") < MOST_DEPTH:
                    folders.append(path)
            elif not entry.is_file():
                unused[path] = "a link that leads nowhere" if entry.is_symlink() else "no plain file"
            elif is_image(entry.path):
                known = entry.stat()
                yield FileStat(path, known.st_size, known.st_mtime_ns)
            else:
                plain = "DICOMDIR" if entry.name.upper() == "DICOMDIR" else "without ending"
                unused[path] = f"file {Path(path).suffix.lower() or plain}"


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a table, as ``read_table`` returns it, as text by column."""
    table = read_table(path)
    for cells in table.itertuples(index=False):
        yield dict(zip(table.columns, cells, strict=True))


def read_table(path: Path) -> pd.DataFrame:
    """Return a CSV, parquet or Excel table, every cell as text without spaces around it.

    CSV is in UTF-8, UTF-16 or else cp1252, separated as its first line is: by comma, semicolon, tab or |.
    """
    with open(path, "rb") as f:
        head = f.read(4)
        if os.fstat(f.fileno()).st_size > MOST_BYTES:
            raise DataError(f"has too many bytes for a table (at most {MOST_BYTES:,}).")
    table = _packed(path, head) if head in (b"PAR1", b"PK\3\4") else _separated(path.read_bytes())
    names = [str(name).strip() for name in table.columns]
    if len(set(names)) < len(names) or not names:
        raise DataError("the first row must name the columns, each once.")
    return table.set_axis(names, axis=1).map(lambda cell: str(cell).strip()).reset_index(drop=True)


def _separated(data: bytes) -> pd.DataFrame:
    """Return the rows of a CSV file, the first of which names the columns."""
    text = None
    for encoding in ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            break
    if text is None or "\0" in text:
        raise DataError("holds characters that no CSV file has.")
    separator = max(",;\t|", key=text.partition("\n")[0].count)
    table = pd.read_csv(io.StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False,
                        engine="python")  # fmt: skip
    for number, n in enumerate(table.notna().sum(axis=1), 1):  # this engine fills a short row up with NaN
        if n < table.shape[1]:
            raise DataError(f"row {number} has {n} cells, the first row {table.shape[1]}.")
    return table.iloc[1:].set_axis(table.iloc[0], axis=1)


def _packed(path: Path, head: bytes) -> pd.DataFrame:
    """Return a parquet or Excel table whose size is bounded before it is unpacked."""
    try:
        if head == b"PAR1":
            from pyarrow import parquet

            known = parquet.ParquetFile(path).metadata
            unpacked = sum(known.row_group(i).total_byte_size for i in range(known.num_row_groups))
            _refuse_large(known.num_rows * known.num_columns, unpacked)
            names = parquet.ParquetFile(path).schema_arrow.names
            return parquet.read_table(path, read_dictionary=names).to_pandas().astype(object).fillna("")
        with zipfile.ZipFile(path) as archive:
            _refuse_large(0, sum(part.file_size for part in archive.infolist()))
        return pd.read_excel(path, dtype=str, keep_default_na=False)
    except ImportError as error:
        raise DataError(f"this table needs a package ({error}).", hint="Or save it as CSV.") from None


def _refuse_large(cells: int, unpacked: int) -> None:
    if cells > MOST_CELLS or unpacked > MOST_BYTES:
        what = f"would hold {cells:,} cells and {unpacked:,} bytes"
        raise DataError(f"{what}, too many for a table (at most {MOST_CELLS:,.0f} and {MOST_BYTES:,}).")


def image_files(sources: Iterable[Path | str], unused: dict[str, str] | None = None) -> list[str]:
    """Return the files meant by files, folders (all images below) and tables (a column of paths), each once.

    ``unused`` takes the files of folders that are no images: path → of what kind each is.
    """
    paths: list[str] = []
    for source in map(Path, sources):
        if source.is_dir():
            others: dict[str, str] = {}
            paths += [str(source / file.path) for file in walk(source, others)]
            unused = {} if unused is None else unused
            unused |= {str(source / path): kind for path, kind in others.items()}
        elif source.suffix.lower() in TABLES:
            paths += _column_of_paths(source)
        else:
            paths.append(str(source))
    return list(dict.fromkeys(paths))


def _column_of_paths(table: Path) -> list[str]:
    """Return the paths in a table's column of images, which begin at the table's folder."""
    if not table.is_file():
        raise UsageError("this table does not exist.", path=table)
    with decoding(table, "this table is damaged"):
        rows = list(read_rows(table))
    if not rows:
        return []
    column = next((name for name in IMAGE_COLUMNS if name in rows[0]), None)
    if column is None:
        names = ", ".join(map(printable, rows[0]))
        what = f"no column is called {', '.join(IMAGE_COLUMNS[:-1])} or {IMAGE_COLUMNS[-1]}; there are {names}."
        raise UsageError(what, path=table, hint="Rename the one with the images' paths to image_path.")
    return [str(table.parent / row[column]) for row in rows]
