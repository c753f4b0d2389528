"""The demo: a size by what a probe finds, one bar over the whole, the same size when it goes on."""

from types import SimpleNamespace

import pytest

from diawork.base.compute import Compute
from diawork.cli import demo
from diawork.cli.demo import SIZES, WITHIN, Whole, choose, plan, sized
from diawork.cli.main import main
from diawork.cli.probe import Costs, probe
from diawork.data.manifests import load_manifest
from diawork.runs.experiment import run_suite
from diawork.runs.methods import method_config
from diawork.runs.presets import preset
from diawork.runs.resolve import resolve
from diawork.runs.run import Run

FAST, SLOW, SLOWER = Costs(1e-3, 1e-4), Costs(0.015, 2.2e-3), Costs(0.3, 0.05)


def seconds(size, costs):
    return sum(stage.seconds for stage in plan(sized(size), costs))


def test_the_largest_size_that_ends_in_time_is_chosen():
    assert [choose(costs)[0] for costs in (FAST, SLOW, SLOWER)] == [SIZES[0], SIZES[-1], SIZES[-1]]
    assert seconds(SIZES[0], FAST) <= WITHIN < seconds(SIZES[0], SLOW) and seconds(SIZES[-1], SLOW) <= WITHIN
    assert "faster or a quieter machine" in choose(SLOWER)[1]


def test_what_was_asked_for_or_begun_outweighs_the_probe():
    assert choose(FAST, SIZES[-1])[0] == choose(FAST, known=SIZES[-1])[0] == SIZES[-1]
    assert choose(SLOWER, SIZES[0], known=SIZES[-1])[0] == SIZES[0]


def test_a_plan_counts_images_and_views():
    stages = plan(sized("demo"), Costs(1.0, 0.0))
    assert [stage.name for stage in stages[:4]] == ["DDPM", "training", "features of the bank", "scoring"]
    assert stages[0].seconds == 200 * 32 and stages[1].seconds == pytest.approx(10 * 480 / 3)
    views = plan(sized("demo"), Costs(0.0, 1.0))
    assert [views[1].seconds, views[4].seconds] == [10 * 480 * 12, 10 * 480 * 8]
    assert views[2].seconds == pytest.approx(480 * 10 * 4 / 3)


def test_a_demo_that_was_begun_is_found_again(tmp_path):
    assert demo.begun(tmp_path) == ""
    cfg = resolve(method_config(sized("demo_short"), "dia"), load_manifest("phantom"))
    Run.create(tmp_path, cfg, data={"name": "phantom", "identity": "x"}, label="DIA", compute={})
    assert demo.begun(tmp_path) == "demo_short"


@pytest.fixture
def whole(monkeypatch):
    monkeypatch.setattr(demo, "tell", lambda run: None)
    whole = Whole(plan(sized("demo"), SLOW))
    yield whole
    whole.close()


def finished(*, control=False):
    return SimpleNamespace(result=lambda: {"control": control})


def work(whole, name, steps=4, done=0):
    with whole.stage(total=steps, initial=done, desc=name) as bar:
        for _ in range(steps - done):
            bar.update()


def test_one_bar_counts_every_stage(whole):
    work(whole, "DDPM")
    assert whole.done == pytest.approx(whole.total - sum(stage.seconds for stage in whole.left))
    for _ in range(2):
        work(whole, "training")
        work(whole, "features of the bank", 10)
        whole.after_run(finished())
    whole.after_run(finished(control=True))
    assert [stage.name for stage in whole.left] == ["controls and report"]
    whole.finish()
    assert whole.done == whole.total == pytest.approx(seconds("demo", SLOW))


def test_what_is_found_finished_leaves_the_bar(whole):
    ddpm, training, rest = whole.left[0].seconds, whole.left[4].seconds, whole.left[-1].seconds
    whole.after_run(finished())
    assert whole.done == 0 and whole.total == pytest.approx(sum(stage.seconds for stage in whole.left))
    work(whole, "training", done=1)
    assert whole.done == pytest.approx(0.75 * training) and ddpm > 0 < rest
    work(whole, "an unplanned stage")
    assert whole.done == pytest.approx(0.75 * training)


def test_a_run_tells_every_stage_of_the_plan(small, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "tell", lambda run: None)
    cfg = preset("smoke", dataset=str(toy))
    whole = Whole(plan(cfg, SLOW))
    total, last = whole.total, whole.left[-1]
    run_suite(
        cfg, ["dia", "csi", "pixel_knn"], [0], out=tmp_path / "runs", compute=Compute(), progress=whole.stage,
        on_run=whole.after_run,
    )  # fmt: skip
    assert whole.left == [last] and whole.total == total
    assert whole.done == pytest.approx(total - last.seconds)


def test_the_probe_times_the_trainings_themselves():
    cfg = preset("smoke")
    costs = probe(cfg, Compute())
    assert 0 < costs.image < 5 and 0 < costs.view < 5


def test_the_demo_says_its_size_and_its_time(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("diawork.cli.probe.probe", lambda *_: SLOW)
    monkeypatch.setattr(demo, "run_methods", lambda *args, **kw: asked.append((args, kw)))
    assert main(["demo", "--out", str(tmp_path), "--precision", "fp32", "--device", "cpu"]) == 0
    said, (args, kw) = capsys.readouterr().out, asked[0]
    assert "size demo_short: about" in said and "minutes on this machine as it is now (fp32 on cpu" in said
    assert args == (preset("demo_short", dataset="phantom"), "demo_short", "dia,csi,controls", 1)
    assert kw["progress"].__self__ is kw["on_run"].__self__
