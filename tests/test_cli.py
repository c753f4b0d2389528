"""Command line: every mistake is one sentence and an exit code, never a traceback."""

import json
import os
import re
import sys
import venv

import numpy as np
import pytest

from diawork.cli.data import data
from diawork.cli.main import cli, main
from diawork.cli.options import parse_overrides
from diawork.data.locations import cache_root, data_roots


@pytest.fixture
def call(capsys):
    def run(*argv):
        code = main(list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


VERBS = [("data", name) for name in data.commands] + [(name,) for name in cli.commands]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_help_of_a_verb_has_one_example_whose_options_it_knows(call, verb):
    code, said, _ = call(*verb, "--help")
    (example,) = re.findall(r"^ +Example: diawork (.*)$", said, re.MULTILINE)
    command = data.commands[verb[1]] if verb[1:] else cli.commands[verb[0]]
    known = {word for option in command.params for word in option.opts}
    assert code == 0 and example.startswith(" ".join([*verb[:-1], command.name]))
    assert {word for word in example.split() if word.startswith("-")} <= known


@pytest.mark.parametrize("group", [[], ["data"]])
def test_help_lists_every_verb_once_and_cuts_no_line(call, group):
    _, said, _ = call(*group, "--help")
    listed = re.findall(r"^  [a-z]+  +(.*)$", said.partition("Commands:")[2], re.MULTILINE)
    named = {id(command) for command in (data if group else cli).commands.values()}
    assert len(listed) == len(named) and not [line for line in listed if line.endswith("...")]


def test_help_names_shell_completion(call):
    assert "_DIAWORK_COMPLETE=bash_source" in call("--help")[1]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["run", "--dataset", "pneumoniamnits"], 2, "Did you mean 'pneumoniamnist'"),
        (["run", "--preset", "papper"], 2, "Did you mean 'paper'"),
        (["run", "--methods", "dia,cis"], 2, "Did you mean 'csi'"),
        (["run", "--set", "loss.temprature=0.1"], 2, "Did you mean 'loss.temperature'"),
        (["run", "--set", "dissolve.t_range=[30,1200]"], 2, r"must lie in [0, 1000)"),
        (["run", "--set", "loss.temperature"], 2, "KEY=VALUE"),
        (["run", "--precision", "fp16"], 2, "known not to converge"),
        (["run", "--device", "cuda:77"], 5, "not available"),
        (["run", "--device", "meta"], 5, "not available"),
        (["run", "--device", "privateuseone"], 5, "not available"),
        (["bench", "--accuracy", "pneumoniamnits"], 2, "Did you mean 'pneumoniamnist'"),
        (["bench", "--accuracy", "phantom", "--set", "detector=csi"], 2, "the fast paths are those of DIA"),
        (["run", "--seeds", "0"], 2, "Invalid value"),
        (["run", "--nonsense"], 2, "No such option"),
        (["data", "show", "nothing"], 2, "nothing"),
        (["notebook", "99"], 2, "is not a notebook"),
        (["report", "not-there"], 2, "does not exist"),
    ],
)
def test_mistakes_are_one_sentence(call, argv, code, message):
    got, out, err = call(*argv)
    assert got == code and message in err and "Traceback" not in out + err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"), "out of memory"),
        (OSError(12, "Cannot allocate memory"), "out of memory"),
        (PermissionError(13, "Permission denied", "/home/other/runs"), "/home/other/runs: Permission denied."),
        (OSError(28, "No space left on device"), "No space left on device."),
    ],
)
def test_faults_of_the_machine_are_no_bugs_of_ours(call, monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("diawork.runs.presets.preset", fail)
    code, _, err = call("run")
    assert code == 5 and message in err and "a bug of ours" not in err


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"cells": 3}', '{"cells": [{}], "nbformat": 4}', "\x00"])
def test_an_odd_notebook_is_refused_in_a_sentence(call, tmp_path, content):
    (tmp_path / "odd.ipynb").write_text(content)
    code, out, err = call("notebook", str(tmp_path / "odd.ipynb"))
    assert code == 2 and "odd.ipynb" in err and "Traceback" not in out + err


