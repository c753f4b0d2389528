"""A manifest guessed from a folder of images: tables, masks, levels of folders, names, size, depth and colour.

What can be seen is not asked; what is assumed is told, what is not used counted; what cannot be known is one question.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from diawork.base.errors import DataError, DiaworkError, UsageError, printable
from diawork.base.files import write_text
from diawork.data.annotations import COVERS, Table, counted, find_masks, find_tables, split_word
from diawork.data.datasets import load
from diawork.data.documents import yaml_lines
from diawork.data.duplicates import SIDE, THUMBNAIL, find_pairs
from diawork.data.manifests import SPLITS, WINDOWS, Recipe, check_manifest, inside_root, load_manifest
from diawork.data.preprocess import is_colour
from diawork.data.readers.listing import MOST_TINTED, TABLES, walk
from diawork.data.readers.picture import propose_window, read_picture, slices
from diawork.data.splits import Item, cell, csv_text, split_items

HEALTHY = re.compile(
    r"(normal|healthy|well|ok|good|controls?|negative|0|no|none)$|(normal|healthy|no|non|not)[ _-]|nofind", re.I
)
_WHO = "(?:patient|person|subject|case|pat|sub|p)[-_]?[0-9]+"
PATIENTS = (  # patterns of names, the surest first
    f"(?i)^({_WHO})|^((?:normal[0-9]-)?im-[0-9]+)|^(.+)$",
    f"(?i)[^a-z0-9]({_WHO})",
    "^([^_]*[0-9][^_]*)_",
    "^([^-]*[0-9][^-]*)-",
)
UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff|]|^\s|\s$")  # what a table's cell does not hold as it is
MOST_CLASSES = 50
MOST_COMPARED = 5000  # images that a scan compares with one another
LOOKED_AT = 25  # images of a class that are opened
KEPT_HEALTHY = 0.4  # share of the healthy train images that a recipe must leave to training


@dataclass
class Guess:
    """What a manifest would say, what was assumed, images per split and class, and a few files of each class."""

    values: dict[str, Any]  # of the manifest
    assumed: list[str]
    counts: Counter[tuple[str, str]]
    examples: dict[str, list[str]]
    table: str = ""  # a table to lie beside the manifest, where folders alone do not say it all
    opened: dict[str, np.ndarray] = field(default_factory=dict)  # path → an image (C, H, W) in [0, 1]
    left_out: dict[str, str] = field(default_factory=dict)  # path of a file that is not used → why

    @property
    def text(self) -> str:
        """Return the manifest as YAML."""
        return yaml_lines(self.values)


def guess_manifest(folder: Path, *, normal: str = "") -> Guess:
    """Return the guess for the images below ``folder``; ``normal`` names the healthy class where nothing else does."""
    paths, tables, left_out = _files(folder)
    masks, of_none = find_masks(folder, paths)
    drawn = {mask for several in masks.values() for mask in several}
    images = [path for path in paths if path not in drawn and path not in of_none]
    used, assumed = find_tables(folder, tables, images, drawn)
    if not any("class" in table.rows for table in used) and not any("/" in path for path in images):
        used += find_tables(folder, _above(folder), images, drawn)[0]
    known, levels = _known(images, used, masks, folder, assumed)
    left_out |= of_none | dict.fromkeys(known.index[known["class"] == ""], "no label in any table")
    known = known[known["class"] != ""]
    known, several = _in_slices(known, folder, assumed)
    by_folders = not (used or drawn or several or of_none) and "class" in (levels or ())
    known, aliases, by_folders = _spelt(known, by_folders, left_out)
    classes = _classes(known, normal, folder)
    values = {
        "licence": "unknown", "citation": "unknown", "classes": dict(enumerate(classes)),
        "roles": {name: "anomalous" if i else "normal" for i, name in enumerate(classes)},
    }  # fmt: skip
    assumed.insert(0, f"healthy: {classes[0]}; anomalous: {', '.join(map(printable, classes[1:]))}")
    examples = _examples(known, classes)
    opened, image = _look_at(folder, list(known.index), examples, assumed)
    values |= image
    pattern, known = _patients(known, assumed)
    told = list[str]()
    recipe = _recipe(known, classes, folder, told)
    together, note = _joined(known, values | recipe, folder)
    if note:
        with contextlib.suppress(UsageError):  # where that leaves training too little, the check of a run has the say
            recipe = _recipe(together, classes, folder, fresh := [note])
            known, told, by_folders = together, fresh, False
    assumed += told
    values = _place(folder, levels if by_folders else None) | values | recipe
    values |= {"aliases": aliases} if aliases and by_folders else {}
    values |= {"patient": pattern} if pattern and by_folders else {}
    counts = Counter(zip(known["split"], known["class"], strict=True))
    return Guess(values, assumed, counts, examples, "" if by_folders else _table(known), opened, left_out)


def write_guess(guess: Guess, folder: Path, out: Path | None = None) -> Path:
    """Write the manifest, checked, to ``out`` or beside the folder, and its tables; return its path.

    A file of these names that says something else, or that no scan wrote, is a ``UsageError``: nothing is replaced.
    """
    path = (out or folder.absolute().parent / f"{guess.values['name']}.yaml").absolute()
    real = folder.resolve()
    values = guess.values | ({"root": str(real.parent)} if path.parent.resolve() != real.parent else {})
    values |= {"file": f"{path.stem}.csv"} if guess.table else {}
    texts = {path: yaml_lines(values)} | ({path.with_suffix(".csv"): guess.table} if guess.table else {})
    rows = [("image", "reason"), *((cell(file), why) for file, why in guess.left_out.items())]
    texts |= {path.with_name(f"{path.stem}-left-out.csv"): csv_text(rows)} if guess.left_out else {}
    for file, text in texts.items():
        if file.exists() and file.read_bytes() != text.encode():
            what = f"this {'manifest' if file == path else 'table'} exists and says something else."
            hint = "Keep it and use it as it is, remove it, or name another with --manifest."
            raise UsageError(what, path=file, hint=hint)
    check_manifest(texts[path], path)
    for file, text in reversed(texts.items()):
        write_text(file, text)
    return path


def _files(folder: Path) -> tuple[list[str], list[Path], dict[str, str]]:
    """Return the images and the tables in a folder, and what else lies there and why it is not used."""
    unused: dict[str, str] = {}
    paths = [file.path for file in walk(folder, unused)]
    if not paths:
        seen = f"; there are {', '.join(counted(unused.values()))}" if unused else ""
        raise UsageError(f"there is no image in this folder or below it{seen}.", path=folder)
    odd = {path: f"a name that no table holds as it is ({_oddity(path)})" for path in paths if UNWRITABLE.search(path)}
    if len(odd) == len(paths):
        what = f"no table holds the names of these {len(paths):,} images as they are ({_oddity(paths[0])})."
        hint = "Rename them; from another encoding, say: convmv -r -f gbk -t utf-8 --notest FOLDER."
        raise UsageError(what, path=folder, hint=hint)
    tables = [folder / path for path in unused if path.lower().endswith(TABLES) and path.count("/") <= 2]
    others = {path: kind for path, kind in unused.items() if folder / path not in tables}
    return [path for path in paths if path not in odd], tables, others | odd


def _above(folder: Path) -> list[Path]:
    """Return the tables beside the folder, but for what a scan wrote."""
    beside = sorted(path for path in folder.absolute().parent.iterdir() if not path.name.startswith("."))
    return [path for path in beside if path.name.lower().endswith(TABLES) and path.is_file()
            and not path.with_suffix(".yaml").exists() and not path.stem.endswith("-left-out")]  # fmt: skip


def _oddity(path: str) -> str:
    found = UNWRITABLE.search(path)
    sign = found[0] if found else ""
    return "no UTF-8" if "\ud800" <= sign <= "\udfff" else "a space at its end" if sign.isspace() else printable(sign)


def _name(folder: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-")[:60] or "own"


def _place(folder: Path, layout: list[str] | None) -> dict[str, Any]:
    """Return name, title and place of the set; ``layout`` is None where a table of ours lists the images."""
    name = folder.resolve().name
    try:
        inside_root(name if name.isprintable() and name == name.strip() else "..")
    except ValueError:
        raise UsageError("its name cannot stand in a manifest.", path=folder, hint="Rename the folder.") from None
    own = {"kind": "folder", "folder": name, "layout": layout} if layout else {"kind": "table", "folder": name}
    return {"name": _name(folder), "title": printable(name)[:300], **own}


# --- what is known of each image ------------------------------------------------------------------------


def _known(
    paths: list[str], used: list[Table], masks: dict[str, list[str]], folder: Path, assumed: list[str]
) -> tuple[pd.DataFrame, list[str] | None]:
    """Return a row an image (class, split, patient, mask, further columns), and what the levels of folders say."""
    said = _combined(used, paths)
    labelled = int(said["class"].ne("").sum())
    levels = _levels(paths, folder, labelled=labelled >= COVERS * len(paths))
    likely = [column for table in used for column in table.likely]
    if "class" not in (levels or ()) and not labelled and likely:
        if len(likely) > 1:
            what = f"which column of a table says the class: {', '.join(map(printable, likely))}?"
            raise UsageError(what, path=folder, hint="Call it label.")
        said = said.rename(columns={likely[0]: "class", "class": likely[0]})
        labelled = int(said["class"].ne("").sum())
        assumed.append(f"classes from the column {printable(likely[0])}")
    words = pd.DataFrame([_words(path, levels) for path in paths], index=paths).fillna("")
    known = said.copy()
    told = words["class"].nunique() if "class" in words else 0  # classes by folders
    if told and (not labelled or (told > 1 and labelled < COVERS * len(paths))):
        known["class"] = words["class"]
        if labelled:
            assumed.append(f"classes by folders: tables label {labelled:,} of {len(paths):,} images only")
    elif not labelled:
        known["class"] = _prefixes(paths, folder)
        assumed.append("the classes are the words that the file names begin with")
    for column in ("split", "patient"):
        known[column] = known[column].where(known[column] != "", words.get(column, ""))
    known["split"] = known["split"].where(known["split"] != "", "train")
    found = pd.Series({image: "|".join(several) for image, several in masks.items()}, dtype=object)
    known["mask"] = known["mask"].where(known["mask"] != "", found.reindex(paths).fillna(""))
    drawn = known["mask"][known["mask"] != ""]
    if len(drawn):
        assumed.append(f"{len(drawn):,} of {len(paths):,} images have a mask, e.g. {printable(drawn.iloc[0])}")
    assumed += [f"the table {printable(table.file)}: {'; '.join(table.said)}" for table in used]
    assumed.append(f"levels of folders: {'none' if not levels else ' / '.join(levels)}")
    return known, levels


def _combined(used: list[Table], paths: list[str]) -> pd.DataFrame:
    """Return what all tables say, a row an image; the first that says something is believed."""
    parts, several = [table.rows.replace("", pd.NA) for table in used], sum("class" in t.rows for t in used) > 1
    for part, table in zip(parts, used, strict=True):
        if several and "class" in part and "split" not in part and (word := split_word(Path(table.file).stem)):
            part["split"] = word
    whole = pd.DataFrame(index=pd.Index([], dtype=object))
    for part in parts:
        whole = whole.combine_first(part)
    first = ["class", "split", "patient", "mask"]
    columns = [*first, *(column for column in whole if column not in first)]
    return whole.reindex(index=paths, columns=columns).astype(object).fillna("").astype(str)


def _words(path: str, levels: list[str] | None) -> dict[str, str]:
    """Return what the folders of a path say: by their levels, or where there are none, the split alone."""
    folders = path.split("/")[:-1]
    if levels is None:
        return {"split": next(filter(None, map(split_word, folders)), "")}
    words = dict(zip(levels, folders, strict=True))
    return {key: split_word(word) if key == "split" else word.strip() for key, word in words.items() if key != "any"}


def _levels(paths: Sequence[str], folder: Path, *, labelled: bool) -> list[str] | None:
    """Return what each level of folders says: split, class, patient or any; None where a table says more."""
    depths = Counter(path.count("/") for path in paths)
    if len(depths) > 1 and labelled:
        return None
    if len(depths) > 1:
        found = " and ".join(f"{n} images {depth} folders deep" for depth, n in sorted(depths.items()))
        raise UsageError(
            f"the levels of folders differ: {found}.", path=folder,
            hint="Let all images lie equally deep, or add a table with the columns image_path and label.",
        )  # fmt: skip
    words = [Counter(column) for column in zip(*(path.split("/")[:-1] for path in paths), strict=True)]
    levels = ["any"] * len(words)
    for i, level in enumerate(words):
        if all(map(split_word, level)) and "split" not in levels:
            levels[i] = "split"
    rest = [i for i, level in enumerate(levels) if level == "any"]
    if labelled:
        people = [i for i in rest if len(words[i]) > 1 and all(re.search("[0-9]", word) for word in words[i])]
        return ["patient" if i in people[-1:] else level for i, level in enumerate(levels)]
    able = [i for i in rest if 2 <= len({w.casefold() for w in words[i]}) <= MOST_CLASSES] or rest[-1:]
    if able:
        best = min(able, key=lambda i: (not any(map(HEALTHY.match, words[i])), len(words[i])))
        levels[best] = "class"
        others = [i for i in rest if i != best and len(words[i]) > 1]
        levels = ["patient" if others and i == others[-1] else level for i, level in enumerate(levels)]
    return levels


def _prefixes(paths: Sequence[str], folder: Path) -> list[str]:
    """Return the word that each file's name begins with, where such words make classes."""
    words = [match[0].rstrip("_- ") if (match := re.match(r"[^\W\d]+", Path(path).name)) else "" for path in paths]
    if "" in words or not 2 <= len({word.casefold() for word in words}) <= MOST_CLASSES:
        hint = "Put each class into a folder of its own, or add a table with the columns image_path and label."
        raise UsageError(f"nothing tells the classes of these {len(paths):,} images apart.", path=folder, hint=hint)
    return words


