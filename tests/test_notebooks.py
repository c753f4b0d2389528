"""Notebooks: their form as committed, and that each runs headless on the phantom."""

import ast
import json
import statistics
import sys

import nbformat
import numpy as np
import pytest

import diawork
from diawork.base.errors import UsageError
from diawork.base.files import shipped
from diawork.data.documents import parse_yaml, yaml_text
from diawork.data.readers.picture import write_pngs
from diawork.report.site import to_html
from diawork.runs.notebooks import (
    find_notebook,
    list_notebooks,
    notebook_parameters,
    run_notebook,
    shared_parameters,
    typed_parameters,
)
from diawork.sweeps.file import notebook_path

NOTEBOOKS = list_notebooks()
NAMES = [path.stem for path in NOTEBOOKS]
LAST_CELL = {
    "01": "model:", "02": "model:", "03": "run:", "04": "runs:", "05": "written:",
    "00": "diawork run", "08": "runs:", "09": "scored:", "10": "diawork sweep",
}  # fmt: skip


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_committed_without_outputs(path):
    nb = nbformat.read(path, as_version=4)
    assert nb.metadata.kernelspec.name == "python3"
    assert all(not c.outputs and c.execution_count is None for c in code_cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_committed_in_the_house_order(path):
    cells = nbformat.read(path, as_version=4).cells
    kinds = [c.cell_type for c in cells[:5]]
    assert kinds[:3] == ["markdown", "code", "code"] and "markdown" in kinds[3:]
    assert cells[1].metadata.tags == ["parameters"] and "import diawork" in cells[2].source
    assert ("doctor" in path.read_text("utf-8")) == (path.stem[:2] in ("00", "01"))
    assert sum("parameters" in c.metadata.get("tags", []) for c in cells) == 1
    for line in cells[1].source.splitlines():
        assert isinstance(ast.parse(line).body[0], ast.AnnAssign) and "  # " in line


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_committed_notebooks_tell_and_modules_do(path):
    sources = [c.source for c in code_cells(path)]
    trees = [node for s in sources for node in ast.walk(ast.parse(s))]
    assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.While)) for node in trees)
    lengths = [len(s.splitlines()) for s in sources]
    assert statistics.median(lengths) <= 6 and max(lengths) <= 20 and sum(lengths) <= 120
    assert len(notebook_parameters(path)) <= 8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_of_the_package_a_notebook_imports_three_names(path):
    nodes = [node for c in code_cells(path) for node in ast.walk(ast.parse(c.source))]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    inner = {node.module for node in nodes if isinstance(node, ast.ImportFrom)} | named
    assert {name for name in inner if name.startswith("diawork")} == {"diawork"}
    taken = [n for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "diawork" for n in node.names]
    assert {alias.name for alias in taken} <= {"figures", "widgets"}


def typed(path):
    """The names that a notebook's code takes from the package itself."""
    nodes = [node for c in code_cells(path) for node in ast.walk(ast.parse(c.source))]
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "diawork"
    }


def test_every_public_name_is_typed_in_a_notebook_and_every_typed_one_is_public():
    assert set().union(*map(typed, NOTEBOOKS)) == set(diawork.__all__)


