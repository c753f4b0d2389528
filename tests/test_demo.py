"""The demo: a size by a timed step, the same size when it goes on."""

import pytest

from diawork.base.compute import Compute
from diawork.cli import demo
from diawork.cli.demo import SIZES, SLOW
from diawork.cli.main import main
from diawork.data.manifests import load_manifest
from diawork.runs.methods import method_config
from diawork.runs.presets import preset
from diawork.runs.resolve import resolve
from diawork.runs.run import Run


@pytest.fixture
def asked(monkeypatch):
    """What the demo would run."""
    calls = []
    monkeypatch.setattr(demo, "run_methods", lambda *args, **_: calls.append(args))
    return calls


@pytest.mark.parametrize(("seconds", "size"), [(SLOW / 2, "demo"), (SLOW * 2, "demo_short")])
def test_a_slow_machine_takes_the_shorter_size(asked, seconds, size, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "step_seconds", lambda _: seconds)
    assert main(["demo", "--out", str(tmp_path), "--precision", "fp32", "--device", "cpu"]) == 0
    assert asked == [(preset(size, dataset="phantom"), size, "dia,csi,controls", 1)]
    assert f"size {size} (a training step takes {seconds:.2g} s" in capsys.readouterr().out


def test_what_was_asked_for_is_not_timed(asked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "step_seconds", None)
    assert main(["demo", "--size", "demo_short", "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert asked[0][1] == "demo_short" and "(as asked)" in capsys.readouterr().out


def test_a_demo_that_was_begun_goes_on_at_its_size(tmp_path):
    assert demo.begun(tmp_path / "nowhere") == demo.begun(tmp_path) == ""
    cfg = resolve(method_config(preset("demo_short", dataset="phantom"), "dia"), load_manifest("phantom"))
    Run.create(tmp_path, cfg, data={"name": "phantom", "identity": "x"}, label="DIA", compute={})
    assert demo.choose(tmp_path, Compute())[0] == demo.begun(tmp_path) == SIZES[-1] == "demo_short"


def test_a_step_is_timed():
    assert 0 < demo.step_seconds(Compute()) < 30