def _in_slices(known: pd.DataFrame, folder: Path, assumed: list[str]) -> tuple[pd.DataFrame, bool]:
    """Return a row a picture of files that hold several; those of a volume stay together, as a patient's images do."""
    parts = [slices(path, folder) for path in known.index]
    several = [part for part, path in zip(parts, known.index, strict=True) if part != [path]]
    if not several:
        return known, False
    which = f"the middle 60 %, at most 32 of each, e.g. {printable(several[0][0])}"
    assumed.append(f"{len(several):,} of {len(known):,} files hold several pictures: {which}; x, y or z names the axis")
    volume = pd.Series(known.index, known.index)
    known = known.assign(patient=known["patient"].where(known["patient"] != "", volume), part=parts).explode("part")
    return known.set_index("part").rename_axis(None), True


def _spelt(
    known: pd.DataFrame, by_folders: bool, left_out: dict[str, str]
) -> tuple[pd.DataFrame, dict[str, str], bool]:
    """Return the classes by their commonest spelling, the other words as aliases, and whether folders say it all."""
    chosen = _spellings(known["class"])
    clean = {word: printable(spelt)[:300].strip() or "none" for word, spelt in chosen.items()}
    plain = all(word == word.strip() and word.isprintable() for path in known.index for word in path.split("/"))
    aliases = {word: name for word, name in clean.items() if word != name}
    words = {part: split_word(part) for path in known.index for part in path.split("/")[:-1] if split_word(part)}
    aliases |= {part: word for part, word in words.items() if part not in SPLITS} if by_folders else {}
    return (
        known.assign(**{"class": known["class"].map(clean)}),
        aliases,
        by_folders and plain and not any(why.startswith("a name that no table") for why in left_out.values()),
    )


