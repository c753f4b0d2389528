"""Locks: one holder, dead ones left behind, waiting where asked, one taker at a time."""

import json
import os
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

ELSEWHERE = {"pid": 7, "host": "elsewhere"}


def left(folder, content, age=0.0):
    folder.mkdir(exist_ok=True)
    (folder / "lock.json").write_text(json.dumps(content))
    os.utime(folder / "lock.json", (time.time() - age,) * 2)


def test_another_machines_lock_lasts_as_long_as_its_heart_beats(tmp_path):
    left(tmp_path / "run", ELSEWHERE, age=60)
    assert holder(tmp_path / "run") == ELSEWHERE
    with pytest.raises(BusyError, match="process 7 on elsewhere"), locked(tmp_path / "run"):
        pass
    left(tmp_path / "run", ELSEWHERE, age=400)
    said = []
    with locked(tmp_path / "run", say=said.append):
        assert said == ["took over run, left by process 7 on elsewhere"]
    assert not list((tmp_path / "run").iterdir())


def test_a_lock_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.01)
    left(tmp_path / "run", ELSEWHERE)
    threading.Timer(0.2, (tmp_path / "run" / "lock.json").unlink).start()
    said, start = [], time.monotonic()
    with locked(tmp_path / "run", wait=True, say=said.append):
        assert time.monotonic() - start > 0.1
    assert said == ["waiting for process 7 on elsewhere, which is working on run"]


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / "lock.json", (0, 0))
        time.sleep(0.2)
        assert time.time() - (tmp_path / "lock.json").stat().st_mtime < 10


def test_what_was_taken_over_meanwhile_is_not_removed(tmp_path):
    with locked(tmp_path):
        left(tmp_path, ELSEWHERE)
    assert holder(tmp_path) == ELSEWHERE


def test_whoever_takes_over_is_alone(tmp_path):
    left(tmp_path, {"pid": 4194305, "host": socket.gethostname()})
    (tmp_path / "lock.takeover").write_text(json.dumps(ELSEWHERE))
    with pytest.raises(BusyError, match="process 7"), locked(tmp_path):
        pass
    os.utime(tmp_path / "lock.takeover", (0, 0))  # it died there
    with pytest.raises(BusyError), locked(tmp_path):
        pass
    with locked(tmp_path):
        assert holder(tmp_path)["pid"] == os.getpid()


def test_an_ended_process_that_nobody_has_noticed_is_not_alive():
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 10
    while process_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process_alive(process.pid) or not os.path.exists("/proc")
    process.wait()
