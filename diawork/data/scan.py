"""A manifest guessed from a folder of images: layout, classes, roles, splits, patients, size, depth and colour.

What can be seen is not asked; what is assumed is told; what cannot be known is one question.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diawork.base.errors import DataError, DiaworkError, UsageError, printable
from diawork.base.files import write_text
from diawork.data.documents import yaml_lines
from diawork.data.manifests import SPLITS, WINDOWS, check_manifest
from diawork.data.preprocess import TINT
from diawork.data.readers.listing import IMAGE_COLUMNS, read_rows, walk
from diawork.data.readers.picture import propose_window, read_picture, slices
from diawork.data.splits import csv_text

SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
HEALTHY = re.compile(
    r"(normal|healthy|well|ok|good|controls?|negative|0|no|none)$|(normal|healthy|no|non|not)[ _-]|nofind", re.I
)
_WHO = "(?:patient|person|subject|case|pat|sub|p)[-_]?[0-9]+"
PATIENTS = (  # patterns of names, the surest first
    f"(?i)^({_WHO})|^(.+)$",
    f"(?i)[^a-z0-9]({_WHO})",
    "^([^_]*[0-9][^_]*)_",
)
LABEL_COLUMNS, PATIENT_COLUMNS = ("label", "class", "target", "diagnosis"), ("patient_id", "patient")
MOST_CLASSES = 50
LOOKED_AT = 25  # images of a class that are opened


@dataclass
class Guess:
    """What a manifest would say, what was assumed, images per split and class, and a few files of each class."""

    values: dict[str, Any]  # of the manifest
    assumed: list[str]
    counts: Counter[tuple[str, str]]
    examples: dict[str, list[str]]
    table: str = ""  # a table to lie beside the manifest, where names alone tell the classes apart
    opened: dict[str, np.ndarray] = field(default_factory=dict)  # path → an image (C, H, W) in [0, 1]

    @property
    def text(self) -> str:
        """Return the manifest as YAML."""
        return yaml_lines(self.values)


def guess_manifest(folder: Path, *, normal: str = "") -> Guess:
    """Return the guess for the images below ``folder``; ``normal`` names the healthy class where nothing else does."""
    paths = [file.path for file in walk(folder)]
    if not paths:
        raise UsageError("there is no image in this folder or below it.", path=folder)
    levels = _levels(paths, folder)
    place = {"kind": "folder", "folder": folder.name, "layout": levels}
    table, assumed = "", [f"levels of folders: {' / '.join(levels) or 'none'}"]
    if "class" in levels:
        words = [dict(zip(levels, path.split("/"), strict=False)) for path in paths]
    elif listed := _listed(folder, set(paths)):
        place, paths, words = listed
        assumed = [f"labels from the table {place['file']}"]
    else:
        words = [{"class": word} for word in _prefixes(paths, folder)]
        table = csv_text([("image_path", "label"), *zip(paths, (one["class"] for one in words), strict=True)])
        place = {"kind": "table", "file": f"{_name(folder)}.csv", "folder": folder.name}
        assumed = ["the classes are the words that the file names begin with"]
    parts = [slices(path, folder) for path in paths]
    if any(
        part != [path] for part, path in zip(parts, paths, strict=True)
    ):  # the slices of a volume stay together, as a patient's images do
        several = [part for part, path in zip(parts, paths, strict=True) if part != [path]]
        which = f"the middle 60 %, at most 32 of each, e.g. {printable(several[0][0])}"
        assumed.append(
            f"{len(several):,} of {len(paths):,} files hold several pictures: {which}; x, y or z names the axis"
        )
        words = [{"patient": path} | one for part, path, one in zip(parts, paths, words, strict=True) for _ in part]
        paths = [picture for part in parts for picture in part]
        listed_slices = [(path, one["class"], one.get("split", "train"), one["patient"])
                for path, one in zip(paths, words, strict=True)]  # fmt: skip
        table = csv_text([("image_path", "label", "split", "patient_id"), *listed_slices])
        place = {"kind": "table", "file": f"{_name(folder)}.csv", "folder": folder.name}
    classes, aliases = _spellings(one["class"] for one in words)
    names = [aliases.get(one["class"], one["class"]) for one in words]
    splits = [SPLIT_WORDS.get(one.get("split", "train").casefold(), "train") for one in words]
    aliases |= {w: SPLIT_WORDS[w.casefold()] for w in {one["split"] for one in words if "split" in one}
                if w not in SPLITS and w.casefold() in SPLIT_WORDS}  # fmt: skip
    healthy = _healthy(classes, normal, folder)
    classes.sort(key=lambda name: name != healthy)
    counts = Counter(zip(splits, names, strict=True))
    examples = {}
    for wanted in classes:
        files = [path for path, name in zip(paths, names, strict=True) if name == wanted]
        rows = np.linspace(0, len(files) - 1, min(LOOKED_AT, len(files))).round().astype(int)
        examples[wanted] = [files[row] for row in rows]
    opened, image = _look_at(folder, paths, examples, assumed)
    values = {
        "name": _name(folder), "title": printable(folder.name)[:300], **place, "licence": "unknown",
        "citation": "unknown", "classes": dict(enumerate(classes)),
        "roles": {name: "normal" if name == healthy else "anomalous" for name in classes}, **image,
    }  # fmt: skip
    values |= {"aliases": aliases} if aliases else {}
    if "patient" not in levels and place["kind"] == "folder" and (pattern := _patient_pattern(paths, assumed)):
        values["patient"] = pattern
    values |= _recipe(counts, classes, healthy, assumed)
    assumed.insert(1, f"healthy: {healthy}; anomalous: {', '.join(c for c in classes if c != healthy)}")
    return Guess(values, assumed, counts, examples, table, opened)


def write_guess(guess: Guess, folder: Path, out: Path | None = None) -> Path:
    """Write the manifest, checked, to ``out`` or beside the folder, and a table where it needs one; return its path."""
    path = (out or folder.parent / f"{guess.values['name']}.yaml").absolute()
    if path.parent != folder.parent:
        if guess.table:
            hint = f"Use --out {folder.parent / path.name}."
            raise UsageError(
                "where a table says the labels, manifest and folder lie side by side.", path=path, hint=hint
            )
        guess.values["root"] = str(folder.parent)
    if path.exists() and path.read_text("utf-8") != guess.text:
        hint = "Keep it and use it as it is, remove it, or name another with --out."
        raise UsageError("this manifest exists and says something else.", path=path, hint=hint)
    check_manifest(guess.text, path)
    if guess.table:
        write_text(path.parent / guess.values["file"], guess.table)
    write_text(path, guess.text)
    return path


def _name(folder: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:60] or "own"


# --- what folders, tables and names say ----------------------------------------------------------------


def _levels(paths: Sequence[str], folder: Path) -> list[str]:
    """Return what each level of folders says: split, class, patient or any."""
    depths = Counter(path.count("/") for path in paths)
    if len(depths) > 1:
        found = " and ".join(f"{n} images {depth} folders deep" for depth, n in sorted(depths.items()))
        raise UsageError(
            f"the levels of folders differ: {found}.", path=folder, hint="Let all images lie equally deep."
        )
    words = [Counter(column) for column in zip(*(path.split("/")[:-1] for path in paths), strict=True)]
    levels = ["any"] * len(words)
    for i, level in enumerate(words):
        if {word.casefold() for word in level} <= SPLIT_WORDS.keys() and "split" not in levels:
            levels[i] = "split"
    rest = [i for i, level in enumerate(levels) if level == "any"]
    able = [i for i in rest if 2 <= len({w.casefold() for w in words[i]}) <= MOST_CLASSES] or rest[-1:]
    if able:
        best = min(able, key=lambda i: (not any(map(HEALTHY.match, words[i])), len(words[i])))
        levels[best] = "class"
        others = [i for i in rest if i != best and len(words[i]) > 1]
        levels = ["patient" if others and i == others[-1] else level for i, level in enumerate(levels)]
    return levels


def _listed(folder: Path, paths: set[str]) -> tuple[dict[str, Any], list[str], list[dict[str, str]]] | None:
    """Return place, paths and words of a table in the folder that labels its images; others are strays."""
    for file in sorted([*folder.glob("*.csv"), *folder.glob("*.parquet")]):
        try:
            rows = list(read_rows(file))
        except DiaworkError:
            continue
        names = rows[0].keys() if rows else ()
        image = next((name for name in IMAGE_COLUMNS if name in names), "")
        label = next((name for name in LABEL_COLUMNS if name in names), "")
        if not (image and label and all(row[image] in paths for row in rows)):
            continue
        columns = {"image": image, "label": label}
        if who := next((name for name in PATIENT_COLUMNS if name in names), ""):
            columns["patient"] = who
        place = {"kind": "table", "file": f"{folder.name}/{file.name}", "columns": columns}
        words = [{"class": row[label], "split": row.get("split") or "train"} for row in rows]
        return place, [row[image] for row in rows], words
    return None


def _prefixes(paths: Sequence[str], folder: Path) -> list[str]:
    """Return the word that each file's name begins with, where such words make classes."""
    words = [match[0].rstrip("_- ") if (match := re.match(r"[^\W\d]+", Path(path).name)) else "" for path in paths]
    if "" in words or not 2 <= len({word.casefold() for word in words}) <= MOST_CLASSES:
        hint = "Put each class into a folder of its own, or add a table with the columns image_path and label."
        raise UsageError(f"nothing tells the classes of these {len(paths):,} images apart.", path=folder, hint=hint)
    return words