def _spellings(words: Iterable[str]) -> dict[str, str]:
    """Return each word's commonest spelling."""
    known: dict[str, Counter[str]] = {}
    for word in words:
        known.setdefault(word.casefold(), Counter())[word] += 1
    return {word: max(sorted(spelt), key=spelt.__getitem__) for spelt in known.values() for word in spelt}


def _classes(known: pd.DataFrame, normal: str, folder: Path) -> list[str]:
    """Return the classes, the healthy one first: as answered, or the only one that is called so."""
    classes = sorted(known["class"].unique())
    if len(classes) <= 1:
        what = f"all images are of one class, {printable(*classes)}; an evaluation needs healthy and anomalous ones."
        raise UsageError(what, path=folder, hint="Add the other class in a folder beside it.")
    if len(classes) > MOST_CLASSES:
        what = f"{len(classes):,} classes are too many (at most {MOST_CLASSES}), first {printable(classes[0])}."
        raise UsageError(what, path=folder, hint="Call the column of a table that says the class label.")
    called = [name for name in classes if (name.casefold() == normal.casefold() if normal else HEALTHY.match(name))]
    if len(called) != 1:
        raise UsageError(
            f"which class is healthy: {', '.join(map(printable, classes))}?", path=folder,
            hint="Answer with --normal CLASS.",
        )  # fmt: skip
    return sorted(classes, key=lambda name: name != called[0])


