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
    "seeding": set(),
    "stopping": {"errors"},
    "strictyaml": {"errors"},
    "config": {"errors", "files"},
    "presets": {"config", "errors"},
    "compute": {"errors"},
    "metrics": {"errors"},
    "phantom": {"errors"},
    "manifests": {"errors", "strictyaml", "phantom"},
    "checkpoints": {"errors", "files", "stopping"},
    "runs": {"config", "errors", "files"},
    "npz": {"errors", "manifests", "strictyaml"},
    "images": {"errors", "files", "manifests", "npz", "phantom", "seeding"},
    "datachecks": {"errors", "files", "images"},
    # the method
    "dissolve": {"config", "compute", "errors", "seeding"},
    "bank": {"dissolve", "errors", "files", "stopping"},
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
    "evidence": {"config", "diffusion", "dissolve", "images"},
    "detectors": {"detectors.contrastive", "detectors.controls"},
    "experiment": {
        "bank", "compute", "config", "datachecks", "detectors", "diffusion", "dissolve", "errors", "evidence", "files",
        "images", "metrics", "runs", "stopping",
    },
    # surfaces
    "pictures": {"errors"},
    "plots": {"errors", "pictures"},
    "player": {"errors"},
    "published": {"errors", "strictyaml", "tables"},
    "tables": {"errors", "files", "metrics", "plots", "runs"},
    "headline": {"errors", "tables"},
    "sections": {"errors", "files", "headline", "manifests", "plots", "player", "published", "tables"},
    "report": {"errors", "files", "headline", "player", "plots", "published", "sections", "tables"},
    "widgets": {"errors", "plots"},
    "bench": {
        "compute", "config", "diffusion", "dissolve", "encoder", "loss", "scoring", "seeding", "training", "views",
    },
    "sweep": {"errors"},
    "machine": {"compute", "images", "runs"},
    "cli": {
        "bench", "compute", "datachecks", "errors", "experiment", "files", "images", "machine", "manifests", "presets",
        "report", "runs", "stopping", "sweep",
    },
}  # fmt: skip
ONE_DOOR = {
    "denoising_diffusion_pytorch": {"diffusion"},
    "ema_pytorch": {"diffusion"},
    "matplotlib": {"pictures", "plots"},
    "seaborn": {"plots"},
    "ipywidgets": {"widgets"},
    "papermill": {"sweep"},
    "sklearn": {"metrics", "detectors.controls"},
    "kornia": {"views", "dissolve"},
    "timm": {"training"},
    "pooch": {"images"},
    "jinja2": {"report"},
    "yaml": {"strictyaml"},
}
NO_TORCH = {
    "metrics",
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


def test_nothing_is_unpickled():
    unsafe = re.compile(
        r"\bpickle\b|torch\.load|torch\.save|joblib|allow_pickle=True|torch\.jit\.load|torch\.export\.load"
    )
    assert {room for room, path in ROOMS.items() if unsafe.search(path.read_text("utf-8"))} == set()