def _spellings(words: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Return the classes, each by its commonest spelling, and the other spellings as aliases."""
    known: dict[str, Counter[str]] = {}
    for word in words:
        known.setdefault(word.casefold(), Counter())[word] += 1
    chosen = {key: max(sorted(spelt), key=spelt.__getitem__) for key, spelt in known.items()}
    aliases = {word: chosen[key] for key, spelt in known.items() for word in spelt if word != chosen[key]}
    return sorted(chosen.values()), aliases


def _healthy(classes: Sequence[str], normal: str, folder: Path) -> str:
    """Return the healthy class: as answered, or the only one that is called so."""
    if len(classes) == 1:
        what = f"all images are of one class, {printable(classes[0])}; an evaluation needs healthy and anomalous ones."
        raise UsageError(what, path=folder, hint="Add the other class in a folder beside it.")
    called = [name for name in classes if (name.casefold() == normal.casefold() if normal else HEALTHY.match(name))]
    if len(called) != 1:
        raise UsageError(
            f"which class is healthy: {', '.join(map(printable, classes))}?", path=folder,
            hint="Answer with --normal CLASS.",
        )  # fmt: skip
    return called[0]


def _patient_pattern(paths: Sequence[str], assumed: list[str]) -> str:
    """Return the first pattern by which several names share a patient; "" where there is none."""
    names = [Path(path).name for path in paths]
    for pattern in PATIENTS:
        matches = [match for name in names if (match := re.search(pattern, name))]
        who = [match[1] for match in matches if match[1]]
        if len(matches) == len(names) and len(who) > 0.3 * len(names) and 2 <= len(set(who)) <= 0.8 * len(who):
            assumed.append(f"{len(set(who)):,} patients by the names of {len(who):,} files, e.g. {printable(who[0])}")
            return pattern
    return ""


def _recipe(counts: Counter, classes: Sequence[str], healthy: str, assumed: list[str]) -> dict[str, Any]:
    """Return the recipe of the splits that are missing; anomalous images are never fitted on, so most leave train."""
    there = {split for split, _ in counts}
    if "train" not in there:
        raise UsageError("there is no train split; only " + ", ".join(sorted(there)) + ".")
    shares = {"test": (0.2, 0.6), "val": (0.1, 0.3 if "test" not in there else 0.5)}
    recipe: dict[str, Any] = {}
    for split, (well, ill) in shares.items():
        wanted = {name: well if name == healthy else ill for name in classes}
        moved = {name: round(share * counts["train", name]) for name, share in wanted.items()}
        if split not in there and moved.pop(healthy) and any(moved.values()):
            recipe[split] = wanted
    if recipe:
        assumed.append(f"{' and '.join(recipe)} made of the train images, seed 0, by patient where known")
    if "val" not in there | recipe.keys():
        assumed.append("no validation split, so a run has neither threshold nor p values")
    return {"recipe": {"seed": 0} | recipe} if recipe else {}


# --- what a few images say of all ----------------------------------------------------------------------


def _look_at(
    folder: Path, every: Sequence[str], examples: dict[str, list[str]], assumed: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the examples as images, and size, channels, window, steps and bridge for all."""
    opened, deep, reasons, notes = dict[str, np.ndarray](), list[str](), list[str](), Counter[str]()
    paths = [path for paths in examples.values() for path in paths]
    window: Any = None
    for path in paths:
        try:
            picture = read_picture(folder, path)
        except DiaworkError as error:
            if "intensity window" in error.what:
                deep.append(path)
            else:
                reasons.append(f"{printable(path)}: {error.what}")
        else:
            opened[path] = picture.image
            notes[picture.note] += 1
    if deep and opened:
        what = f"{len(deep)} of {len(deep) + len(opened)} opened images need a window, the others have 8 bits."
        raise UsageError(what, path=folder, hint="Save all with one depth; a set has one window.")
    if deep:
        window, why = propose_window(folder, every)
        assumed.append(why)
        for path in deep:
            picture = read_picture(folder, path, WINDOWS[window] if isinstance(window, str) else window)
            opened[path] = picture.image
            notes[picture.note] += 1
    assumed += [f"{n} of {len(opened)} opened: {note}" for note, n in notes.items() if note]
    if not opened:
        raise DataError(f"none of the images can be read, first {reasons[0]}", path=folder)
    if reasons:
        n = len(opened) + len(reasons)
        assumed.append(f"{len(reasons)} of {n} opened images cannot be read, first {reasons[0]}")
    shapes = Counter(image.shape[1:] for image in opened.values())
    colour = any(np.ptp(image, axis=0).max() > TINT for image in opened.values())
    size = int(np.clip(np.median([min(shape) for shape in shapes.elements()]), 8, 4096))
    resize = "pad" if any(max(shape) > 1.1 * min(shape) for shape in shapes) else "squash"
    sizes = " · ".join(f"{h}×{w}" for (h, w), _ in shapes.most_common(3)) + (" …" if len(shapes) > 3 else "")
    how = "" if set(shapes) == {(size, size)} else f", brought to {size} px ({resize})"
    assumed.append(f"{'colour' if colour else 'grey'}, {sizes} px in {len(opened)} opened images{how}")
    assumed.append("dissolving steps 30 to 130, as the paper has them for chest X-rays of 28 px")
    values = {"image": {"size": size, "channels": 3 if colour else 1}, "resize": resize, "t_range": [30, 130]}
    return opened, values | {"bridge": "pad" if size <= 32 else "resize"} | ({"intensity": window} if window else {})
