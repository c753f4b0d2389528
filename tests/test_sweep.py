"""Sweep files: what they expand to, and the one sentence with its line that refuses a bad one."""

import pytest

from diawork.base.errors import CheckpointError, DataError, UsageError
from diawork.base.files import read_json, write_json
from diawork.cli.main import main
from diawork.sweeps.cell import ledger
from diawork.sweeps.launch import data_identities
from diawork.sweeps.sweep import Sweep

TEXT = """name: tiny
fixed:
  dataset: phantom
  preset: smoke
axes:
  - grid: {views.shift: [rotation, cutperm]}
  - list:
      - {label: DIA, method: dia}
      - {label: statistics, method: stats_knn}
seeds: [0, 1]
baseline: DIA
x: views.shift
sizes:
  smoke: {seeds: [0], train.epochs: 1}
  cpu: {}
"""


@pytest.fixture
def read(tmp_path):
    def load(*change, size=None, text=TEXT):
        (tmp_path / "tiny.yaml").write_text(text.replace(*change, 1) if change else text)
        return Sweep.load(tmp_path / "tiny.yaml", size)

    return load


def test_cells_are_axes_times_seeds_and_a_control_stands_once(read):
    cells = read().cells
    assert [c.label for c in cells].count("statistics") == 1 and len(cells) == 2 * 2 + 1
    assert len({c.digest for c in cells}) == len(cells)
    assert {(c.config.views.shift, c.config.seed) for c in cells if "DIA" in c.parts} == {
        ("rotation", 0), ("rotation", 1), ("cutperm", 0), ("cutperm", 1),
    }  # fmt: skip


def test_a_size_replaces_entries_and_seeds(read):
    cells = read(size="smoke").cells
    assert len(cells) == 3 and all(c.parameters["seed"] == 0 for c in cells)
    assert {c.config.train.epochs for c in cells if "DIA" in c.parts} == {1}
    assert read(size="smoke").folder_name == "tiny-smoke" and read().size == "cpu"


def test_a_size_leaves_out_values_of_an_axis(read):
    sweep = read("smoke: {", "smoke: {without: {views.shift: [rotation], method: [stats_knn]}, ", size="smoke")
    assert [(cell.label, cell.config.views.shift) for cell in sweep.cells] == [("shift cutperm, DIA", "cutperm")]


def test_changes_hold_in_every_cell_in_a_folder_of_their_own(read, tmp_path):
    read("x: views.shift", "x: views.shift\nneeds: [breastmnist, kvasir_polyp]")

    def changed(**changes):
        return Sweep.load(tmp_path / "tiny.yaml", "smoke", changes)

    other = changed(**{"dataset": "breastmnist", "train.epochs": 3})
    assert {(c.config.dataset, c.config.train.epochs) for c in other.cells if "DIA" in c.parts} == {("breastmnist", 3)}
    assert other.needs == ["kvasir_polyp"] and other.folder_name == "tiny-smoke-dataset=breastmnist,train.epochs=3"
    names = {changed(**{"dissolve.t_range": [30, t]}).folder_name for t in (60, 90)}
    assert len(names) == 2 and not any("[" in name for name in names)
    with pytest.raises(DataError, match=r"^--set: breastmnist"):
        data_identities(other, tmp_path)
    with pytest.raises(UsageError, match=r"^'views.shift' is what an axis of tiny varies"):
        changed(**{"views.shift": "rotation"})
    with pytest.raises(UsageError, match=r"^'train.epoch' is not a parameter"):
        changed(**{"train.epoch": 3})
    with pytest.raises(UsageError, match=r"^dissolve.t_range"):
        changed(**{"dissolve.t_range": [3, 1200]})


def test_equal_work_is_one_cell_named_by_what_is_common(read):
    axis = "  - grid: {dissolve.noise_sd: [0.1, 0.2]}\n  - list:\n      - {label: CSI, method: csi}\n"
    cells = read("  - list:\n", axis, text=TEXT.replace("x: views.shift\n", "")).cells
    csi = [c for c in cells if "CSI" in c.parts]
    assert {c.label for c in csi} == {"shift rotation, CSI", "shift cutperm, CSI"} and len(csi) == 4