def test_a_folder_without_room_is_refused_before_work(call, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diawork.base.files.tempfile.TemporaryFile", full)
    code, _, err = call("run", "--preset", "smoke", "--methods", "stats_knn")
    assert code == 5 and "nothing can be written here (No space left on device)" in err
    code, out, _ = call("doctor")
    assert code == 5 and out.count("FIX") == 2


def test_one_without_a_home_gets_no_folder_named_for_it(tmp_path, monkeypatch):
    monkeypatch.delenv("DIAWORK_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # no HOME, and no entry among the users
    assert not any("~" in str(folder) for folder in (cache_root(), *data_roots()))


def test_a_missing_file_says_where_it_was_looked_for(call, tmp_path):
    code, _, err = call("data", "show", "pneumoniamnist", "--data-root", str(tmp_path))
    assert code == 3 and str(tmp_path) in err and "DIAWORK_DATA" in err


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 half"])
def test_a_damaged_file_is_named(call, tmp_path, content):
    (tmp_path / "pneumoniamnist.npz").write_bytes(content)
    code, _, err = call("data", "show", "pneumoniamnist", "--data-root", str(tmp_path))
    assert code == 3 and "pneumoniamnist.npz" in err and "Traceback" not in err


def test_no_normal_images_is_a_data_error(call, tmp_path):
    arrays = {}
    for split, n in {"train": 4708, "val": 524, "test": 624}.items():
        arrays |= {f"{split}_images": np.zeros((n, 28, 28), np.uint8), f"{split}_labels": np.ones((n, 1), np.uint8)}
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    code, _, err = call("run", "--dataset", "pneumoniamnist", "--data-root", str(tmp_path))
    assert code == 3 and "normal" in err


@pytest.mark.skipif(os.name == "nt", reason="folders of this kind are a Unix matter")
def test_an_unwritable_folder_is_a_resource_error(call, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = call("run", "--preset", "smoke", "--methods", "pixel_knn", "--out", str(tmp_path / "file" / "runs"))
    assert code == 5 and "cannot write" in err and "--out" in err


def test_a_bug_of_ours_leaves_its_traceback_in_a_file(call, monkeypatch, tmp_path):
    monkeypatch.setattr("diawork.data.manifests.list_manifests", lambda: 1 / 0)
    code, _, err = call("data", "list")
    assert code == 1 and "a bug of ours" in err and "ZeroDivisionError" in next(tmp_path.glob("crash-*")).read_text()


def test_doctor_and_data(call):
    code, out, _ = call("doctor")
    assert code == 0 and out.count("OK") >= 6 and "Python" in out and "kernel" in out
    assert "by the affinity mask" in out and "threads:" in out
    assert "breastmnist" in call("data", "list")[1]
    assert "healthy" in call("data", "show", "phantom")[1]
    assert "ring, 6 px wide" in call("data", "show", "phantom_lung_ring")[1]


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Put a python3 kernel that starts the given interpreter in front of ours, as a cluster's modules do."""

    def put(interpreter):
        folder = tmp_path / "modules" / "kernels" / "python3"
        folder.mkdir(parents=True, exist_ok=True)
        argv = [str(interpreter), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "theirs", "language": "python"}))
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "modules"))

    return put


@pytest.mark.parametrize(("interpreter", "code"), [("python", 0), (sys.executable, 0), ("/nowhere/python", 5)])
def test_doctor_knows_which_interpreter_a_kernel_runs(call, foreign, interpreter, code):
    foreign(interpreter)
    got, out, _ = call("doctor")
    assert got == code and ("headless runs use this interpreter" in out) == bool(code)


def test_doctor_knows_its_environment_by_any_path(call, foreign, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(sys.prefix)
    foreign(sys.executable)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "link"))
    assert call("doctor")[0] == 0


def test_doctor_tells_an_environment_from_the_python_it_links_to(call, foreign, tmp_path):
    venv.create(tmp_path / "other", symlinks=True)
    foreign(tmp_path / "other" / "bin" / "python")
    code, out, _ = call("doctor")
    assert code == 5 and f"of {tmp_path / 'other'}, not of {sys.prefix}" in out


def test_the_doctors_fix_works_where_jupyter_path_wins(call, foreign, tmp_path, monkeypatch):
    own = tmp_path / "env" / "share" / "jupyter" / "kernels" / "python3"
    own.mkdir(parents=True)
    (own / "kernel.json").write_text(json.dumps({"argv": ["python"], "display_name": "own", "language": "python"}))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    foreign("/nowhere/python")
    code, out, _ = call("doctor")
    fix = re.search(r"JUPYTER_PATH=(\S+):\$JUPYTER_PATH jupyter lab", out)
    monkeypatch.setenv("JUPYTER_PATH", f"{fix[1]}:{os.environ['JUPYTER_PATH']}")
    assert (code, call("doctor")[0]) == (5, 0)


def test_print_config_is_the_validated_config(call):
    out = call("run", "--print-config", "--set", "loss.temperature=0.2", "--preset", "smoke")[1]
    assert json.loads(out)["loss"]["temperature"] == 0.2


def test_run_and_report(call, tmp_path):
    code, out, _ = call("run", "--preset", "smoke", "--methods", "csi,pixel_knn", "--out", "runs", "--device", "cpu")
    assert code == 0 and "CSI" in out and "AUROC" in out
    page = tmp_path / "runs" / "report-phantom-smoke.html"
    assert page.exists() and "://" not in page.read_text().split("<body")[0]
    code, out, _ = call("report", "runs", "--out", "again.html")
    assert code == 0 and (tmp_path / "again.html").exists()


def test_a_run_that_stops_at_val_is_told_and_reported_on_val(call, tmp_path):
    code, out, err = call(
        "run", "--preset", "smoke", "--methods", "pixel_knn", "--set", "score.evaluate=val", "--out", "runs"
    )
    assert code == 0 and "val AUROC 0." in out and "test" not in out, err
    page = (tmp_path / "runs" / "report-phantom-smoke.html").read_text()
    assert "Results on the validation images" in page


def test_a_hostile_name_of_a_sweep_begins_no_line_of_its_own(call, tmp_path):
    fixed = "fixed: {dataset: phantom, preset: smoke, method: pixel_knn}"
    (tmp_path / "own.yaml").write_text(
        f'name: own\ntitle: "a\\nerror[X] fake"\n{fixed}\naxes: [{{grid: {{train.epochs: [1]}}}}]\n'
    )
    code, out, _ = call("sweep", str(tmp_path / "own.yaml"), "--dry-run")
    assert code == 0 and "a\\nerror[X] fake: 1 cells" in out


def test_overrides_are_json_or_text():
    assert parse_overrides(("a=1e-4", "b=[1,2]", "c=naive", "d=true", "e=False")) == {
        "a": 1e-4,
        "b": [1, 2],
        "c": "naive",
        "d": True,
        "e": False,
    }
