"""Bench: its baseline does the same work, its ratios are honest; no figure is a test."""

import json
import re
from collections import namedtuple

import pytest
import torch

from diawork.base.compute import Compute, count_macs
from diawork.base.config import DiffusionConfig, EncoderConfig, ExperimentConfig
from diawork.base.registry import entry_of
from diawork.bench import ceilings
from diawork.bench.ceilings import Load, load_words, machine_name, peak_memory, time_in_turn
from diawork.bench.page import read_costs, write_costs
from diawork.bench.rivals import compared
from diawork.bench.stages import loss_memory, plain_encoder, released_dissolve, released_step
from diawork.cli.main import main
from diawork.detectors.backbones import Backbone
from diawork.method.ddpm import build_ddpm
from diawork.method.encoder import build_encoder
from diawork.runs.presets import preset

CPU = torch.device("cpu")


def test_ratio_is_taken_pair_by_pair(monkeypatch):
    spent = iter([2.0, 1.0, 4.0, 2.0, 9.0, 3.0])  # baseline, ours, baseline, …
    monkeypatch.setattr(ceilings, "seconds", lambda work, device: next(spent))
    row = time_in_turn("x", int, int, pairs=3, device=CPU, flops=4.0, ceiling=4.0)
    assert (row.ratio, row.ratio_min, row.ratio_max) == (2.0, 2.0, 3.0)
    assert row.share_of_ceiling == pytest.approx(0.5)


def test_plain_encoder_gives_the_same_numbers():
    cfg, x = EncoderConfig(), torch.rand(2, 1, 28, 28)
    plain, ours = plain_encoder(cfg, Compute()).eval(), build_encoder(cfg).eval()
    assert torch.allclose(plain(x).z, ours(x).z, atol=1e-5)