@pytest.mark.parametrize(
    ("number", "called"),
    [
        ("01", {"pretrain_ddpm"}),
        ("02", {"dissolve"}),
        ("03", {"BranchBuilder", "dia_loss", "FeatureBank", "score", "summary", "DIA"}),
    ],
)
def test_the_reader_calls_the_method(number, called):
    assert called <= typed(find_notebook(number))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook-runs")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The manifest of the phantom with a third of its images, still enough for the self-check."""
    facts = parse_yaml((shipped("data_manifests") / "phantom.yaml").read_text("utf-8"), "phantom")[0]
    counts = {split: {name: n // 3 for name, n in some.items()} for split, some in facts["counts"].items()}
    path = tmp_path_factory.mktemp("few") / "few.yaml"
    path.write_text(yaml_text(facts | {"name": "few", "counts": counts}), "utf-8")
    return str(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_runs_headless(path, runs, few, tmp_path, monkeypatch):
    monkeypatch.setenv("DIAWORK_HOME", str(runs))
    knobs = {"csi": {"loss.temperature": [0.2, 0.5]}}
    seeds = [0] if path.stem.startswith("10") else 2
    wanted = {"preset": "smoke", "dataset": few, "seeds": seeds, "knobs": knobs}
    parameters = {name: value for name, value in wanted.items() if name in notebook_parameters(path)}
    out = run_notebook(path, runs / f"{path.stem}.ipynb", parameters=parameters, progress=False)
    executed = code_cells(out)
    assert [o.text for cell in executed for o in cell.outputs if o.get("name") == "stderr"] == []
    assert not list(tmp_path.iterdir()), "it wrote elsewhere than to $DIAWORK_HOME"
    assert LAST_CELL[path.stem[:2]] in executed[-1].outputs[0].text
    assert out.stat().st_size < 5 * 2**20
    assert "widgets" not in nbformat.read(out, as_version=4).metadata
    assert not list(unreadable(executed))


@pytest.fixture(scope="module")
def without_masks(tmp_path_factory):
    """The manifest of a grey npz file of 28 px as MedMNIST publishes them, without masks."""
    folder, rng = tmp_path_factory.mktemp("grey"), np.random.default_rng(0)
    labels = {"train": [0] * 24, "val": [0] * 8 + [1] * 8, "test": [0] * 12 + [1] * 12}
    arrays = {f"{split}_labels": np.array(values)[:, None] for split, values in labels.items()}
    arrays |= {f"{split}_images": rng.integers(0, 256, (len(v), 28, 28), np.uint8) for split, v in labels.items()}
    np.savez(folder / "grey.npz", **arrays)
    counts = {split: {"normal": v.count(0), "pneumonia": v.count(1)} for split, v in labels.items()}
    facts = parse_yaml((shipped("data_manifests") / "pneumoniamnist.yaml").read_text("utf-8"), "pneumoniamnist")[0]
    facts = {name: value for name, value in facts.items() if name not in ("url", "md5")}
    (folder / "grey.yaml").write_text(
        yaml_text(facts | {"name": "grey", "file": "grey.npz", "counts": counts}), "utf-8"
    )
    return folder / "grey.yaml"


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A folder of small colour images by split and class."""
    folder, rng = tmp_path_factory.mktemp("colour") / "images", np.random.default_rng(0)
    for split, role, n in [("train", "healthy", 24), ("val", "healthy", 8), ("val", "lesion", 8),
                           ("test", "healthy", 12), ("test", "lesion", 12)]:  # fmt: skip
        write_pngs(rng.random((n, 3, 24, 24), np.float32), folder / split / role)
    return folder


ON_DATA = [find_notebook(n) for n in ("01", "02", "03", "04", "08", "09", "10")]  # what takes a data set
SOME = [path if path.stem[:2] in ("02", "03") else pytest.param(path, marks=pytest.mark.slow) for path in ON_DATA]


def run_on(dataset, path, runs, name):
    """Run a notebook at its smallest on a data set; return its code cells."""
    seeds = [0] if path.stem.startswith("10") else 1
    wanted = {"preset": "smoke", "dataset": str(dataset), "out": str(runs), "seeds": seeds}
    wanted["knobs"] = {"csi": {"loss.temperature": [0.2, 0.5]}}
    given = {name: value for name, value in wanted.items() if name in notebook_parameters(path)}
    cells = code_cells(run_notebook(path, runs / f"{path.stem[:2]}-{name}.ipynb", parameters=given, progress=False))
    assert not list(unreadable(cells))
    return cells


@pytest.mark.parametrize("path", SOME, ids=lambda path: path.stem[:2])
def test_runs_on_data_without_masks(path, runs, without_masks):
    cells = run_on(without_masks, path, runs, "grey")
    assert path.stem[:2] not in ("03", "08") or "has no masks" in str(cells)


def test_00_shows_the_folder_it_is_given(runs, coloured, monkeypatch):
    monkeypatch.setenv("DIAWORK_HOME", str(runs / "coloured"))
    for folder in ("", str(coloured)):  # the drawn one first: its manifest stays there
        given = {"preset": "smoke", "folder": folder}
        out = run_notebook(find_notebook("00"), runs / "00-colour.ipynb", parameters=given, progress=False)
    shown = "".join(o.get("text", "") for cell in code_cells(out) for o in cell.outputs)
    assert 'name: "images"' in shown and "drawn" not in shown


@pytest.mark.parametrize("path", SOME, ids=lambda path: path.stem[:2])
def test_runs_on_a_folder_in_colour(path, runs, coloured):
    manifest = runs / "colour.yaml"
    if not manifest.exists():
        diawork.write_guess(diawork.guess_manifest(coloured), coloured, manifest)
    run_on(manifest, path, runs, "colour")


def test_smoke_and_an_untrained_model_are_called_so(runs, without_masks):
    cells = run_on(without_masks, find_notebook("02"), runs, "grey")
    assert "mean nothing" in str(cells[2].outputs) and "it has learnt nothing yet" in str(cells)


def test_09_scores_the_images_it_is_given(runs, without_masks, coloured):
    given = {"preset": "smoke", "dataset": str(without_masks), "out": str(runs), "method": "stats_knn"}
    given["images"] = str(write_pngs(np.zeros((3, 1, 28, 28), np.float32), runs / "mine"))
    out = run_notebook(find_notebook("09"), runs / "09-mine.ipynb", parameters=given, progress=False)
    assert "scored: 3 images" in code_cells(out)[-1].outputs[0].text


def unreadable(cells):
    """Yield what a reader should not meet in an executed notebook: warnings, empty or cut tables, bare widgets."""
    for output in (output for cell in cells for output in cell.outputs):
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        if output.output_type == "stream" and output.name == "stderr":
            yield text
        if "Empty DataFrame" in text or any("widget" in kind for kind in output.get("data", {})):
            yield text
        if "...</td>" in output.get("data", {}).get("text/html", ""):
            yield text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_every_equation_is_set(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            html = to_html(cell.source)
            assert "$" not in html and "\\" not in html
            assert html.count("<math") >= cell.source.replace("$$", "$").count("$") // 2


def test_what_the_paper_calls_an_equation_is_printed_where_it_is_cited():
    text = {path.stem[:2]: path.read_text("utf-8") for path in NOTEBOOKS}
    assert all("epsilon_\\\\theta(x, t)" in text[number] for number in ("01", "02"))
    assert all(f"qquad ({number})" in text["03"] for number in (5, 6, 7, 8, 9, 10))


def test_a_slider_stays_without_a_kernel(runs):
    executed = code_cells(runs / "02_explore_dissolving.ipynb")
    players = [o.data["text/html"] for c in executed for o in c.outputs if 'class="player"' in str(o.get("data"))]
    assert len(players) == 1 and players[0].count('type="radio"') > 5


@pytest.mark.parametrize(
    ("notebook", "more"), [(find_notebook("03"), {}), (notebook_path("cell"), {"method": "pixel_knn"})]
)
def test_a_run_that_stops_at_val_is_shown_on_val(runs, few, notebook, more):
    parameters = {"preset": "smoke", "dataset": few, "out": str(runs), "overrides": {"score.evaluate": "val"}, **more}
    out = run_notebook(notebook, runs / f"{notebook.stem}-val.ipynb", parameters=parameters, progress=False)
    assert "val AUROC" in out.read_text("utf-8")


def test_notebooks_are_found_by_number_and_the_nearest_is_named():
    assert find_notebook("03").stem == "03_train_dia"
    with pytest.raises(UsageError, match="Did you mean '03_train_dia'"):
        find_notebook("03_train_dya")


def test_strings_are_read_as_the_declared_type():
    given = {"preset": "cpu", "seed": "7", "overrides": "{'loss.temperature': 1e-1}"}
    typed = typed_parameters(find_notebook("03"), given)
    assert typed == {"preset": "cpu", "seed": 7, "overrides": {"loss.temperature": 0.1}}


@pytest.mark.parametrize("text", ['{"views.hflip": true, "a": [1, 2]}', "{'views.hflip': True, 'a': (1, 2)}"])
def test_json_and_python_are_both_read(text):
    typed = typed_parameters(find_notebook("03"), {"overrides": text})
    assert typed == {"overrides": {"views.hflip": True, "a": [1, 2]}}


@pytest.fixture
def tiny(tmp_path):
    """A notebook that says who ran it."""
    kernel = {"name": "python3", "display_name": "", "language": "python"}
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    parameters = nbformat.v4.new_code_cell("x: float = 1.0", metadata={"tags": ["parameters"]})
    nb.cells = [parameters, nbformat.v4.new_code_cell("import sys; print(sys.prefix, x)")]
    nbformat.write(nb, tmp_path / "tiny.ipynb")
    return tmp_path / "tiny.ipynb"


def test_this_interpreter_runs_whatever_kernels_lie_about(tiny, tmp_path, monkeypatch):
    folder = tmp_path / "modules" / "kernels" / "python3"
    folder.mkdir(parents=True)
    theirs = {"argv": ["/nowhere/python"], "display_name": "theirs", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(theirs))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "modules"))
    out = run_notebook(tiny, tmp_path / "out.ipynb", parameters={"x": "2"}, progress=False)
    assert code_cells(out)[-1].outputs[0].text == f"{sys.prefix} 2\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sede": 1}, "'sede' is not a parameter of 03_train_dia.ipynb. Did you mean 'seed'"),
        ({"seed": "many"}, "seed='many' is not a int"),
        ({"seed": "true"}, "is a bool; wanted int"),
        ({"overrides": "{'loss.temperature': 1e400}"}, "cannot be stored: a notebook stores finite numbers"),
        ({"overrides": '{"loss.temperature": NaN}'}, "cannot be stored"),
        ({"overrides": {"dissolve.t_range": {30, 130}}}, "cannot be stored"),
        ({"dataset": "\udcff"}, "cannot be stored"),
        ({"seed": 1.5}, "is a float; wanted int"),
        ({"seed": True}, "is a bool; wanted int"),
        ({"overrides": "[1]"}, "is a list; wanted dict"),
    ],
)
def test_wrong_parameters_are_refused_before_the_run(given, message):
    with pytest.raises(UsageError, match=message):
        typed_parameters(find_notebook("03"), given)


def test_an_error_names_the_cell_and_keeps_the_copy(tiny, tmp_path):
    from diawork.runs.notebooks import NotebookError

    out, nb = tmp_path / "failed.ipynb", nbformat.read(tiny, as_version=4)
    nb.cells.append(nbformat.v4.new_code_cell("from diawork.base.errors import UsageError; raise UsageError('no.')"))
    nbformat.write(nb, tiny)
    with pytest.raises(NotebookError, match=r"cell 3 raised UsageError: no\."):
        run_notebook(tiny, out, progress=False)
    assert out.exists()


def test_parameters_of_all_notebooks_go_where_they_are_known():
    shares = dict(zip(NAMES, shared_parameters(NOTEBOOKS, {"preset": "smoke", "seeds": 1}), strict=True))
    assert shares["04_report_ablations"] == {"preset": "smoke", "seeds": 1}
    assert shares["01_pretrain_ddpm"] == {"preset": "smoke"}
    with pytest.raises(UsageError, match="no notebook has a parameter 'prset'"):
        shared_parameters(NOTEBOOKS, {"prset": "smoke"})