def _patients(known: pd.DataFrame, assumed: list[str]) -> tuple[str, pd.DataFrame]:
    """Return the pattern of names by which several images share a patient, "" without one, and the images' patients."""
    there = known["patient"][known["patient"] != ""]
    if len(there):
        assumed.append(f"{there.nunique():,} patients of {len(there):,} of {len(known):,} images")
        return "", known
    names = [Path(path).name for path in known.index]
    for pattern in PATIENTS:
        matches = [match for name in names if (match := re.search(pattern, name))]
        who = [group for match in matches if (group := next(filter(None, match.groups()), ""))]
        last = matches[0].re.groups if matches else 0  # a name of no known form is a patient of its own
        shared = [group for match in matches for group in match.groups()[: max(1, last - 1)] if group]
        groups = pd.Series(who).groupby(list(known["class"])).nunique() if len(who) == len(names) else pd.Series([0])
        if groups.min() > 1 and len(shared) > 0.3 * len(names) and 2 <= len(set(shared)) <= 0.8 * len(shared):
            some = printable(shared[0])
            assumed.append(f"{len(set(who)):,} patients by the names of {len(who):,} files, e.g. {some}")
            return pattern, known.assign(patient=who)
    return "", known


def _recipe(known: pd.DataFrame, classes: list[str], folder: Path, assumed: list[str]) -> dict[str, Any]:
    """Return the recipe of the splits that are missing, by which training keeps its healthy images."""
    there, n = set(known["split"]), known[known["split"] == "train"]["class"].value_counts()
    if "train" not in there:
        raise UsageError("there is no train split; only " + ", ".join(sorted(there)) + ".", path=folder)
    items = [Item(path, row["class"], row["split"], row["patient"]) for path, row in known.iterrows()]
    wanted, kept = dict[str, Any](), 1.0
    most = ((0.2, 0.6), (0.1, 0.5 if "test" in there else 0.3))  # test and val, of healthy and of ill ones
    for shares in (most, ((0.2, 0.2), (0.1, 0.1))):
        wanted = {}
        for split, (well, ill) in zip(("test", "val"), shares, strict=True):
            of = {name: ill if i else well for i, name in enumerate(classes)}
            moved = {name: round(share * n.get(name, 0)) for name, share in of.items()}
            if split not in there and moved.pop(classes[0]) and any(moved.values()):
                wanted[split] = of
        left = split_items(items, Recipe(seed=0, **wanted)) if wanted else items
        healthy = sum(item.class_name == classes[0] and item.split == "train" for item in left)
        kept = healthy / max(n.get(classes[0], 0), 1)
        if kept >= KEPT_HEALTHY:
            break
    else:
        what = f"patients have images of several classes, so a split by patient leaves {kept:.0%} of the healthy images"
        hint = "Say the splits in a table: image_path, label, split."
        raise UsageError(f"{what} to training.", path=folder, hint=hint)
    if wanted:
        some = printable(Path(known.index[0]).name)
        how = "by patient" if known["patient"].any() else f"by image: no patient is seen in names such as {some}"
        made = f"{' and '.join(wanted)} made of the train images, seed 0, {how}"
        assumed.append(f"{made}; training keeps {kept:.0%} of the healthy ones")
    if "val" not in there | wanted.keys():
        assumed.append("no validation split, so a run has neither threshold nor p values")
    return {"recipe": {"seed": 0} | wanted} if wanted else {}


