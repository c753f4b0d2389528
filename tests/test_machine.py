"""What a bench was made on: the processor's name, threads, precision, and whether other jobs ran."""

import pytest
import torch

from diawork.base.compute import Compute
from diawork.bench import machine
from diawork.bench.machine import Load, arithmetic, load_words, machine_name
from diawork.bench.page import _facts

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path):
    """A /proc of a machine whose cores have worked 100 s since it started."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n")
    tick(tmp_path, 100)
    return tmp_path


def tick(root, seconds):
    at = int(seconds * machine._TICKS)
    (root / "proc" / "stat").write_text(f"cpu  {at} 0 0 99999 77 0 0 0 0 0\ncpu0 {at} 0 0 99999 77 0 0 0 0 0\n")


def test_the_processor_is_named(root):
    assert machine_name(CPU, root).startswith("Some CPU @ 3 GHz, ")
    assert machine_name(CPU, root / "nowhere").count("cores") == 1


def test_threads_and_precision_are_named():
    assert arithmetic(Compute()) == f"{torch.get_num_threads()} threads, fp32"


def test_what_others_do_is_counted_without_ones_own_work(root, monkeypatch):
    seconds, own = iter([0.0, 10.0, 10.0]), iter([1.0, 6.0, 11.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(Load, "_own", staticmethod(lambda: next(own)))
    load = Load(root)
    tick(root, 120)
    assert load.others() == pytest.approx((20 - 5) / 10)
    tick(root, 105)
    assert load.others() == 0.0  # ticks are coarse: never below nothing


def test_where_nothing_is_known_nothing_is_claimed(tmp_path):
    assert Load(tmp_path).others() is None and "not known" in load_words(None)


def test_a_run_beside_other_jobs_says_so():
    assert load_words(0.05) == "no other job ran"
    assert load_words(1.34).startswith("beside other jobs: they kept 1.3 cores busy")


def test_the_page_names_processor_threads_precision_and_load():
    costs = {
        "compute": Compute().as_dict(), "settings": {"batch": 2, "size": 28, "dim": 8}, "machine": "Some CPU",
        "torch": "2", "ceilings": {}, "others": 0.7,
    }  # fmt: skip
    facts = _facts(costs)
    assert facts[0] == "Some CPU" and facts[1].endswith("threads, fp32") and "beside other jobs" in facts[2]
    assert len(_facts({name: value for name, value in costs.items() if name != "others"})) == len(facts) - 1
