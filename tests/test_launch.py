"""Sweeps under way: failures are rows, kills lose nothing, two launchers do not double work."""

import json
import os
import random
import signal
import time

import pytest

from diawork.base.files import process_alive
from diawork.cli.main import main
from diawork.sweeps.cell import CellFolder, ledger
from diawork.sweeps.launch import prepare, run_sweep, sweep_folder
from diawork.sweeps.sweep import Sweep
from diawork.sweeps.workers import slot_environment, work
from tests.sweeping import holders, kill_one_kernel, toy_sweep, wait_for
from tests.toys import child, ended

pytestmark = [
    pytest.mark.usefixtures("small"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes"),
]


def made(out):
    """Return the run folders in the order of their making; each stands once for each time it was made."""
    log = out / "work.log"
    return log.read_text().split() if log.exists() else []


def launch(path, out, slots=2):
    """Do `diawork sweep` without its report and return the exit code."""
    frame = run_sweep(Sweep.load(path), out=out, device="cpu", slots=slots, progress=False)
    return 0 if (frame["state"] == "done").all() else 7


def aurocs(out):
    return ledger(out / "sweeps" / "toy").set_index("cell")["auroc"].to_dict()


def stop_launcher(pid, out, number=signal.SIGKILL):
    """Send a launcher a signal; return its exit code once nothing that it started is left."""
    workers = set(holders(out, "sweeps/toy/cells/*")) | set(holders(out, "toy-*"))
    os.kill(pid, number)
    code = ended(pid)
    wait_for(lambda: not any(map(process_alive, workers)), 15)
    return code


def disturb(path, out, rng, *, kernels, launchers, slots):
    """Kill kernels and launchers of a sweep, starting it anew each time, then let it end undisturbed."""
    for _ in range(launchers):
        pid = child(lambda: launch(path, out, slots))
        for _ in range(kernels // launchers):
            kill_one_kernel(out, rng)
            time.sleep(rng.uniform(0, 1))
        wait_for(lambda: holders(out, "toy-*"))
        assert stop_launcher(pid, out) == -signal.SIGKILL
    assert launch(path, out, slots) == 0


def test_the_first_seed_is_done_before_the_second_begins(tmp_path):
    path = toy_sweep(tmp_path, temperatures=[0.1, 0.2], seeds=[4, 3], pause=0.0)
    assert launch(path, tmp_path / "out", slots=1) == 0
    assert [name.split("-")[-2] for name in made(tmp_path / "out")] == ["s3", "s3", "s4", "s4"]


def survives(tmp_path, temperatures, seeds, **kills):
    path = toy_sweep(tmp_path, temperatures=temperatures, seeds=seeds, pause=0.5)
    disturb(path, tmp_path / "out", random.Random(0), **kills)
    frame, found = ledger(tmp_path / "out" / "sweeps" / "toy"), made(tmp_path / "out")
    n = len(temperatures) * len(seeds)
    assert (frame["state"] == "done").all() and len(frame) == n == frame["run"].nunique() == frame["cell"].nunique()
    assert len(found) == len(set(found)) == n  # no finished run was done again
    expected = {(t, s): 0.5 + t / 10 + s / 1000 for t in temperatures for s in seeds}
    assert sorted(frame["auroc"]) == pytest.approx(sorted(expected.values()))
    return path


def test_six_runs_with_a_kernel_and_a_launcher_killed(tmp_path):
    path = survives(tmp_path, (0.1, 0.2, 0.3), (0, 1), kernels=1, launchers=1, slots=2)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("result.json")}
    assert launch(path, tmp_path / "out") == 0
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("result.json")}


@pytest.mark.slow
def test_forty_runs_with_six_kernels_and_two_launchers_killed(tmp_path):
    temperatures = tuple(round(0.1 * i, 1) for i in range(1, 11))
    survives(tmp_path, temperatures, (0, 1, 2, 3), kernels=6, launchers=2, slots=2)
    undisturbed = toy_sweep(tmp_path, temperatures=temperatures, seeds=(0, 1, 2, 3), pause=0.5)
    assert launch(undisturbed, tmp_path / "other") == 0
    assert aurocs(tmp_path / "out") == aurocs(tmp_path / "other")


