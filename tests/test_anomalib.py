"""Models of anomalib behind our face: what the contract of all detectors does not ask; most need anomalib."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from diawork.base.compute import Compute
from diawork.base.errors import UsageError
from diawork.base.registry import NOT_BUILT, Entry, entry_of
from diawork.runs.methods import label_of, method_config
from diawork.runs.presets import preset
from tests.test_detectors import TEST, TRAIN

needs_anomalib = pytest.mark.skipif(find_spec("anomalib") is None, reason="anomalib is not installed")
SMALL = {"backbone.weights": "random", "backbone.image_size": 32, "anomalib.epochs": 1, "anomalib.batch_size": 8}
RESNET = {"anomalib.options": ["backbone=resnet18"]}
SOME = {  # a flow, a bank of patches, a pair of critics; slow: a Gaussian, a student, a map told by the batch
    "fastflow": {},
    "patchcore": RESNET,
    "ganomaly": {},
    "padim": {},
    "reverse_distillation": RESNET,
    "cflow": {"anomalib.options": ["backbone=resnet18", "fiber_batch_size=4"]},
}
SLOW = ("padim", "reverse_distillation", "cflow")


def build(name, **changes):
    cfg = method_config(preset("smoke"), f"anomalib_{name}").override(SMALL | changes)
    return entry_of("anomalib").load().build(cfg, compute=Compute())


def test_a_missing_package_is_named_with_the_command():
    entry = Entry("x", "X", "diawork.detectors.x:X", extra="a_package_that_is_not_there")
    with pytest.raises(UsageError, match=r"pip install 'diawork\[a_package_that_is_not_there\]'"):
        entry.load()


def test_the_registry_costs_no_anomalib():
    code = "import sys, diawork.base.registry; sys.exit('anomalib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", NOT_BUILT)
def test_detectors_that_are_not_built_say_what_is_missing(name):
    for ask in (entry_of, lambda name: method_config(preset("smoke"), name)):
        with pytest.raises(UsageError, match="needs ImageNet weights of"):
            ask(name)


def test_a_method_names_the_librarys_model():
    cfg = method_config(preset("smoke"), "anomalib_fastflow")
    assert (cfg.detector, cfg.anomalib.model, label_of(cfg)) == ("anomalib", "fastflow", "fastflow of anomalib")


@needs_anomalib
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SOME])
def test_fits_scores_saves_and_loads_on_its_own_draws(name, tmp_path):
    detector = build(name, **SOME[name]).fit(TRAIN, folder=tmp_path, progress=False)
    scores, again = detector.score(TEST), type(detector).load(tmp_path, compute=Compute()).score(TEST)
    assert np.array_equal(scores.total, again.total) and "random, seed 0" in detector.weights
    assert scores.maps is None or scores.maps.shape == (len(TEST), 16, 16)
    assert detector.anomaly_scores(TEST.take([3]))[0] == pytest.approx(scores.total[3], rel=1e-3)
    twin = build(name, **SOME[name]).fit(TRAIN, progress=False)
    assert np.array_equal(twin.anomaly_scores(TEST), scores.total) and twin.steps == detector.steps


@needs_anomalib
def test_an_unknown_model_and_an_unknown_option_are_refused():
    with pytest.raises(UsageError, match=r"no model 'fastflw'.*Did you mean 'fastflow'"):
        build("fastflw").fit(TRAIN, progress=False)
    with pytest.raises(UsageError, match="unexpected keyword argument 'flow_stps'"):
        build("fastflow", **{"anomalib.options": ["flow_stps=3"]}).fit(TRAIN, progress=False)


@needs_anomalib
def test_missing_weights_are_refused_not_downloaded_and_timm_is_left_as_it_was(monkeypatch, tmp_path):
    import timm

    before = timm.create_model
    for home in ("XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(home, str(tmp_path))
    with pytest.raises(UsageError, match="no pretrained weights of resnet18 on this machine"):
        build("padim", **{"backbone.weights": "pretrained"}).fit(TRAIN, progress=False)
    assert not list(tmp_path.rglob("*")) and timm.create_model is before


@needs_anomalib
def test_weights_of_a_file_are_those_it_looks_through(tmp_path):
    import timm
    import torch
    from safetensors.torch import save_file

    whole = timm.create_model("resnet18", pretrained=False).state_dict()
    save_file(whole, tmp_path / "w.safetensors")
    detector = build("padim", **{"backbone.weights": str(tmp_path / "w.safetensors")}).fit(TRAIN, progress=False)
    assert "w.safetensors" in detector.weights and any(
        torch.equal(value, whole["layer2.0.conv1.weight"]) for value in detector.net.state_dict().values()
    )
