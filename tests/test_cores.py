"""Cores: affinity mask, CPU quotas of both kinds of control groups, threads that sleep; the user's choice stands."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from diawork.runs import cores
from diawork.runs.cores import HUGE_PAGES, Cores, find_cores, share_cores

REPOSITORY = Path(__file__).parent.parent
NAMES = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "KMP_LIBRARY", "OMP_NUM_THREADS")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of eight cores, four of them ours, whose /sys is files that a test writes."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not loaded torch and whose user has chosen nothing."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    for name in NAMES:
        os.environ.pop(name, None)


def chosen():
    return {name: os.environ[name] for name in NAMES if name in os.environ}


V1, V2 = "sys__fs__cgroup__cpu", "sys__fs__cgroup"
QUOTAS = {
    "v2": ({f"{V2}__cpu_DOT_max": "150000 100000\n"}, 1.5),
    "v2, no limit": ({f"{V2}__cpu_DOT_max": "max 100000\n"}, None),
    "v1": ({f"{V1}__cpu_DOT_cfs_quota_us": "250000", f"{V1}__cpu_DOT_cfs_period_us": "100000"}, 2.5),
    "v1, no limit": ({f"{V1}__cpu_DOT_cfs_quota_us": "-1", f"{V1}__cpu_DOT_cfs_period_us": "100000"}, None),
    "nonsense": ({f"{V2}__cpu_DOT_max": "much"}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_the_quota_is_read(machine, case):
    files, quota = QUOTAS[case]
    found = find_cores(machine(**files))
    assert (found.host, found.affinity, found.quota) == (8, 4, quota)
    assert ("no CPU quota" in str(found)) == (quota is None)


def test_threads_follow_the_smaller_of_mask_and_quota():
    assert [Cores(8, 4, quota).usable for quota in (None, 0.5, 1.5, 2.0, 6.0)] == [4, 1, 2, 2, 4]


def test_threads_soon_sleep_and_follow_the_quota(machine, fresh):
    share_cores(machine(**QUOTAS["v1"][0]))
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "20000"}
    assert chosen() == waiting | {"OMP_NUM_THREADS": "3"}
    assert "sleep" in cores.describe_waiting()


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_has_chosen_stands(machine, fresh, name):
    os.environ.update({name: "7", "OMP_NUM_THREADS": "2"})
    share_cores(machine(**QUOTAS["v1"][0]))
    assert chosen() == {name: "7", "OMP_NUM_THREADS": "2"} and f"{name}=7" in cores.describe_waiting()


def test_once_torch_is_loaded_it_is_too_late_and_said(machine, fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    share_cores(machine())
    assert chosen() == {} and "import diawork first" in cores.describe_waiting()


@pytest.mark.parametrize("module", ["diawork.cli.main", "diawork.sweeps.workers", "diawork"])
def test_every_entrance_sets_it_before_torch_is_loaded(module):
    """The command, a worker, and a notebook's first import."""
    bare = {name: value for name, value in os.environ.items() if name not in NAMES} | {"PYTHONPATH": str(REPOSITORY)}
    code = f"import {module}, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True).stdout
    assert told.split() == ["PASSIVE", "False"]


FAULTS = """
import diawork, resource, torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4, 2**20)  # 16 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("chosen", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "65536", HUGE_PAGES: "0"}, False)]
)
def test_memory_is_kept_for_the_next_step_unless_the_user_has_chosen(chosen, kept):
    settings = ("MALLOC_", "GLIBC_", HUGE_PAGES)
    env = {name: value for name, value in os.environ.items() if not name.startswith(settings)} | chosen
    done = subprocess.run([sys.executable, "-c", FAULTS], env=env, cwd=REPOSITORY, capture_output=True, check=True)
    faults = int(done.stdout)
    assert faults < 400 if kept else faults > 4000
