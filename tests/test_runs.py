"""Run folders: identity, lock, status, result, warnings."""

import json
import os
import socket

import pytest

from diawork.base.config import ExperimentConfig
from diawork.base.errors import BusyError, CheckpointError, Interrupted, UsageError
from diawork.base.locks import holder
from diawork.runs.run import ORACLE, Run, find_runs, runs_root, slug
from tests.builders import write_lock

FINISHED = {"detector": "DIA", "seed": 0, "metrics": {}}
DATA = {"name": "noise", "identity": "abc", "notes": []}


def create(root, cfg=None, **compute):
    return Run.create(root, cfg or ExperimentConfig(), data=DATA, label="DIA", compute=compute)


def status(run):
    return json.loads((run.folder / "status.json").read_text())


def test_equal_config_and_data_share_a_folder(tmp_path):
    a, b = create(tmp_path), create(tmp_path)
    other = create(tmp_path, ExperimentConfig(seed=1))
    assert a.folder == b.folder != other.folder
    assert a.config()["data"] == DATA and a.config()["versions"]["torch"]


def test_other_arithmetic_is_warned_about(tmp_path):
    create(tmp_path, precision="fp32")
    with pytest.warns(UserWarning, match="precision fp32 → bf16"):
        create(tmp_path, precision="bf16")


def test_a_run_is_done_only_with_a_valid_result(tmp_path):
    run = create(tmp_path)
    assert not run.done
    (run.folder / "result.json").write_text('{"schema": 99}')
    assert not run.done
    with pytest.raises(CheckpointError, match="schema: Input should be 1"):
        run.result()
    with run.working():
        run.finish(FINISHED)
    assert run.done and status(run)["state"] == "done" and not (run.folder / "lock").exists()


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("boom"), "failed"), (Interrupted("stop"), "interrupted"), (None, "failed")]
)
def test_status_tells_how_it_ended(tmp_path, error, state):
    run = create(tmp_path)

    def work():
        with run.working():
            assert status(run)["state"] == "running"
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            work()
    else:
        work()
    assert status(run)["state"] == state and not (run.folder / "lock").exists()


@pytest.mark.parametrize(("pid", "host"), [(1, socket.gethostname()), (7, "elsewhere")])
def test_a_living_holder_keeps_the_run(tmp_path, pid, host):
    run = create(tmp_path)
    write_lock(run.folder, pid, host)
    with pytest.raises(BusyError, match=f"process {pid} on {host}"), run.working():
        pass


def test_a_dead_holder_does_not(tmp_path):
    run = create(tmp_path)
    write_lock(run.folder, 4194305, socket.gethostname())
    with run.working():
        assert holder(run.folder).pid == os.getpid()


def test_metrics_and_scores_round_trip(tmp_path):
    run = create(tmp_path)
    run.write_metrics([{"step": 0, "loss": 1.5}])
    run.write_scores([{"split": "test", "class_name": 'a,"b"\n', "score": 1}])
    assert run.metrics() == [{"step": 0, "loss": 1.5}]
    assert (run.folder / "scores.csv").read_text() == 'split,class_name,score\ntest,"a,""b""\n",1\n'


def test_names_become_harmless(monkeypatch, tmp_path):
    assert slug("../../étc/<b>x</b> ; rm") == "tc-b-x-b-rm" and slug("…") == "x"
    monkeypatch.setenv("DIAWORK_HOME", str(tmp_path))
    assert runs_root() == tmp_path and str(runs_root("there")) == "there"


def test_a_torn_line_of_metrics_is_passed_over(tmp_path):
    run = Run(tmp_path)
    assert run.metrics() == []
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n[1]\n{"step": 1}\n{"st\xff')
    assert run.metrics() == [{"step": 0}, {"step": 1}]


def test_a_run_says_why_it_has_no_result(tmp_path):
    run = Run(tmp_path)
    assert run.state() == "never started"
    for status, said in (
        ({"state": "failed", "error": "out of memory"}, "failed: out of memory"), ({"state": "running"}, "running"),
        ({"state": "done"}, "no result"), ([], "unknown"),
    ):  # fmt: skip
        (tmp_path / "status.json").write_text(json.dumps(status))
        assert run.state() == said
    run.finish(FINISHED)
    assert run.state() == "done"


def test_what_a_run_did_not_keep_is_empty(tmp_path):
    run = Run(tmp_path)
    assert run.evidence() == {} and run.oracle_epochs() == {}
    (tmp_path / ORACLE).write_text('{"1": 0.5}')  # as version 0.1.0 noted it
    run.track(2, {"test": 0.75, "val": 0.6})
    assert run.oracle_epochs() == {"1": {"test": 0.5}, "2": {"test": 0.75, "val": 0.6}}


def test_runs_are_found_below_a_folder(tmp_path):
    for name in ("b/inner", "a"):
        Run(tmp_path / name).finish(FINISHED)
    (tmp_path / "a" / "status.json").write_text("{}")
    assert [run.folder.name for run in find_runs(tmp_path)] == ["a", "inner"]
    with pytest.raises(UsageError, match="does not exist"):
        find_runs(tmp_path / "nowhere")
