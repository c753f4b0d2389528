"""Notebooks: their form as committed, and that each runs headless on the phantom."""

import ast
import statistics

import nbformat
import pytest

from diawork.base.errors import UsageError
from diawork.base.files import shipped
from diawork.runs.notebooks import find_notebook, notebook_parameters, run_notebook, typed_parameters

NOTEBOOKS = sorted(shipped("notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
LAST_CELL = {
    "01": "model:", "02": "model:", "03": "run:", "04": "runs:", "05": "written:", "06": "run:", "07": "drawn:",
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
    assert [c.cell_type for c in cells[:5]] == ["markdown", "code", "code", "code", "markdown"]
    assert cells[1].metadata.tags == ["parameters"] and "doctor" in cells[3].source
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook-runs")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_runs_headless(path, runs):
    given = {"preset": "smoke", "out": str(runs), "seeds": 2}
    parameters = {name: value for name, value in given.items() if name in notebook_parameters(path)}
    out = run_notebook(path, runs / f"{path.stem}.ipynb", parameters=parameters, progress=False)
    executed = code_cells(out)
    assert LAST_CELL[path.stem[:2]] in executed[-1].outputs[0].text
    assert out.stat().st_size < 5 * 2**20
    assert "widgets" not in nbformat.read(out, as_version=4).metadata


@pytest.mark.parametrize(("number", "more"), [("03", {}), ("06", {"method": "pixel_knn"})])
def test_a_run_that_stops_at_val_is_shown_on_val(runs, number, more):
    parameters = {"preset": "smoke", "out": str(runs), "overrides": {"score.evaluate": "val"}, **more}
    out = run_notebook(find_notebook(number), runs / f"{number}-val.ipynb", parameters=parameters, progress=False)
    assert "val AUROC" in out.read_text("utf-8")


def test_notebooks_are_found_by_number_and_the_nearest_is_named():
    assert find_notebook("03").stem == "03_train_dia"
    with pytest.raises(UsageError, match="Did you mean '03_train_dia'"):
        find_notebook("03_train_dya")


def test_strings_are_read_as_the_declared_type():
    given = {"preset": "cpu", "seed": "7", "overrides": "{'loss.temperature': 1e-1}"}
    typed = typed_parameters(find_notebook("03"), given)
    assert typed == {"preset": "cpu", "seed": 7, "overrides": {"loss.temperature": 0.1}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sede": 1}, "'sede' is not a parameter of 03_train_dia.ipynb. Did you mean 'seed'"),
        ({"seed": "many"}, "seed='many' is not a int"),
        ({"seed": 1.5}, "is a float; wanted int"),
        ({"seed": True}, "is a bool; wanted int"),
        ({"overrides": "[1]"}, "is a list; wanted dict"),
    ],
)
def test_wrong_parameters_are_refused_before_the_run(given, message):
    with pytest.raises(UsageError, match=message):
        typed_parameters(find_notebook("03"), given)


def test_an_error_names_the_cell_and_keeps_the_copy(tmp_path):
    from diawork.runs.notebooks import NotebookError

    out = tmp_path / "failed.ipynb"
    with pytest.raises(NotebookError, match=r"raised UsageError: .*'nonsense' is not a preset"):
        run_notebook("01", out, parameters={"preset": "nonsense"}, progress=False)
    assert out.exists()
