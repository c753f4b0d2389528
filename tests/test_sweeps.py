"""The shipped sweeps: every file expands and validates at every size, and what it asks for runs on the phantom."""

import math

import pytest

from diawork.base.registry import CONTROLS
from diawork.data.documents import parse_yaml
from diawork.report.published import published
from diawork.runs.experiment import run_experiment
from diawork.runs.presets import preset
from diawork.sweeps.file import SHIPPED, list_sweeps
from diawork.sweeps.paper import draw_figure
from diawork.sweeps.sweep import Sweep

PAPER = {"t1", "t2", "t3", "t4", "ratio", "heuristics", "f1", "f3", "f4", "f5"}


def sizes(name):
    return parse_yaml((SHIPPED / f"{name}.yaml").read_bytes(), name)[0]["sizes"]


def test_the_releases_at_the_papers_size_are_their_presets_cut_short():
    cut = {"diffusion.steps": 25_000, "diffusion.batch_size": 256, "train.epochs": 200, "train.track_test": True}
    found = {cell.label: cell.config for cell in Sweep.load("recipe_paper", "paper").cells if cell.config.seed == 0}
    for name in ("paper", "repo2023", "repo2024"):
        wanted = preset(name, dataset="pneumoniamnist").override(cut)
        assert found["DIA, paper" if name == "paper" else f"DIA, {name}, cut"] == wanted


def test_every_table_and_figure_of_the_paper_is_there():
    assert set(list_sweeps()) >= PAPER


@pytest.mark.parametrize("name", list_sweeps())
def test_shipped_sweeps_expand_at_every_size(name):
    assert {"smoke", "cpu"} <= set(sizes(name)) or name == "recipe_paper"  # a GPU's work
    for size in sizes(name):
        sweep = Sweep.load(name, size)
        assert len(sweep.cells) >= 2 and all(len(published(key)) for key in sweep.published)
        methods = {cell.parameters.get("method") for cell in sweep.cells}
        assert set(CONTROLS) <= methods or sweep.notebook == "figure"
    head = (SHIPPED / f"{name}.yaml").read_text("utf-8").split("name:")[0]
    assert "diawork sweep" in head and any(word in head for word in ("core", "Measured", "second"))


@pytest.mark.parametrize("name", ["f3", "f5", "t4"])
def test_figures_draw_on_the_phantom(name, tmp_path):
    for cell in Sweep.load(name, "smoke").cells[:2]:
        cfg = cell.config.override({"diffusion.dim": 16})
        drawing = draw_figure(cell.parameters["figure"], cfg, out=tmp_path, progress=False)
        assert drawing.path.stat().st_size > 2000 and len(drawing.table) == len(drawing.rows) >= 1


def test_the_masks_of_figure_3_differ_by_the_same_image_pairs(tmp_path):
    naive, removed = (draw_figure("f3", c.config, out=tmp_path).rows[0] for c in Sweep.load("f3", "smoke").cells)
    assert naive == {"excluded": 56, "positive": 8, "negative": 80} and removed["negative"] == 72


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PAPER - {"f3", "f5", "t4"}))
def test_two_cells_of_every_table_run_on_the_phantom(name, tmp_path):
    for cell in Sweep.load(name, "smoke").cells[:2]:
        if "figure" in cell.parameters:
            assert draw_figure(cell.parameters["figure"], cell.config, out=tmp_path, progress=False).rows
        else:
            assert run_experiment(cell.config, out=tmp_path, progress=False).done


@pytest.mark.slow
def test_printed_multiply_adds_are_those_of_a_count_that_skips_convolutions(tmp_path):
    printed = {32: 2.33, 64: 3.84, 128: 9.90}
    for cell in Sweep.load("t4", "cpu").cells:
        row = draw_figure("t4", cell.config, out=tmp_path).rows[-1]
        assert math.isclose(row["gmacs_as_printed"], printed[cell.config.diffusion.image_size], rel_tol=0.06)
        assert row["gmacs"] > 1.5 * row["gmacs_as_printed"]
