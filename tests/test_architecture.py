"""The table is the architecture: changing an arrow is a visible one-line difference."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diawork"
MAY_IMPORT: dict[str, set[str]] = {
    # ground floor
    "errors": set(),
    "files": {"errors"},
    "locks": {"errors", "files"},
    "seeding": set(),
    "stopping": {"errors"},
    "strictyaml": {"errors"},
    "config": {"errors", "files"},
    "presets": {"config", "errors"},
    "compute": {"errors"},
    "readers": {"errors"},
    "spectra": {"errors"},
    "metrics": {"errors"},
    "phantom": {"errors"},
    "manifests": {"errors", "strictyaml", "phantom"},
    "checkpoints": {"errors", "files", "stopping"},
    "runs": {"config", "errors", "files", "locks"},
    "npz": {"errors", "manifests", "strictyaml"},
    "images": {"errors", "files", "manifests", "npz", "phantom", "seeding"},
    "datachecks": {"errors", "files", "images"},
    "variants": {"config", "errors", "images", "manifests", "seeding"},
    # the method
    "frozen_unet": set(),
    "dissolve": {"config", "compute", "errors", "frozen_unet", "seeding"},
    "bank": {"dissolve", "errors", "files", "stopping"},
    "matching": {"config", "dissolve", "errors"},
    "diffusion": {"checkpoints", "config", "compute", "dissolve", "errors", "images", "seeding", "stopping"},
    "views": {"config", "errors", "seeding"},
    "encoder": {"config", "seeding"},
    "loss": {"config", "errors"},
    "training": {
        "checkpoints", "config", "compute", "encoder", "errors", "images", "loss", "seeding", "stopping", "views",
    },
    "scoring": {"config", "compute", "encoder", "errors", "seeding", "stopping", "views"},
    # detectors and the room that knows everybody
    "detectors.contrastive": {
        "checkpoints", "compute", "config", "diffusion", "dissolve", "encoder", "errors", "images", "scoring",
        "training", "views",
    },
    "detectors.controls": {"errors", "files", "images"},
    "pixel_metrics": {"errors"},
    "patches": {"config", "encoder", "seeding", "stopping", "views"},
    "maps": {
        "bank", "config", "detectors.contrastive", "dissolve", "errors", "images", "patches", "scoring", "stopping",
        "views",
    },
    "panels": {"errors", "pictures", "plots"},
    "localisation": {"errors", "panels", "plots"},
    "shortcuts": {"errors", "panels", "plots"},
    "evidence": {"config", "detectors.controls", "diffusion", "dissolve", "images", "maps", "pixel_metrics"},
    "detectors": {"detectors.contrastive", "detectors.controls"},
    "methods": {"config", "detectors", "errors", "images", "manifests"},
    "parents": {
        "bank", "compute", "config", "diffusion", "dissolve", "files", "images", "locks", "methods",
        "runs",
    },
    "experiment": {
        "compute", "config", "datachecks", "detectors", "diffusion", "dissolve", "errors", "evidence", "files",
        "images", "matching", "methods", "metrics", "parents", "runs", "stopping", "variants",
    },
    "figures": {
        "compute", "config", "diffusion", "dissolve", "errors", "evidence", "files", "loss", "matching", "methods",
        "parents", "plots", "runs", "variants",
    },
    # surfaces
    "pictures": {"errors"},
    "frames": {"errors", "pictures", "spectra"},
    "slots": {"compute", "config", "diffusion", "dissolve", "errors"},
    "plots": {"errors", "pictures"},
    "player": {"errors"},
    "published": {"errors", "strictyaml", "tables"},
    "tables": {"errors", "files", "metrics", "plots", "runs"},
    "headline": {"errors", "tables"},
    "sections": {
        "errors", "files", "headline", "localisation", "manifests", "plots", "player", "published", "shortcuts",
        "tables",
    },
    "sweepreport": {"errors", "files", "headline", "ledger", "metrics", "plots", "published", "report", "tables"},
    "report": {"errors", "files", "headline", "metrics", "player", "plots", "published", "sections", "tables"},
    "widgets": {"widgets.dissolve", "widgets.score", "widgets.views"},
    "widgets.shown": {"errors", "plots"},
    "widgets.score": {
        "config", "detectors", "errors", "images", "maps", "panels", "plots", "runs", "views", "widgets.shown",
    },
    "widgets.views": {"config", "errors", "images", "loss", "panels", "plots", "views", "widgets.shown"},
    "widgets.stacks": {"errors", "frames"},
    "widgets.dissolve": {"errors", "plots", "readers", "widgets.controls", "widgets.stacks"},
    "widgets.controls": {"errors"},
    "baseline": {"compute", "config", "dissolve", "encoder", "seeding", "views"},
    "costpage": {"files", "plots"},
    "fidelity": {
        "compute", "config", "detectors", "diffusion", "errors", "images", "methods", "metrics", "parents", "presets",
        "runs",
    },
    "bench": {
        "baseline", "compute", "config", "diffusion", "dissolve", "encoder", "scoring", "seeding", "training", "views",
    },
    "costs": {
        "bank", "bench", "compute", "config", "diffusion", "dissolve", "encoder", "loss", "seeding", "training",
        "views",
    },
    "notebooks": {"errors"},
    "cells": {"config", "files", "manifests", "methods"},
    "sweepfile": {"cells", "config", "errors", "manifests", "methods", "notebooks", "presets"},
    "sweep": {"cells", "errors", "strictyaml", "sweepfile"},
    "cellfolder": {"errors", "files", "locks", "runs"},
    "worker": {"cellfolder", "errors", "files", "locks", "notebooks", "runs"},
    "processes": set(),
    "cluster": {"errors", "processes"},
    "ledger": {"cellfolder", "errors", "files", "runs"},
    "launch": {
        "cellfolder", "cells", "cluster", "config", "errors", "files", "ledger", "notebooks", "processes", "runs",
        "stopping", "sweep", "variants",
    },
    "sweepcommand": {"errors", "launch", "sweep", "sweepreport"},
    "machine": {"compute", "images", "runs"},
    "cli": {
        "compute", "costpage", "costs", "datachecks", "errors", "experiment", "fidelity", "files", "images", "machine",
        "manifests", "notebooks", "presets", "report", "runs", "stopping", "sweepcommand",
    },
}  # fmt: skip
ONE_DOOR = {
    "denoising_diffusion_pytorch": {"diffusion", "frozen_unet"},
    "ema_pytorch": {"diffusion"},
    "PIL": {"readers"},
    "matplotlib": {"frames", "pictures", "plots", "panels"},
    "seaborn": {"plots"},
    "ipywidgets": {"widgets.controls", "widgets.dissolve", "widgets.score", "widgets.shown", "widgets.views"},
    "papermill": {"notebooks"},
    "nbclient": {"notebooks"},
    "submitit": {"cluster"},
    "sklearn": {"metrics", "detectors.controls"},
    "kornia": {"views", "dissolve"},
    "timm": {"training"},
    "pooch": {"images"},
    "jinja2": {"report", "costpage"},
    "yaml": {"strictyaml"},
}
NO_TORCH = {
    "metrics",
    "pixel_metrics",
    "panels",
    "manifests",
    "phantom",
    "config",
    "errors",
    "files",
    "plots",
    "pictures",
    "player",
    "strictyaml",
    "tables",
    "npz",
    "readers",
    "spectra",
    "frames",
    "report",
}
ROOMS = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(PACKAGE.rglob("*.py"))
    if p != PACKAGE / "__init__.py"
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write absolute imports"
            found |= {node.module} if node.module != "diawork" else {f"diawork.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_run_one_way(room):
    own = {name.removeprefix("diawork.") for name in imports(ROOMS[room]) if name.startswith("diawork.")}
    assert room in MAY_IMPORT, f"{room} is not in the table"
    assert own <= MAY_IMPORT[room], f"{room} may not import {sorted(own - MAY_IMPORT[room])}"


@pytest.mark.parametrize("library", ONE_DOOR)
def test_heavy_libraries_have_one_door(library):
    users = {room for room, path in ROOMS.items() if any(n.split(".")[0] == library for n in imports(path))}
    assert users <= ONE_DOOR[library]


@pytest.mark.parametrize("room", sorted(NO_TORCH))
def test_rooms_without_torch(room):
    assert not any(name.split(".")[0] == "torch" for name in imports(ROOMS[room]))


def test_the_table_names_no_room_that_is_gone():
    assert set(MAY_IMPORT) == set(ROOMS)


def test_the_table_has_no_circle():
    below = {room: set(arrows) for room, arrows in MAY_IMPORT.items()}
    while below:
        free = {room for room, arrows in below.items() if not arrows & set(below)}
        assert free, f"a circle among {sorted(below)}"
        below = {room: arrows for room, arrows in below.items() if room not in free}


UNSAFE = re.compile(
    r"(?<!allow_)pickle(?!d\b)|allow_pickle=True|dill\b|joblib|shelve|marshal"
    r"|torch\.(jit\.|export\.)?(load|save)\b|yaml\.(unsafe_|full_)?load|UnsafeLoader|FullLoader"
)


def test_nothing_is_unpickled():
    assert {room for room, path in ROOMS.items() if UNSAFE.search(path.read_text("utf-8"))} == set()


@pytest.mark.parametrize(
    "line", ["import pickle", "pd.read_pickle(path)", "np.load(f, allow_pickle=True)", "torch.load(f)", "yaml.load(f)"]
)
def test_the_search_for_unpickling_finds_it(line):
    assert UNSAFE.search(line) and not UNSAFE.search("np.load(f, allow_pickle=False)")
