"""Locks: one holder, dead ones left behind, waiting where asked, one taker at a time."""

import itertools
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from diawork.base import locks
from diawork.base.errors import BusyError
from diawork.base.files import process_alive
from diawork.base.locks import holder, locked
from tests.builders import write_lock

ELSEWHERE = (7, "elsewhere")


def test_another_machines_lock_lasts_as_long_as_its_heart_beats(tmp_path):
    write_lock(tmp_path / "run", *ELSEWHERE, age=60)
    assert holder(tmp_path / "run") == ELSEWHERE
    with pytest.raises(BusyError, match="process 7 on elsewhere"), locked(tmp_path / "run"):
        pass
    write_lock(tmp_path / "run", *ELSEWHERE, age=400)
    said = []
    with locked(tmp_path / "run", say=said.append):
        assert said == ["took over run, left by process 7 on elsewhere"]
        assert holder(tmp_path / "run").pid == os.getpid()
    assert not list((tmp_path / "run").iterdir())


def test_a_lock_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.01)
    write_lock(tmp_path / "run", *ELSEWHERE)
    threading.Timer(0.2, (tmp_path / "run" / "lock").unlink).start()
    said, start = [], time.monotonic()
    with locked(tmp_path / "run", wait=True, say=said.append):
        assert time.monotonic() - start > 0.1
    assert len(said) == 1
    assert "waiting for process 7 on elsewhere, which is working on run (its last sign of life is " in said[0]
    assert f"if it is gone, remove {tmp_path / 'run' / 'lock'}" in said[0]


def test_a_wait_is_told_again_with_its_length(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.01)
    monkeypatch.setattr(locks, "REMIND", 0.0)
    write_lock(tmp_path / "run", *ELSEWHERE)
    threading.Timer(0.3, (tmp_path / "run" / "lock").unlink).start()
    clock, said = itertools.count(0, 60), []
    monkeypatch.setattr(locks.time, "monotonic", lambda: next(clock))
    with locked(tmp_path / "run", wait=True, say=said.append):
        assert re.match(r"waiting for \d+ minutes for process 7", said[-1])


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / "lock", (0, 0))
        time.sleep(0.2)
        assert time.time() - (tmp_path / "lock").stat().st_mtime < 10


def test_what_was_taken_over_meanwhile_is_not_removed(tmp_path):
    with locked(tmp_path):
        (tmp_path / "lock").unlink()
        write_lock(tmp_path, *ELSEWHERE)
    assert holder(tmp_path) == ELSEWHERE


def test_a_lock_without_a_record_is_left_behind_when_its_writer_is_surely_gone(tmp_path, monkeypatch):
    """Its writer was killed, or the power went, between making the file and writing who it is."""
    monkeypatch.setattr(locks, "POLL", 0.01)
    (tmp_path / "lock").touch()
    start = time.monotonic()
    monkeypatch.setattr(locks, "TORN", 0.3)
    with locked(tmp_path):
        assert time.monotonic() - start > 0.2 and holder(tmp_path).pid == os.getpid()


COUNTING = """
import pathlib, sys, time
from diawork.base.locks import locked
folder = pathlib.Path(sys.argv[1])
with locked(folder, wait=True):
    number = int((folder / "number").read_text())
    time.sleep(0.05)
    (folder / "number").write_text(str(number + 1))
"""


def test_whoever_takes_over_is_alone(tmp_path):
    write_lock(tmp_path, 4194305, socket.gethostname())  # no process has this number
    (tmp_path / "number").write_text("0")
    counting = [subprocess.Popen([sys.executable, "-c", COUNTING, str(tmp_path)]) for _ in range(5)]
    assert [process.wait(60) for process in counting] == [0] * 5
    assert (tmp_path / "number").read_text() == "5"


TAKING = """
import os, pathlib, sys
from diawork.base import locks
folder, times = pathlib.Path(sys.argv[1]), int(sys.argv[2])
locks.POLL, locks.TORN, quiet = 0.001, 0.2, lambda line: None
for n in range(times):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    with locks.locked(folder, wait=True, say=quiet):
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # raises where another one is inside
        with open(folder / "taken", "a") as taken:
            taken.write(".")
        (folder / "inside").unlink()
        if n % 2:
            os._exit(0)  # a lock left behind
    os._exit(0)
"""


def hammered(folder, times):
    """Take a lock ``times`` times from each of 4 processes, and leave it behind every other time."""
    taking = [subprocess.Popen([sys.executable, "-c", TAKING, str(folder), str(times)]) for _ in range(4)]
    assert [process.wait(1200) for process in taking] == [0] * 4
    return len((folder / "taken").read_text())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_hammered_lock_has_one_holder_at_a_time(tmp_path):
    assert hammered(tmp_path, 15) == 60


@pytest.mark.slow
def test_six_thousand_takings_have_one_holder_each(tmp_path):
    assert hammered(tmp_path, 1500) == 6000


def test_a_number_taken_by_a_later_process_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    write_lock(tmp_path, process.pid, locks._this_machine(), age=3600)
    said = []
    with locked(tmp_path, say=said.append):
        assert holder(tmp_path).pid == os.getpid()
    assert said == [f"took over {tmp_path.name}, left by process {process.pid} on {locks._this_machine()}"]
    process.kill()
    process.wait()


def test_a_killed_process_holds_nothing_though_nobody_has_noticed_its_end(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 10
    while process_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process_alive(process.pid)
    write_lock(tmp_path, process.pid, socket.gethostname())
    with locked(tmp_path):
        assert holder(tmp_path).pid == os.getpid()
