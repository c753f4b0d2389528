"""What tables and masks in a folder say of its images: classes, patients, splits, lesions and further columns.

A table's cells are matched to files by any spelling: with or without ending, in other case, with the path of another
machine, composed or decomposed letters. Masks are found by name or folder, and by their pixels.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from diawork.base.errors import DataError, DiaworkError, UsageError, printable
from diawork.data.preprocess import decoding
from diawork.data.readers.listing import read_table
from diawork.data.readers.picture import SUFFIXES, read_image

SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
_OF_IMAGES = re.compile(r"[ _-]*(images?|imgs?|pictures?|set|data|split)$|^(images?|imgs?|pictures?)[ _-]+")
MASK_FOLDER = re.compile(
    r"(masks?|gts?|ground[ _-]?truths?|labels?|annotations?|seg(mentation)?s?)([ _-](masks?|images?))?$", re.IGNORECASE
)
MASK_NAME = re.compile(r"[ _.-](masks?|gt|ground[ _-]?truth|labels?|seg(mentation)?|roi)[ _-]?[0-9]*$", re.IGNORECASE)
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "pictures", "data"}
COLUMNS = {  # what a column says ← how people call it, the surest first
    "class": "label class classname diagnosis target category level grade finding findinglabels pathology dx "
             "classification y",
    "split": "split subset partition fold set phase",
    "patient": "patientid patient subjectid subject personid person caseid case mrn studyid",
    "mask": "maskpath mask masks maskfile segmentation segmentationpath groundtruth",
}  # fmt: skip
IMAGE_COLUMNS = {"imagepath", "image", "path", "file", "filename", "filepath", "imageid", "idcode", "imagename"}
OTHERS = {"device", "camera", "scanner", "view", "sex", "gender", "age", "eye", "laterality", "site", "modality"}
COVERS = 0.9  # share of the images that a table must label where folders say their classes, too
LOOKED_AT = 25  # masks of a kind whose pixels are looked at


class Table(NamedTuple):
    """A table's rows by image: columns "class", "split", "patient", "mask" and others as far as it has them."""

    file: str
    rows: pd.DataFrame  # index: path of the image
    said: list[str]  # what was matched, and what was not
    likely: list[str]  # columns of a few words that may say the class, where none is called so


def split_word(word: str) -> str:
    """Return the split that a folder's or cell's word means, "" if none."""
    return SPLIT_WORDS.get(_OF_IMAGES.sub("", word.strip().casefold()), "")


# --- masks ----------------------------------------------------------------------------------------------


