"""Splits written down: a list of the files, and a manifest that names it, so that both travel with the images."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from diawork.base.errors import UsageError, did_you_mean
from diawork.base.files import write_text
from diawork.data.facts import SPLITS, Recipe
from diawork.data.manifests import KINDS, UNCOUNTED, Manifest, check_manifest
from diawork.data.readers.collection import kept_items
from diawork.data.readers.scan import as_yaml
from diawork.data.readers.splitting import Item, split_items
from diawork.data.sources import root_of

_TABLE = {*KINDS["table"].needs, *KINDS["table"].may_have}
_STALE = {"kind", "file", "layout", "columns", "aliases", "patient", "recipe", "counts", "drop"}  # said by the list


def write_split(manifest: Manifest, recipe: Recipe, *, root: Path | str | None = None, name: str = "") -> Path:
    """Divide a set of image files by the recipe; write ``name``.csv and ``name``.yaml into its data root.

    The list has a row an image: path, class, split, patient and mask where known. Return the manifest's path.
    """
    if manifest.kind not in UNCOUNTED:
        what = f"{manifest.name!r} is of kind {manifest.kind}: its images are no files that a list could name."
        raise UsageError(what, hint=f"What can be divided: {', '.join(UNCOUNTED)}.")
    for shares in (recipe.val, recipe.test):
        for class_name in shares if isinstance(shares, dict) else ():
            if class_name not in manifest.roles:
                raise UsageError(
                    f"{class_name!r} is no class of the set.", hint=did_you_mean(class_name, manifest.roles)
                )
    listing = import_module(f"diawork.data.readers.{manifest.kind}").list_items(manifest, root)
    home, name = _home(listing.base, manifest), name or f"{manifest.name}-split"
    path, table = home / f"{name}.yaml", home / f"{name}.csv"
    for file in (path, table):
        if file.exists():
            raise UsageError("this file exists.", path=file, hint="Name another with --name, or remove it.")
    items = split_items(kept_items(manifest, sorted(listing.items))[0], recipe)
    text = as_yaml(_facts(manifest, name, listing.base.relative_to(home).as_posix(), items))
    check_manifest(text, path)
    write_text(table, _list(items))
    write_text(path, text)
    return path


def _home(base: Path, manifest: Manifest) -> Path:
    """Return the data root in which the images begin at ``base``."""
    if manifest.folder:
        return base.parents[len(Path(manifest.folder).parts) - 1]
    return root_of(base / Path(manifest.place).name, manifest)


def _facts(manifest: Manifest, name: str, folder: str, items: Sequence[Item]) -> dict[str, Any]:
    facts = manifest.model_dump(exclude_defaults=True, exclude=_STALE)
    foreign = {key for kind in KINDS.values() for key in (*kind.needs, *kind.may_have)} - _TABLE
    place = {"kind": "table", "file": f"{name}.csv"} | ({} if folder == "." else {"folder": folder})
    counts = {split: dict.fromkeys(manifest.roles, 0) for split in SPLITS}
    for (split, class_name), n in Counter((item.split, item.class_name) for item in items).items():
        counts[split][class_name] = n
    kept = {key: value for key, value in facts.items() if key not in foreign | {"root"}}
    return kept | {"name": name} | place | {"counts": {k: v for k, v in counts.items() if any(v.values())}}


def _list(items: Sequence[Item]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image_path", "label", "split", "patient_id", "mask"))
    order = sorted(items, key=lambda item: (SPLITS.index(item.split), item.path))
    writer.writerows((item.path, item.class_name, item.split, item.patient, item.mask) for item in order)
    return text.getvalue()
