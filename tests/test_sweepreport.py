"""The page of a sweep: partial sweeps, Holm over its rows, ours beside the paper's, nothing from outside."""

import re

import numpy as np
import pytest

from diawork.base.files import read_json
from diawork.evaluation.metrics import holm
from diawork.report.rows import Place, Results, compare
from diawork.report.sweep import (
    AXES,
    _curve,
    _extent,
    baseline_tests,
    collect_sweep,
    write_sweep_html,
    write_sweep_json,
)
from diawork.sweeps.cell import CellFolder, run_in_cell
from diawork.sweeps.file import list_sweeps
from diawork.sweeps.sweep import Sweep
from tests.builders import make_run, read_runs

SWEEP = """
name: small
title: Controls <beside> one another
published: t1
axes:
  - list:
      - {label: 5-NN on statistics, method: stats_knn}
      - {label: Mahalanobis on statistics, method: stats_mahalanobis}
      - {label: 5-NN on pixels, method: pixel_knn}
      - {label: CSI, method: csi}
baseline: 5-NN on statistics
needs: [GANomaly]
sizes:
  smoke: {preset: smoke}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("out")
    (root / "small.yaml").write_text(SWEEP)
    sweep = Sweep.load(str(root / "small.yaml"), "smoke")
    folder = root / "sweeps" / sweep.folder_name
    sweep.write(folder)
    for cell in sweep.cells[:3]:
        place = CellFolder(folder / "cells" / cell.digest)
        place.prepare({"digest": cell.digest, "data": "x", "makes_run": True, "notebook": cell.notebook})
        run_in_cell(place.path, cell.config, out=root, progress=False)
        place.finish(1.0)
    return folder


def test_rows_are_named_by_the_sweep(folder):
    labels = [row.label for row in collect_sweep(folder).in_order]
    assert labels == [
        "5-NN on statistics",
        "Mahalanobis on statistics",
        "5-NN on pixels",
    ]


def test_every_row_is_tested_against_the_baseline_with_holm(folder):
    tests, failures = baseline_tests(collect_sweep(folder).rows, "5-NN on statistics")
    assert [one.b.label for one in tests] == ["5-NN on statistics"] * 2 and not failures
    alone = [compare(one.a, one.b).p for one in tests]
    assert [one.test.p for one in tests] == pytest.approx(list(holm(alone)))


def test_the_page_says_n_of_n_and_loads_nothing(folder):
    page = write_sweep_html(folder)
    text = re.sub(r"\s+", " ", page.read_text("utf-8"))
    assert "3 of 4 cells finished" in text and "1 pending" in text and "CSI, seed 0: pending" in text
    assert "Controls &lt;beside&gt; one another" in text and "not run here" in text and "GANomaly" in text
    assert "<script" not in text and not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    links = r'href="([^"]+)"'
    assert len(text) < 5_000_000 and all((page.parent / link).exists() for link in re.findall(links, text))
    elsewhere = write_sweep_html(folder, folder.parents[2] / "elsewhere" / "page.html")
    assert re.findall(links, text) and not re.findall(links, elsewhere.read_text())  # a page that travels leads nowhere


def test_the_numbers_behind_the_page_are_those_of_its_runs(folder):
    numbers = read_json(write_sweep_json(folder))
    auroc = {row["label"]: row["auroc"] for row in numbers["rows"]}
    runs = {run["row"]: run for run in numbers["runs"]}
    assert len(auroc) == len(runs) == 3 and numbers["split"] == "test"
    assert all(auroc[label] == pytest.approx(run["test.auroc"]) for label, run in runs.items())
    assert {test["a"] for test in numbers["tests"]} < set(auroc)


def test_what_the_author_reads_stands_on_the_page_as_text(folder):
    Sweep.read(folder).model_copy(update={"conclusion": "Nothing <pays>."}).write(folder)
    assert "<p>Nothing &lt;pays&gt;.</p>" in write_sweep_html(folder).read_text("utf-8")


@pytest.mark.parametrize(("split", "said"), [("test", "test"), ("val", "validation")])
def test_the_axis_of_a_curve_names_the_split_that_was_scored(tmp_path, monkeypatch, split, said):
    drawn = {}
    monkeypatch.setattr("diawork.figures.auroc_curves", lambda *_, **words: drawn.update(words))
    monkeypatch.setattr("diawork.figures.png_bytes", lambda *_: b"")
    caption = _curve(results_at(tmp_path, [(1.0, 1.0), (2.0, 2.0)], split), "t").caption
    assert caption.startswith(f"AUROC on {split}") and drawn["split"] == said


def results_at(root, extents, split="test"):
    """A row of DIA for each point along x."""
    runs = read_runs(*(make_run(root, settings={"i": i}, splits=(split,)) for i in range(len(extents))))
    places = [Place(str(i), (str(i),), x) for i, x in enumerate(extents)]
    return Results(tuple(run.model_copy(update={"place": place}) for run, place in zip(runs, places, strict=True)))


def test_a_range_of_steps_goes_to_the_figure_as_a_range_under_the_words_of_t(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("diawork.figures.auroc_curves", lambda *arrays, **words: drawn.append((*arrays, words)))
    monkeypatch.setattr("diawork.figures.png_bytes", lambda *_: b"")
    points = [[30, 130], [10, 10], None, "strong", True, [1, 2, 4]]
    _curve(results_at(tmp_path, [_extent(x) for x in points]), "dissolve.t_range")
    series, levels, words = drawn[0]
    assert [x for x, *_ in series["DIA"]] == [(30, 130), (10, 10)] and list(levels) == ["2", "3", "4", "5"]
    assert words["xlabel"] == "dissolving step t"


def test_no_config_key_stands_on_the_axis_of_a_sweep_of_ours():
    assert {sweep.x for sweep in map(Sweep.load, list_sweeps()) if sweep.x} == set(AXES)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]).max() <= 1 and len(holm([])) == 0 and np.array_equal(holm([0.02]), [0.02])