def test_the_baseline_dissolves_once_a_shift_and_takes_a_step():
    ddpm = build_ddpm(DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=16))
    x, encoder = torch.rand(2, 1, 16, 16), plain_encoder(EncoderConfig(), Compute()).train()
    assert released_dissolve(ddpm, x).shape == (8, 1, 16, 16)
    before = encoder.shift.weight.clone()
    released_step(encoder, ddpm, x, torch.optim.SGD(encoder.parameters(), 1e-3))
    assert not torch.equal(encoder.shift.weight, before)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The page and the findings of one quick bench, from the command line."""
    page = tmp_path_factory.mktemp("bench") / "bench.html"
    assert main(["bench", "--quick", "--device", "cpu", "--html", str(page)]) == 0
    return page.read_text(), json.loads(page.with_suffix(".json").read_text())


def test_every_stage_is_timed_and_the_page_shows_it(quick):
    text, costs = quick
    assert "in other runs" not in text
    assert len(costs["rows"]) == 6 and all(row["ratio"] > 0 for row in costs["rows"])
    assert costs["ceilings"]["conv_fp32"] > 1e9
    assert all(row["stage"] in text for row in costs["rows"]) and "://" not in text


def test_another_machine_stands_beside(quick, tmp_path):
    costs = quick[1]
    other = costs | {"machine": "Another <CPU>", "rows": [row | {"ratio": 77.0} for row in costs["rows"][1:]]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    text = write_costs(costs | {"beside": [read_costs(tmp_path / "other.json")]}, tmp_path / "c.html").read_text()
    assert "in other runs" in text and "2: Another &lt;CPU&gt;, " in text
    assert text.count("77.00 ×") == len(costs["rows"]) - 1


def test_a_file_of_something_else_is_refused_before_anything_is_timed(tmp_path, capsys):
    (tmp_path / "other.json").write_text("{}")
    assert main(["bench", "--beside", str(tmp_path / "other.json"), "--html", str(tmp_path / "c.html")]) != 0
    assert "not written by diawork bench" in capsys.readouterr().err and not (tmp_path / "c.html").exists()


def test_loss_memory_grows_with_the_batch_and_not_with_its_square():
    small, large = (loss_memory(batch)["peak_mib"] for batch in (128, 256))
    assert large < 3 * small


def test_shares_and_scaling(quick):
    costs = quick[1]
    assert [row["part"] for row in costs["parts"]] == ["dissolving", "views", "encoder and loss", "optimiser"]
    assert [(row["batch"], row["size"]) for row in costs["scaling"]] == [(2, 28), (4, 28), (4, 32)]
    assert ceilings.ceilings(Compute(), repeats=1).keys() == {"conv_fp32", "matmul_fp32"}


def test_a_bank_grows_with_its_steps(quick):
    small, large = quick[1]["bank"]
    assert large["mib"] == 2 * small["mib"] == pytest.approx(1148 * 2 * 4 * 28 * 28 / 2**20)
    assert large["make_s"] > 0 and large["look_up_ms"] > 0


def test_other_detectors_take_a_step_and_a_pass(quick):
    text, costs = quick
    rows = {row["detector"]: row for row in costs["rivals"]}
    assert set(rows) == {entry_of(name).label for name in compared()} and "32 px, test_resnet" in text
    assert all(min(row["score_s"], row["score_gmacs"], row["peak_mib"]) > 0 for row in rows.values())
    assert {name for name, row in rows.items() if not row["step_s"]} == {"PatchCore", "PaDiM", "deep kNN"}
    assert [name for name, row in rows.items() if not row["frozen"]] == ["SimSID"]


def test_the_arithmetic_of_a_pass_is_the_networks(quick):
    row = next(row for row in quick[1]["rivals"] if row["detector"] == "deep kNN")
    cfg = preset("smoke").backbone.model_copy(update={"weights": "random"})
    seen = torch.zeros(1, 3, cfg.image_size, cfg.image_size)
    assert row["score_gmacs"] * 1e9 == pytest.approx(count_macs(Backbone(cfg, (32,)).eval(), seen), rel=0.02)


def test_peak_memory_is_that_of_what_is_held_at_once():
    one = 4 * 256 * 1024 / 2**20
    assert peak_memory(lambda: [torch.ones(256, 1024) for _ in range(3)]) == pytest.approx(3 * one, rel=0.01)
    assert peak_memory(lambda: [torch.ones(256, 1024).sum() for _ in range(3)]) == pytest.approx(one, rel=0.01)


def test_at_full_size_they_are_the_papers():
    simsid = ExperimentConfig(detector="simsid").simsid
    assert (simsid.image_size, simsid.patches, simsid.items, simsid.active) == (128, 4, 100, 5)
    assert entry_of("scrd4ad").paper == {"backbone.name": "wide_resnet50_2", "backbone.image_size": 256}


# --- what it was made on ---------------------------------------------------------------------------------


def test_the_machine_is_named_with_its_cores():
    assert " cores, " in machine_name(CPU) and machine_name(CPU).endswith("bf16")


def test_what_others_do_is_counted_without_ones_own_work(monkeypatch):
    seconds, busy, own = iter([0.0, 10.0, 10.0]), iter([100.0, 120.0, 105.0]), iter([1.0, 6.0, 11.0])
    times = namedtuple("times", "user idle")
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(ceilings.psutil, "cpu_times", lambda: times(next(busy), 99999.0))
    monkeypatch.setattr(ceilings.psutil.Process, "cpu_times", lambda self: (next(own), 0.0, 0.0, 0.0))
    load = Load()
    assert load.others() == pytest.approx((20 - 5) / 10)
    assert load.others() == 0.0  # ticks are coarse: never below nothing


def test_a_run_beside_other_jobs_says_so():
    assert load_words(0.05) == "no other job ran" and "not known" in load_words(None)
    assert load_words(1.34).startswith("beside other jobs: they kept 1.3 cores busy")


def test_the_page_names_processor_threads_precision_and_load(quick, tmp_path):
    costs = quick[1] | {"machine": "Some CPU", "others": 0.7}
    text = write_costs(costs, tmp_path / "c.html").read_text()
    assert "<li>Some CPU</li>" in text and re.search(r"\d threads?, ", text) and "beside other jobs" in text
    without = {name: value for name, value in costs.items() if name != "others"}
    assert "other jobs" not in write_costs(without, tmp_path / "d.html").read_text()
