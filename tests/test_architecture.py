"""The architecture: floors in one order, imports downwards only, one door for each heavy library."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diawork"
FLOORS = (
    "base", "data", "method", "evaluation", "detectors", "runs", "figures", "sweeps", "widgets", "report", "bench",
    "cli",
)  # fmt: skip
ONE_DOOR = {  # library → the only places that import it: rooms, or whole floors
    "denoising_diffusion_pytorch": {"method.ddpm", "method.unet"},
    "diffusers": {"method.pipelines"},
    "transformers": {"method.pipelines"},
    "ema_pytorch": {"method.ddpm"},
    "kornia": {"method"},
    "anomalib": set(),  # by name alone, in detectors.anomalib
    "lightning": set(),  # likewise
    "timm": {"method.training", "detectors.backbones"},
    "PIL": {"data.readers"},
    "yaml": {"data.documents"},
    "yamlcore": {"data.documents"},
    "pooch": {"data.locations"},
    "pydicom": {"data.readers.medical"},
    "nibabel": {"data.readers.medical"},
    "sklearn": {"evaluation", "detectors"},
    "papermill": {"runs.notebooks"},
    "nbclient": {"runs.notebooks"},
    "submitit": {"sweeps.cluster"},
    "matplotlib": {"figures"},
    "seaborn": {"figures"},
    "ipywidgets": {"widgets"},
    "jinja2": {"report.page"},
    "nbconvert": {"report.site"},
    "latex2mathml": {"report.site"},
    "click": {"cli"},
}
ROOMS = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(PACKAGE.rglob("*.py"))
}
ROOMS[""] = ROOMS.pop("__init__")
ROOMS["cli.__main__"] = ROOMS.pop("__main__")  # `python -m diawork` is the command line


@functools.cache
def imports(path: Path) -> set[str]:
    """Return the dotted names that a file reaches, wherever in it: imported, by name, or as `diawork.x`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                assert node.level == 0, f"{path.name}: write absolute imports"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                rooms = {name for name in inner if name.removeprefix("diawork.") in ROOMS}
                names |= rooms if rooms or node.module == "diawork" else {node.module}
            case ast.Attribute(value=ast.Name(id="diawork"), attr=attr) if attr in FLOORS:
                names.add(f"diawork.{attr}")
            case ast.Constant(value=str() as text) if re.fullmatch(r"diawork(\.\w+)+", text):
                names.add(text)  # of import_module and the like
    return names


def floor(room: str) -> str:
    return room.split(".")[0]


def inside(room: str, places: set[str]) -> bool:
    return any(room == place or room.startswith(f"{place}.") for place in places)


BY_NAME = {"base.registry": {"detectors"}}  # of an entry point's group: a detector is imported when it is asked for


@pytest.mark.parametrize("room", [room for room in ROOMS if room])
def test_imports_run_downwards(room):
    below = FLOORS[: FLOORS.index(floor(room)) + 1]
    own = {name.removeprefix("diawork.") for name in imports(ROOMS[room]) if name.startswith("diawork.")}
    assert {name for name in own if floor(name) not in below} - BY_NAME.get(room, set()) == set()


def test_no_circle_inside_a_floor():
    arrows = {
        room: {n.removeprefix("diawork.") for n in imports(path) if n.startswith("diawork.")} & set(ROOMS) - {room}
        for room, path in ROOMS.items()
    }
    while arrows:
        free = {room for room, to in arrows.items() if not to & set(arrows)}
        assert free, f"a circle among {sorted(arrows)}"
        arrows = {room: to for room, to in arrows.items() if room not in free}


@pytest.mark.parametrize("library", ONE_DOOR)
def test_heavy_libraries_have_one_door(library):
    users = {room for room, path in ROOMS.items() if any(n.split(".")[0] == library for n in imports(path))}
    assert {room for room in users if not inside(room, ONE_DOOR[library])} == set()


def listed():
    """Return the modules that CONTRIBUTING lists, by folder."""
    block = (PACKAGE.parent / "CONTRIBUTING.md").read_text("utf-8").split("```")[1]
    folder, words = "", {}
    for line in block.splitlines():
        name, _, rest = line.partition("  ") if line[:1].strip() else ("", "", line)
        folder = name.rstrip("/") or folder
        words.setdefault(folder, set()).update(re.findall(r"\w+", rest))
    return words


def test_contributing_lists_every_module():
    words = listed()
    rooms = [room for room, path in ROOMS.items() if path.name not in ("__init__.py", "__main__.py")]
    folders = {room: room.rpartition(".")[0].replace(".", "/") for room in rooms}
    assert {room for room in rooms if room.rpartition(".")[2] not in words.get(folders[room], set())} == set()
    assert set(words) - {""} == set(folders.values())


def test_no_room_is_a_drawer():
    assert not {room.rpartition(".")[2] for room in ROOMS} & {"utils", "helpers", "common", "misc"}


TORCH_FREE = [
    room for room in ROOMS if inside(room, {"report", "figures", "sweeps", "cli.main", "runs.run", "runs.methods"})
]


def test_tables_pages_and_sweeps_need_no_torch():  # sweeps.paper draws with it
    names = [f"diawork.{room}" for room in TORCH_FREE if room != "sweeps.paper"]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


UNSAFE = re.compile(
    r"(?<!allow_)pickle(?!d\b)|allow_pickle=True|dill\b|joblib\.(load|dump)|shelve|marshal"
    r"|torch\.(jit\.|export\.)?(load(?!\([^\n]*weights_only=True)|save)\b|yaml\.(unsafe_|full_)?load|UnsafeLoader|FullLoader"
)


def test_nothing_is_unpickled():
    assert {room for room, path in ROOMS.items() if UNSAFE.search(path.read_text("utf-8"))} == set()


@pytest.mark.parametrize(
    "line", ["import pickle", "pd.read_pickle(path)", "np.load(f, allow_pickle=True)", "torch.load(f)", "yaml.load(f)"]
)
def test_the_search_for_unpickling_finds_it(line):
    assert UNSAFE.search(line)


@pytest.mark.parametrize(
    "line", ["np.load(f, allow_pickle=False)", "torch.load(f, weights_only=True)", "joblib.cpu_count()"]
)
def test_the_search_for_unpickling_lets_safe_loading_pass(line):
    assert not UNSAFE.search(line)


@pytest.mark.parametrize(
    ("line", "room"),
    [
        ("from diawork import figures", "diawork.figures"),
        ("from diawork.figures import charts", "diawork.figures.charts"),
        ("def f():\n    import diawork\n    return diawork.report.page.write_html", "diawork.report"),
        ('importlib.import_module("diawork.cli.main")', "diawork.cli.main"),
    ],
)
def test_the_search_for_imports_finds_them(line, room, tmp_path):
    (tmp_path / "x.py").write_text(line)
    assert room in imports(tmp_path / "x.py")