@pytest.mark.slow
def test_two_launchers_share_the_work(tmp_path):
    path = toy_sweep(tmp_path, temperatures=(0.1, 0.2), pause=0.3)
    pids = [child(lambda: launch(path, tmp_path / "out", 1)) for _ in range(2)]
    assert [ended(pid) for pid in pids] == [0, 0]
    assert len(made(tmp_path / "out")) == len(set(made(tmp_path / "out"))) == 4


def test_a_failed_cell_is_a_row_and_is_tried_again(tmp_path, monkeypatch, capsys):
    path = toy_sweep(tmp_path, temperatures=(0.1,), seeds=(0,), fault="raise")
    path.write_text(path.read_text().replace("axes:", 'axes:\n  - grid: {fault: ["", raise, kill]}', 1))
    path.write_text(path.read_text().replace('  fault: "raise"\n', "", 1))
    argv = ["sweep", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    for kind in ("html", "json"):
        monkeypatch.setattr(f"diawork.report.sweep.write_sweep_{kind}", lambda folder: folder / "report")
    assert main(argv) == 7
    frame = ledger(tmp_path / "out" / "sweeps" / "toy")
    assert frame["state"].tolist() == ["done", "failed", "died"]
    assert "raised ValueError: no <such> thing" in frame["error"][1] and "kernel died" in frame["error"][2]
    status = json.loads((tmp_path / "out" / "sweeps" / "toy" / "cells" / frame["cell"][1] / "status.json").read_text())
    assert any("raise ValueError" in line for line in status["trace"])
    assert "1 of 3 cells done" in capsys.readouterr().out
    (tmp_path / "out" / "mended").touch()
    assert main(argv) == 0
    states = ledger(tmp_path / "out" / "sweeps" / "toy")["state"].tolist()
    assert states == ["done", "done", "done"] and len(made(tmp_path / "out")) == 1


def test_a_stop_is_75_and_leaves_no_process(tmp_path):
    path = toy_sweep(tmp_path, temperatures=(0.1,), seeds=(0,), pause=60)
    argv = ["sweep", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    pid = child(lambda: main(argv))
    wait_for(lambda: holders(tmp_path / "out", "toy-*"))
    start = time.monotonic()
    assert stop_launcher(pid, tmp_path / "out", signal.SIGTERM) == 75 and time.monotonic() - start < 30
    assert ledger(tmp_path / "out" / "sweeps" / "toy")["state"].tolist() == ["interrupted"]
    assert not list(tmp_path.glob("out/**/lock"))


@pytest.fixture
def one(tmp_path):
    """A prepared cell of the light notebook."""
    sweep = Sweep.load(toy_sweep(tmp_path, temperatures=(0.1,), seeds=(0,)))
    prepare(sweep, out=tmp_path / "out", device="cpu")
    return CellFolder(sweep_folder(sweep, tmp_path / "out") / "cells" / sweep.cells[0].digest)


def test_the_run_folder_is_the_truth(one, tmp_path):
    assert one.status()["state"] == "pending"
    assert work(one.path) == 0 and one.status()["state"] == "done"
    run = one.runs()[0]
    (run.folder / "result.json").unlink()
    assert one.result() is None and one.status()["state"] == "pending"
    assert work(one.path) == 0 and len(made(tmp_path / "out")) == 2
    one.prepare(one.asked() | {"data": ["other images"]})
    assert one.result() is None


@pytest.mark.parametrize(("fault", "said"), [("exit", "ended before its last cell"), ("nothing", "finished run")])
def test_a_notebook_without_a_finished_run_is_not_done(one, fault, said):
    one.prepare(one.asked() | {"values": one.asked()["values"] | {"fault": fault}})
    assert work(one.path) == 7 and said in one.status()["error"] and one.status()["state"] == "failed"


@pytest.mark.parametrize(("slots", "threads"), [(1, 4), (3, 1), (9, 1)])
def test_stacks_share_the_cores_and_the_gpus(monkeypatch, slots, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    assert slot_environment(0, slots, [])["OMP_NUM_THREADS"] == str(threads)
    assert slot_environment(3, slots, ["0", "2"]) == slot_environment(0, slots, []) | {"CUDA_VISIBLE_DEVICES": "2"}


@pytest.mark.parametrize(("slot", "cards"), [(0, "0,1"), (1, "2,3"), (2, "0,1")])
def test_a_slot_has_a_gpu_for_each_process(slot, cards):
    assert slot_environment(slot, 2, ["0", "1", "2", "3"], processes=2)["CUDA_VISIBLE_DEVICES"] == cards
