"""Survival: killed at any moment, a run ends as the undisturbed one does."""

import os
import random
import select
import signal
import time

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import nn

from diawork.base import files
from diawork.base.checkpoints import Checkpointer
from tests.toys import LONGEST, child, disturbed, duration, ended, equal, pretrained, trained

pytestmark = [
    pytest.mark.usefixtures("small"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes"),
]


def kills(work, n, folder, seed=0):
    """Kill ``work`` n times at random moments, resume it each time; return how many ended as if undisturbed."""
    rng, wanted = random.Random(seed), work(folder / "undisturbed")
    longest = duration(lambda: work(folder / "timed") and None)
    survived, within_a_save = 0, 0
    for i in range(n):
        place = folder / str(i)
        code, _ = disturbed(lambda place=place: work(place) and None, signal.SIGKILL, rng, longest)
        within_a_save += len(list(place.glob(".*.tmp")))
        survived += code == -signal.SIGKILL and equal(work(place), wanted)
        assert not list(place.glob(".*.tmp"))
    print(f"{survived} of {n} kills of {work.__name__} resumed to the same end, {within_a_save} had hit a save")
    return survived


@pytest.mark.parametrize("work", [pretrained, trained])
def test_two_kills_change_nothing(tmp_path, eager, work):
    assert kills(work, 2, tmp_path) == 2


@pytest.mark.slow
@pytest.mark.parametrize("work", [pretrained, trained])
def test_fifty_kills_change_nothing(tmp_path, eager, work):
    assert kills(work, 25, tmp_path, seed=1) == 25


def save_for_ever(folder, pipe):
    checkpointer = Checkpointer(folder, spec={"kind": "toy"})
    found = checkpointer.restore()
    for step in range(found.state["step"] + 1 if found else 0, 10**6):
        checkpointer.save(step, lambda step=step: ({"w": torch.full((50_000,), float(step))}, {"same": step}))
        os.write(pipe, step.to_bytes(4, "big"))


def save_loop(n, folder, seed=0):
    """Kill a save loop n times; each time the newest committed save must be there, whole."""
    rng, orphans = random.Random(seed), 0
    for _ in range(n):
        reading, writing = os.pipe()
        pid = child(lambda writing=writing: save_for_ever(folder, writing))
        os.close(writing)
        told = os.read(reading, 4) if select.select([reading], [], [], LONGEST)[0] else ended(pid, within=0)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        with os.fdopen(reading, "rb") as pipe:
            told += pipe.read()
        left = {p.name for p in folder.iterdir()}
        found = Checkpointer(folder, spec={"kind": "toy"}).restore()
        step = found.state["step"]
        assert step >= int.from_bytes(told[-4:], "big") and found.state["same"] == step
        assert torch.equal(found.tensors["w"], torch.full((50_000,), float(step)))
        orphans += len(left - {p.name for p in folder.iterdir()})
        assert len(list(folder.iterdir())) <= 3  # the oldest one may not be pruned yet
    print(f"{n} kills in a save loop: {n} loadable, 0 torn; {orphans} orphans in all, none after the restart")


def test_a_child_that_hangs_is_killed_and_fails_its_test(tmp_path):
    signal.signal(signal.SIGABRT, signal.SIG_DFL)  # as a library may do that was imported before

    def hang():
        (tmp_path / "hangs").touch()
        time.sleep(60)

    pid = child(hang)
    while not (tmp_path / "hangs").exists():
        time.sleep(0.01)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)did not end within 0.1 s and was killed.*test_survival"):
        ended(pid, within=0.1)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_a_child_computes_though_its_parent_has_threads():
    with threadpool_limits(2):
        parallel_work()
        assert ended(child(parallel_work)) == 0


def parallel_work():
    """Work that OpenMP of torch, oneDNN and scikit-learn would share out among threads."""
    nn.Conv2d(1, 8, 3)(torch.rand(8, 1, 64, 64)).sum().backward()
    torch.rand(10**6).sin().sum()
    x = torch.rand(2000, 8).numpy()
    NearestNeighbors(n_neighbors=2, algorithm="brute").fit(x).kneighbors(x)


@pytest.mark.filterwarnings("error")  # not even a fall back to the older one
def test_ten_kills_in_a_save_loop_lose_nothing(tmp_path):
    save_loop(10, tmp_path / "loop")


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_two_hundred_kills_in_a_save_loop_lose_nothing(tmp_path):
    save_loop(200, tmp_path / "loop", seed=1)


def crash_points(work, folder, step):
    """Crash at every ``step``-th rename of ``work``, just before and just after it; resume; return how many points."""
    wanted, replace, points = work(folder / "undisturbed"), os.replace, 0
    for n in range(1, 100, step):
        for after in (False, True):
            place = folder / f"{n}-{after}"
            count = iter(range(1, 1000))

            def crash(a, b, *, n=n, after=after, count=count):
                here = next(count) == n
                if here and not after:
                    os._exit(137)
                replace(a, b)
                if here:
                    os._exit(137)

            def until_the_crash(place=place, crash=crash):
                files.os.replace = crash
                work(place)

            if ended(child(until_the_crash)) == 0:
                return points
            points += 1
            assert equal(work(place), wanted), f"crash {'after' if after else 'before'} rename {n}"
    return points


def test_some_crash_points_of_a_pretraining(tmp_path, eager):
    assert crash_points(pretrained, tmp_path, 6) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("work", [pretrained, trained])
def test_every_crash_point(tmp_path, eager, work):
    points = crash_points(work, tmp_path, 1)
    print(f"{points} crash points of {work.__name__}")
    assert points >= 20
