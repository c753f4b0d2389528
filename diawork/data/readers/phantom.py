"""The reader of phantoms: there is no file, the images are made as the manifest describes them."""

import functools
from pathlib import Path

import numpy as np

from diawork.base.seeding import key
from diawork.data.manifests import Manifest
from diawork.data.phantom import make_phantom
from diawork.data.preprocess import decoding, to_unit
from diawork.data.store import Content, Part, decoded_bytes, refuse_beyond_memory


def read(manifest: Manifest, _root: Path | str | None = None, *, download: bool = False) -> Content:
    """Make the phantom of a manifest; within a process it is made once."""
    return made(manifest.model_dump_json())


@functools.lru_cache(maxsize=4)
def made(manifest_json: str) -> Content:
    """Make the phantom of a manifest, whose JSON text is the key under which it is kept."""
    manifest = Manifest.model_validate_json(manifest_json)
    with decoding(manifest.name, "cannot be made"):
        floats = sum(decoded_bytes(manifest, split) for split in manifest.counts)
        refuse_beyond_memory(2 * floats)  # room for bytes and masks, too
    drawn = manifest.phantom
    assert drawn is not None  # its kind needs them
    parts: dict[str, Part] = {}
    for split, counts in manifest.counts.items():
        names = np.repeat(list(counts), list(counts.values()))
        lesioned = np.array([manifest.roles[name] == "anomalous" for name in names], dtype=bool)
        seed = key(drawn.seed, "phantom", split)
        pixels, masks = make_phantom(drawn.spec(manifest.image.size), len(names), anomalous=lesioned, seed=seed)
        unit, _ = to_unit(pixels[:, None], None)
        parts[split] = Part(unit, names, masks[:, None])
    source = f"made by diawork: {drawn.kind} phantom, seed {drawn.seed}; lesions: {drawn.describe()}"
    return Content(parts, source)
