"""Sweeps through submitit: the same ledger as the local one, and a requeued job goes on."""

import os
import signal

import pytest

pytest.importorskip("submitit")

from diawork.base.errors import UsageError
from diawork.sweeps.cluster import Job, Submitted, make_executor
from diawork.sweeps.launch import prepare, run_sweep, sweep_folder
from diawork.sweeps.sweep import Sweep
from tests.sweeping import holders, toy_sweep, wait_for

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="submitit is for Unix")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return Sweep.load(toy_sweep(tmp_path_factory.mktemp("sweep"), temperatures=(0.1,), seeds=(0, 1)))


@pytest.fixture(scope="module")
def ledger(sweep, tmp_path_factory):
    """What the local executor says of the sweep."""
    return run_sweep(sweep, out=tmp_path_factory.mktemp("local"), device="cpu", slots=2, progress=False)


@pytest.mark.parametrize("executor", ["submitit-local", "debug"])
def test_the_ledger_is_that_of_the_local_executor(sweep, ledger, tmp_path, executor):
    submitted = run_sweep(sweep, out=tmp_path, device="cpu", slots=2, executor=executor, progress=False)
    same = ["cell", "label", "dataset", "seed", "state", "error", "auroc"]
    assert submitted[same].equals(ledger[same]) and set(ledger["state"]) == {"done"}


def test_a_job_that_loses_its_machine_saves_and_goes_on(tmp_path):
    sweep, out = Sweep.load(toy_sweep(tmp_path, temperatures=(0.1,), seeds=(0,), pause=4)), tmp_path / "out"
    prepare(sweep, out=out, device="cpu")
    cell = sweep_folder(sweep, out) / "cells" / sweep.cells[0].digest
    job = Submitted(make_executor("submitit-local", tmp_path / "jobs", {}), cell)
    first = wait_for(lambda: holders(out, "toy-*"))
    os.kill(wait_for(lambda: children(job._job._process.pid))[0], signal.SIGUSR2)
    again = wait_for(lambda: [pid for pid in holders(out, "toy-*") if pid not in first])
    assert again and wait_for(lambda: job.poll() is not None) and job.poll() == 0
    assert (out / "work.log").read_text().count("\n") == 1


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(child) for child in f.read().split()]


def test_a_checkpoint_is_the_same_cell_again(tmp_path):
    again = Job(tmp_path, {"DIAWORK_PROCESSES": "4"}).checkpoint().function
    assert again.cell == tmp_path and again.env == {"DIAWORK_PROCESSES": "4"}


def test_wrong_options_are_refused(tmp_path):
    with pytest.raises(UsageError, match="submitit refused"):
        make_executor("slurm", tmp_path, {"nonsense": 1})