def test_digests_do_not_depend_on_names_and_order(read):
    before = {c.digest for c in read().cells}
    assert {
        c.digest for c in read("label: DIA", "label: ours", text=TEXT.replace("baseline: DIA\n", "")).cells
    } == before


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("preset: smoke", "presett: smoke"), 4, "Did you mean 'preset'"),
        (("preset: smoke", "preset: 3"), 4, "preset=3 is a int; wanted str"),
        (("preset: smoke", "preset: smoek"), 4, "Did you mean 'smoke'"),
        (("dataset: phantom", "dataset: phantm"), 3, "unknown data set 'phantm'"),
        (("views.shift: [", "views.shft: ["), 6, "Did you mean 'views.shift'"),
        (("cutperm]", "cutprem]"), 6, "'rotation' or 'cutperm'"),
        (("method: dia", "method: dai"), 8, "'dai' is not a method"),
        (("seeds: [0, 1]", "seeds: 3"), 10, "seeds: must be a list, not 3"),
        (("preset: smoke", "preset: smoke\n  train.select: test"), 5, "would choose the epoch on the test split"),
        (("cutperm]}", "cutperm], train.select: [last, test]}"), 6, "would choose the epoch on the test split"),
        (("preset: smoke", "preset: smoke\n  train.epochs: '3'"), 5, "a valid integer (given: '3')"),
        (("preset: smoke", "preset: smoke\n  dissolve.t_range: [3, 1200]"), 5, "must lie in [0, 1000)"),
        (("preset: smoke", "preset: smoke\n  diffusion.dim: 3"), 5, "greater than or equal to 4"),
        (("preset: smoke", "preset: smoke\n  diffusion.timesteps: 5"), 7, "must lie in [0, 5)"),
        (("preset: smoke", "preset: smoke\n  train.epochs: true"), 5, "a valid integer (given: True)"),
        (("preset: smoke", "preset: smoke\n  seed: 3"), 5, "Use seeds: [0, 1, 2]"),
        (("preset: smoke", "preset: smoke\n  out: x"), 5, "Give it on the command line"),
        (("baseline: DIA", "baseline: DAI"), 11, "is not a row. Did you mean 'DIA'"),
        (("x: views.shift", "x: views"), 12, "is not on an axis"),
        (("cutperm]}", "cutperm], score.evaluate: [test, val]}"), 6, "holds for a whole sweep"),
        (("  cpu: {}", "  cpu: {presets: x}"), 15, "'presets' is not a parameter"),
        (("name: tiny", "name: ../x"), 1, "must be a word"),
        (("fixed:", "fixd:"), 2, "Did you mean 'fixed'"),
        (("- grid:", "- gird:"), 6, "unknown key 'gird'. Did you mean 'grid'"),
        (("fixed:", "notebook: 99\nfixed:"), 2, "notebook: must be text, not 99"),
        (("- list:", "- grid: {method: []}\n  - list:"), 7, "no values"),
        (("- grid:", "- list: [{method: dia}]\n    grid:"), 6, "one of grid: and list:"),
        (("- grid:", "- zip:"), 6, "unknown key 'zip'"),
        (("seeds: [0, 1]", "seeds: [1, 1]"), 10, "different whole numbers"),
        (("seeds: [0, 1]", "seeds: [0, -1]"), 10, "greater than or equal to 0"),
        (("  cpu: {}", "  cpu:"), 15, "must be 'key: value' lines"),
        (("  cpu: {}", "  cpu: {seeds: 1}"), 15, "sizes.cpu.seeds: must be a list"),
        (("label: DIA", "label: 3"), 8, "label: must be text, not 3"),
        (("name: tiny\n", ""), 1, "name: this key is missing"),
        (("x: views.shift", "published: [t1, 2]"), 12, "published.1: must be text"),
        (("sizes:", "notebook: 01\nsizes:"), 13, "notebook: must be text"),
        (("seeds: [0, 1]\n", "seeds: [0, 1]\nnotebook: figur\n"), 11, "Did you mean 'figure'"),
        (("- list:", "- grid: {method: [dia]}\n  - list:"), 8, "set by two axes"),
        (("cpu: {}", "cpu: {without: {views.shift: [flip]}}"), 15, "'flip' is on no axis"),
        (("cpu: {}", "cpu: {without: {views.shift: [rotation, cutperm]}}"), 15, "leaves no point of the axes"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_in_one_sentence_with_its_line(read, change, line, message):
    with pytest.raises(UsageError) as refused:
        read(*change)
    assert f"tiny.yaml, line {line}: " in str(refused.value) and message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_data_set_is_refused_with_its_line(read, tmp_path):
    sweep = read("dataset: phantom", "dataset: pneumoniamnist")
    with pytest.raises(DataError, match=r"tiny.yaml, line 3: pneumoniamnist: .* was not found"):
        data_identities(sweep, tmp_path)


def test_the_command_lists_the_cells_and_runs_nothing(read, tmp_path, capsys):
    read()
    assert main(["sweep", str(tmp_path / "tiny.yaml"), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "5 cells, size cpu" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert main(["sweep", str(tmp_path / "tiny.yaml"), "--size", "huge"]) == 2
    assert main(["sweep"]) == 2 and main(["sweep", "t99"]) == 2 and main(["sweep", "none.yaml"]) == 2


def test_a_sweep_is_read_back_as_the_same_object(read, tmp_path):
    read().write(tmp_path)
    assert Sweep.read(tmp_path) == read() and Sweep.read(tmp_path).cells[0].config == read().cells[0].config


def test_the_sweep_of_another_version_is_read(read, tmp_path):
    read().write(tmp_path)
    plain = read_json(tmp_path / "sweep.json")
    del plain["conclusion"]
    for cell in plain["cells"]:
        cell |= {"line": 8}
    write_json(tmp_path / "sweep.json", plain)
    assert Sweep.read(tmp_path) == read()
    plain["cells"][0]["config"]["loss"]["forgotten"] = 1  # a knob of theirs
    write_json(tmp_path / "sweep.json", plain)
    assert Sweep.read(tmp_path).cells[0] == read().cells[0].model_copy(update={"config": None})
    assert list(ledger(tmp_path)["state"]) == ["pending"] * 5


def test_what_is_no_sweeps_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"It holds a sweep\.json"):
        Sweep.read(tmp_path)
    write_json(tmp_path / "sweep.json", {"name": "tiny"})
    with pytest.raises(CheckpointError, match=r"not a sweep as this version knows it \(size\)"):
        Sweep.read(tmp_path)