def find_masks(folder: Path, paths: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the masks of each image, and those of no image with the reason.

    A mask is called so ("x_mask.png" beside "x.png", "masks/x.png" beside "images/x.png"), has two values and the size
    of its image; a kind of names of which a sample has not is no mask.
    """
    by_stem = defaultdict(list)
    called = {path: kind for path in paths if (kind := _called_mask(path))}
    for path in paths:
        if path not in called:
            by_stem[_stem(path)].append(path)
    image_of = {path: _image_of(path, by_stem) for path in called}
    kinds: dict[str, list[str]] = defaultdict(list)
    for path, kind in called.items():
        kinds[kind].append(path)
    masks: dict[str, list[str]] = defaultdict(list)
    of_none: dict[str, str] = {}
    for every in kinds.values():
        matched = [path for path in every if image_of[path]]
        some = [matched[i] for i in np.linspace(0, len(matched) - 1, min(LOOKED_AT, len(matched))).round().astype(int)]
        if 2 * len(matched) < len(every) or not all(_is_mask(folder, path, image_of[path]) for path in some):
            continue
        for path in every:
            if image_of[path]:
                masks[image_of[path]].append(path)
            else:
                of_none[path] = "a mask of no image"
    return {image: sorted(names) for image, names in masks.items()}, of_none


def _called_mask(path: str) -> str:
    """Return by which word a path is called a mask, "" if by none."""
    *folders, _ = path.split("/")
    inside = [part.casefold() for part in folders if MASK_FOLDER.match(part)]
    named = MASK_NAME.search(_stem(path))
    return inside[-1] if inside else named[1] if named else ""


def _image_of(mask: str, by_stem: dict[str, list[str]]) -> str:
    """Return the one image that a mask's name and folders fit, "" if none or several."""
    stem = _stem(mask)
    bare = MASK_NAME.sub("", stem)
    folders = [part.casefold() for part in mask.split("/")[:-1]]
    others = {part for part in folders if not MASK_FOLDER.match(part) and part not in IMAGE_FOLDERS}
    for name in dict.fromkeys((bare, stem)):
        fit = [
            image for image in by_stem.get(name, ()) if others <= {part.casefold() for part in image.split("/")[:-1]}
        ]
        beside = [image for image in fit if _beside(image, folders)]
        if len(fit) == 1 or len(beside) == 1:
            return beside[0] if len(beside) == 1 else fit[0]
    return ""


def _beside(image: str, folders: list[str]) -> bool:
    """Say whether an image lies in the mask's own folder, or in the one beside it."""
    at = [part.casefold() for part in image.split("/")[:-1]]
    bare = [part for part in at if part not in IMAGE_FOLDERS]
    return bare == [part for part in folders if not MASK_FOLDER.match(part) and part not in IMAGE_FOLDERS]


def _is_mask(folder: Path, mask: str, image: str) -> bool:
    """Say whether a file has two values at most, but for the edges that JPEG leaves, and the size of its image."""
    try:
        drawn, picture = _values(folder / mask), _values(folder / image)
    except DiaworkError:
        return False
    low, high = drawn.min(), drawn.max()
    between = np.minimum(drawn - low, high - drawn) > 0.1 * max(high - low, 1e-6)
    return drawn.shape[1:] == picture.shape[1:] and float(between.mean()) < 0.02


def _values(path: Path) -> np.ndarray:
    """Return an image (C, H, W), deeper ones in any window."""
    try:
        return read_image(path).image
    except DataError:
        return read_image(path, window=(-(2.0**15), 2.0**16)).image


# --- tables ---------------------------------------------------------------------------------------------


def find_tables(
    folder: Path, tables: Sequence[Path], paths: Sequence[str], masks: Iterable[str]
) -> tuple[list[Table], list[str]]:
    """Return what ``tables`` say of the images below a folder, and why the others are not used."""
    files, used, passed = Files(paths), list[Table](), list[str]()
    every = {*masks, *paths}
    for path in tables:
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else f"../{path.name}"
        try:
            with decoding(path, "it cannot be read"):
                used.append(_matched(read_table(path), name, files, every))
        except DataError as error:
            passed.append(f"the table {printable(name)} is not used: {error.what}")
    return used, passed


class Files:
    """Image files by any spelling of their names."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            self.by_stem[_spelt(path)[-1]].append(path)

    def find(self, cell: str, table: str = "") -> str:
        """Return the file that a cell means, "" if none or several."""
        fit = self.by_stem.get(_spelt(cell)[-1], [])
        if len(fit) > 1:
            best = max(closeness := [self._close(path, cell, table) for path in fit])
            fit = [path for path, close in zip(fit, closeness, strict=True) if close == best]
        return fit[0] if len(fit) == 1 else ""

    @staticmethod
    def _close(path: str, cell: str, table: str) -> tuple[int, bool, bool, bool]:
        """Return how well a path fits a cell: folders in common, the same ending, case, and the table's split."""
        mine, wanted = _spelt(path)[-2::-1], _spelt(cell)[-2::-1]
        common = next(
            (i for i, (a, b) in enumerate(zip(mine, wanted, strict=False)) if a != b), min(len(mine), len(wanted))
        )
        name, word = _plain(cell).rpartition("/")[2], split_word(Path(table).stem)
        said = bool(word) and word in map(split_word, path.split("/")[:-1])
        return common, path.casefold().endswith(name.casefold()), path.endswith(name), said


def _matched(table: pd.DataFrame, name: str, files: Files, every: set[str]) -> Table:
    """Return a table's rows by the images they name; a table that names none is a ``DataError``."""
    if table.empty:
        raise DataError("it has no rows.")
    images = {column: [files.find(cell, name) for cell in table[column]] for column in table}
    n = {column: len({path for path in found if path}) for column, found in images.items()}
    column = max(n, key=lambda name: (n[name], _bare(name) in IMAGE_COLUMNS))
    if not n[column] or n[column] < 0.05 * len(table):
        raise DataError("no column names the images.")
    found, paths = pd.Series(images[column]), sum(map(len, files.by_stem.values()))
    said = [f"{n[column]:,} of {paths:,} images"]
    if absent := int((found == "").sum()):
        said.append(f"{absent:,} row{'s name' if absent > 1 else ' names'} no image here"
                    f" (first {printable(table[column][found.eq('').idxmax()])})")  # fmt: skip
    rest = table.drop(columns=column)[found != ""].set_index(found[found != ""])
    rows = _named(rest, every)
    if {"class"} <= set(rows) and (rows["class"] == "").any():
        said.append(f"{(rows['class'] == '').sum():,} rows have no label")
    _refuse_two_labels(rows, name)
    said += [f"{what} from {where!a}" for what, where in rows.attrs["from"].items()]
    return Table(name, rows[~rows.index.duplicated()], said, rows.attrs["likely"])


def _named(table: pd.DataFrame, every: set[str]) -> pd.DataFrame:
    """Return the columns of a table under the names of what they say; others keep theirs."""
    plain = {column: _bare(column) for column in table}
    chosen: dict[str, str] = {}
    for what, words in COLUMNS.items():
        fit = [column for word in words.split() for column in table if plain[column] == word and column not in chosen]
        fit = [column for column in fit if _sensible(what, table[column])]
        if fit:
            chosen[fit[0]] = what
    named = table.rename(columns=chosen)
    said = {what: column for column, what in chosen.items()}
    if "class" not in named and (hot := _one_hot(table, set(chosen))) is not None:
        named["class"], said["class"] = hot, ", ".join(map(str, hot.attrs["columns"]))
        named = named.drop(columns=hot.attrs["columns"])
    if "class" in named:
        named["class"] = named["class"].str.replace(r"^(\d+)\.0$", r"\1", regex=True)
    if "split" in named:
        named["split"] = named["split"].map(split_word)
    if "mask" in named:
        masks = Files(sorted(every))
        named["mask"] = ["|".join(filter(None, map(masks.find, cell.split("|")))) for cell in named["mask"]]
    few = [column for column in table if column not in chosen and plain[column] not in OTHERS
           and 2 <= table[column].nunique() <= min(20, len(table) // 3)]  # fmt: skip
    named.attrs |= {"from": said, "likely": [] if "class" in named else few}
    return named


def _sensible(what: str, cells: pd.Series) -> bool:
    """Say whether a column's cells can say what its name promises."""
    filled = cells[cells != ""]
    if what == "split":
        return bool(len(filled)) and bool(filled.map(split_word).ne("").all())
    return bool(len(filled)) and (what != "class" or filled.nunique() <= max(2, len(filled) // 2))


def _one_hot(table: pd.DataFrame, taken: set[str]) -> pd.Series | None:
    """Return the classes that columns of 0 and 1 say, of several joined by " + ", of none "none"; None without such."""
    hot = [column for column in table if column not in taken and table[column].isin(["0", "1", "0.0", "1.0"]).all()]
    marks = table[hot].astype(float) if hot else pd.DataFrame()
    if len(hot) < 2 or (marks.sum(1) <= 1).mean() < 0.5 or (marks.sum() > 0).sum() < 2:
        return None
    words = [" + ".join(str(name) for name, one in zip(hot, row, strict=True) if one) for row in marks.to_numpy()]
    classes = pd.Series([word or "none" for word in words], index=table.index)
    classes.attrs["columns"] = hot
    return classes


def _refuse_two_labels(rows: pd.DataFrame, name: str) -> None:
    """Refuse a table in which one image has two classes."""
    if "class" in rows:
        labels = rows["class"].groupby(level=0).nunique()
        if (labels > 1).any():
            what = f"images stand under two labels in {printable(name)}: {(labels > 1).sum():,}"
            hint = "Keep one row an image, with the class that it shall have."
            raise UsageError(f"{what}, first {printable(labels.idxmax())}.", hint=hint)


# --- spellings ------------------------------------------------------------------------------------------


def _bare(name: object) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).casefold())


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip().replace("\\", "/"))


def _spelt(path: str) -> list[str]:
    """Return the parts of a path as compared: composed letters, one case, no ending of images, no leading zeros."""
    parts = [part for part in _plain(path).casefold().split("/") if part not in ("", ".")] or [""]
    stem = parts[-1]
    for suffix in sorted((*SUFFIXES, ".gif"), key=len, reverse=True):
        if stem.endswith(suffix) and stem != suffix:
            stem = stem[: -len(suffix)]
            break
    return [*parts[:-1], stem.lstrip("0") or "0" if stem.isdecimal() else stem]


def _stem(path: str) -> str:
    return _spelt(path)[-1]


def counted(words: Iterable[str]) -> list[str]:
    """Return "n × word" for each word, the commonest first."""
    return [f"{n:,} × {word}" for word, n in Counter(words).most_common()]
