"""One knob varied: the file that is written is a sweep like any other."""

import json

import pytest

from diawork.base.errors import UsageError
from diawork.sweeps.file import write_vary
from diawork.sweeps.sweep import Sweep


@pytest.mark.parametrize(
    ("knob", "values"),
    [
        ("dissolve.t_range", [[30, 130], [100, 300]]),
        ("loss.temperature", [0.2, 0.5]),
        ("loss.mask", ["naive", "shifted_removed"]),
        ("views.shift", ["rotation", "cutperm"]),
    ],
)
def test_every_value_is_a_cell_at_both_sizes(tmp_path, knob, values):
    path = write_vary(tmp_path, knob, values)
    for size in ("smoke", "cpu"):
        cells = Sweep.load(path, size).cells
        assert [cell.point[knob] for cell in cells] == values
        assert {cell.config.dataset for cell in cells} == {"phantom"}


def test_an_alternative_s_strength_is_a_knob_of_its_method(tmp_path):
    cells = Sweep.load(write_vary(tmp_path, "dissolve.sigma", [0.5, 2.0], method="gaussian_blur"), "smoke").cells
    assert [cell.config.dissolve.sigma for cell in cells] == [0.5, 2.0]
    assert cells[0].config.dissolve.operator == "gaussian_blur"


def test_a_wrong_knob_is_refused_with_its_line(tmp_path):
    with pytest.raises(UsageError, match=r"line \d+.*loss.temprature"):
        Sweep.load(write_vary(tmp_path, "loss.temprature", [0.1]), "smoke")


def test_a_sweep_of_too_many_cells_is_refused_with_their_number(tmp_path):
    many = [{"grid": {f"loss.{knob}": [i / 100 for i in range(1, 71)]}} for knob in ("temperature", "shift_weight")]
    sweep = {"name": "many", "fixed": {"method": "dia"}, "axes": many, "seeds": list(range(2000))}
    (tmp_path / "many.yaml").write_text(json.dumps(sweep))
    with pytest.raises(UsageError, match="9,800,000 cells"):
        Sweep.load(tmp_path / "many.yaml")