def _joined(known: pd.DataFrame, values: dict[str, Any], folder: Path) -> tuple[pd.DataFrame, str]:
    """Return the images, files that show one picture as those of one patient, and a sentence on them, "" if none do."""
    pairs_of_one, rounds = 0, 3 if "recipe" in values and len(known) <= MOST_COMPARED else 0
    for _ in tqdm(range(rounds), desc="pictures that are one", unit="round", disable=None):
        pairs = _same(known, values, folder)
        for a, b in pairs:
            one, other = (known.at[path, "patient"] or path for path in (a, b))
            mine = known.index.isin([a, b]) | known["patient"].isin([other])
            known = known.assign(patient=known["patient"].mask(mine, one))
        pairs_of_one += len(pairs)
        if not pairs:
            break
    note = f"{pairs_of_one} pairs of files show one picture, so the patients of both count as one"
    return known, note if pairs_of_one else ""


def _same(known: pd.DataFrame, values: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Return the files in different splits that show one picture."""
    sure = {"exact", "near"} if values["image"]["size"] >= SIDE // 2 else {"exact"}  # by texture, or by all pixels
    place = _place(folder, None) | {"file": "pictures.csv", "root": str(folder.resolve().parent)}
    with tempfile.TemporaryDirectory() as beside, contextlib.suppress(DataError):
        path = Path(beside) / "pictures.yaml"
        path.with_suffix(".csv").write_text(_table(known), "utf-8")
        path.write_text(yaml_lines(place | values), "utf-8")
        splits = load(load_manifest(path).at_size(THUMBNAIL))
        files = {part.split: part.files for part in splits.all() if part.files is not None}
        return [(str(files[p.first_split][p.first_index]), str(files[p.second_split][p.second_index]))
                for p in find_pairs(splits) if p.across and p.kind in sure]  # fmt: skip
    return []


def _table(known: pd.DataFrame) -> str:
    """Return the table of the images, sorted by path, without columns that say nothing."""
    named = known.rename(columns={"class": "label", "patient": "patient_id"}).sort_index()
    named = named.loc[:, [column in ("label", "split") or bool(named[column].ne("").any()) for column in named]]
    named.insert(0, "image_path", [cell(path) for path in named.index])
    return csv_text([list(named.columns), *named.to_numpy().tolist()])


# --- what a few images say of all ----------------------------------------------------------------------


def _examples(known: pd.DataFrame, classes: list[str]) -> dict[str, list[str]]:
    """Return a few files of each class, evenly spaced."""
    examples = {}
    for wanted in classes:
        files = list(known.index[known["class"] == wanted])
        rows = np.linspace(0, len(files) - 1, min(LOOKED_AT, len(files))).round().astype(int)
        examples[wanted] = [files[row] for row in rows]
    return examples


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
    tinted = sum(is_colour(image) for image in opened.values())
    colour = tinted > MOST_TINTED * len(opened)
    size = int(np.clip(np.median([min(shape) for shape in shapes.elements()]), 8, 4096))
    resize = "pad" if any(max(shape) > 1.1 * min(shape) for shape in shapes) else "squash"
    sizes = " · ".join(f"{h}×{w}" for (h, w), _ in shapes.most_common(3)) + (" …" if len(shapes) > 3 else "")
    how = "" if set(shapes) == {(size, size)} else f", brought to {size} px ({resize})"
    few = f"; {tinted} in colour, brought to grey" if tinted and not colour else ""
    assumed.append(f"{'colour' if colour else 'grey'}{few}, {sizes} px in {len(opened)} opened images{how}")
    mine = "how much of your images' variance they change stands on the page of a run and in notebook 02"
    assumed.append(f"dissolving steps 30 to 130, the paper's for chest X-rays of 28 px; {mine}")
    values = {"image": {"size": size, "channels": 3 if colour else 1}, "resize": resize, "t_range": [30, 130]}
    return opened, values | {"bridge": "pad" if size <= 32 else "resize"} | ({"intensity": window} if window else {})
