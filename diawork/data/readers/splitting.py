"""Splits that a source lacks: made of its train images by a seed, patient by patient, class by class."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from diawork.base.errors import DataError
from diawork.data.facts import Recipe


class Item(NamedTuple):
    """An image file of a set: its path from the set's folder, and what folders, names or a table say of it."""

    path: str
    class_name: str
    split: str = "train"
    patient: str = ""  # "": not known
    mask: str = ""  # path of its mask; "": none


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
        _refuse_a_second(split, items, recipe)
        for class_name, size in sorted(sizes.items()):
            wanted = round(recipe.share(split, class_name) * size)
            have = sum(s == split and item.class_name == class_name for s, item in zip(split_of, items, strict=True))
            for rows in map(groups.__getitem__, free if wanted else ()):
                own = sum(items[i].class_name == class_name for i in rows)
                if have < wanted and own and split_of[rows[0]] == "train":
                    have += own
                    for i in rows:
                        split_of[i] = split
    return [item._replace(split=split) for item, split in zip(items, split_of, strict=True)]


def _refuse_a_second(split: str, items: Sequence[Item], recipe: Recipe) -> None:
    shares = getattr(recipe, split)
    if any(shares.values() if isinstance(shares, dict) else [shares]) and any(item.split == split for item in items):
        what = f"the source has a {split} split of its own, and the recipe makes another."
        raise DataError(what, field=f"recipe.{split}", hint=f"Leave recipe.{split} out, or the given one.")


def shared_patients(items: Sequence[Item]) -> tuple[list[str], int, int]:
    """Return the patients who stand in train and in val or test, and how many images each side has of them."""
    fitted = {item.patient for item in items if item.split == "train" and item.patient}
    shared = fitted & {item.patient for item in items if item.split != "train"}
    own = [item.split == "train" for item in items if item.patient in shared]
    return sorted(shared), sum(own), len(own) - sum(own)
