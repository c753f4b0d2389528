"""Splits that a source lacks: made of its train images by a seed, patient by patient, class by class."""

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diawork.base.errors import DataError, UsageError, did_you_mean, printable
from diawork.base.files import write_text
from diawork.data.documents import yaml_lines
from diawork.data.locations import root_of
from diawork.data.manifests import KINDS, SPLITS, Manifest, Recipe, check_manifest


class Item(NamedTuple):
    """An image file of a set: its path from the set's folder, and what folders, names or a table say of it."""

    path: str
    class_name: str
    split: str = "train"
    patient: str = ""  # "": not known
    mask: str = ""  # path of its mask; "": none


class FileStat(NamedTuple):
    """A file by what tells it from another without opening it; ``path`` begins at the set's folder."""

    path: str
    size: int
    mtime_ns: int


class Listing(NamedTuple):
    """The image files of a set: the folder where their paths begin, what is said of each, what the disk knows."""

    base: Path
    items: list[Item]
    stats: dict[str, FileStat] = {}  # by path, of the files already looked at


def split_items(items: Sequence[Item], recipe: Recipe) -> list[Item]:
    """Return the items with the splits that the recipe makes of the train images.

    Whole patients move until a class has its share; an image without a patient is its own. Their order
    follows from seed and name alone, so images that join or leave move nobody else. Patients whom the
    source's own val or test shows, too, stay in train.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        if item.split == "train":
            groups[item.patient or item.path].append(i)
    sizes = Counter(item.class_name for item in items if item.split == "train")
    evaluated = {item.patient for item in items if item.split != "train"}
    free = sorted(groups.keys() - evaluated, key=lambda name: hashlib.sha256(f"{recipe.seed} {name}".encode()).digest())
    split_of = [item.split for item in items]
    for split in ("test", "val"):
        if recipe.makes(split) and any(item.split == split for item in items):
            what = f"the source has a {split} split of its own, and the recipe makes another."
            raise DataError(what, field=f"recipe.{split}", hint=f"Leave recipe.{split} out, or the given one.")
        for class_name, size in sorted(sizes.items()):
            wanted = round(recipe.share(split, class_name) * size)
            have = sum(s == split and item.class_name == class_name for s, item in zip(split_of, items, strict=True))
            for rows in map(groups.__getitem__, free if wanted else ()):
                n = sum(items[i].class_name == class_name for i in rows)
                if have < wanted and n and split_of[rows[0]] == "train":
                    have += n
                    for i in rows:
                        split_of[i] = split
    return [item._replace(split=split) for item, split in zip(items, split_of, strict=True)]


def kept_items(manifest: Manifest, items: list[Item]) -> list[Item]:
    """Return the items that the manifest does not drop; a name under drop that is no item is a ``DataError``."""
    paths = {item.path for item in items}
    for name in manifest.drop:
        if name not in paths:
            raise DataError(f"{name!r} is not an image of the set.", field="drop", hint=did_you_mean(name, paths))
    dropped = set(manifest.drop)
    return [item for item in items if item.path not in dropped]


def shared_patients(items: Sequence[Item]) -> tuple[list[str], int, int]:
    """Return the patients who stand in train and in val or test, and how many images each side has of them."""
    fitted = {item.patient for item in items if item.split == "train" and item.patient}
    shared = fitted & {item.patient for item in items if item.split != "train"}
    in_train = [item.split == "train" for item in items if item.patient in shared]
    return sorted(shared), sum(in_train), len(in_train) - sum(in_train)


def write_split(manifest: Manifest, listing: Listing, recipe: Recipe, *, name: str = "") -> Path:
    """Divide the listed images by the recipe; write ``name``.csv and ``name``.yaml into the set's data root.

    The table has a row an image: path, class, split, patient and mask where known. Return the manifest's path.
    """
    for shares in (recipe.val, recipe.test):
        for class_name in shares if isinstance(shares, dict) else ():
            if class_name not in manifest.roles:
                hint = did_you_mean(class_name, manifest.roles)
                raise UsageError(f"{class_name!r} is no class of the set.", hint=hint)
    home, name = root_of(listing.base, manifest), name or f"{manifest.name}-split"
    path, table = home / f"{name}.yaml", home / f"{name}.csv"
    for file in (path, table):
        if file.exists():
            raise UsageError("this file exists.", path=file, hint="Name another with --name, or remove it.")
    items = split_items(kept_items(manifest, sorted(listing.items)), recipe)
    counts = {split: dict.fromkeys(manifest.roles, 0) for split in SPLITS}
    for (split, class_name), n in Counter((item.split, item.class_name) for item in items).items():
        counts[split][class_name] = n
    said_by_table = {"kind", "root", "file", "layout", "columns", "aliases", "patient", "recipe", "counts", "drop"}
    allowed = {*KINDS["table"].needs, *KINDS["table"].may_have}
    foreign = {key for kind in KINDS.values() for key in (*kind.needs, *kind.may_have)} - allowed
    values = manifest.model_dump(exclude_defaults=True, exclude=said_by_table | foreign)
    folder = listing.base.relative_to(home).as_posix()
    values |= {"name": name, "kind": "table", "file": f"{name}.csv"} | ({} if folder == "." else {"folder": folder})
    text = yaml_lines(values | {"counts": {split: n for split, n in counts.items() if any(n.values())}})
    check_manifest(text, path)
    order = sorted(items, key=lambda item: (SPLITS.index(item.split), item.path))
    rows = [(item.path, item.class_name, item.split, item.patient, item.mask) for item in order]
    write_text(table, csv_text([("image_path", "label", "split", "patient_id", "mask"), *rows]))
    write_text(path, text)
    return path


def cell(file: str) -> str:
    """Return a file's name for a table: it prints, and no spreadsheet takes it for a formula."""
    text = printable(file)
    return f"./{text}" if text.startswith(("=", "+", "-", "@")) else text


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
