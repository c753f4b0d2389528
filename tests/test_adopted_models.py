"""Models of anomalib behind our face: what the contract of all detectors does not ask; most need anomalib."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diawork.base.compute import Compute
from diawork.base.errors import UsageError
from diawork.base.registry import DETECTORS, NOT_BUILT, Entry, entry_of
from diawork.runs.methods import method_config
from diawork.runs.presets import preset
from tests.test_detectors import TEST, TRAIN, build

ADOPTED = [name for name, entry in DETECTORS.items() if entry.extra == "anomalib"]
LARGE = {"backbone.image_size": 256}
needs_anomalib = pytest.mark.skipif(not DETECTORS["fastflow"].installed, reason="anomalib is not installed")


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


@needs_anomalib
@pytest.mark.parametrize("name", [n for n in ADOPTED if n not in ("ganomaly", "efficient_ad")])
def test_missing_weights_are_refused_and_not_downloaded(name, monkeypatch, tmp_path):
    for home in ("XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(home, str(tmp_path))
    known = build(name).cfg.backbone.name if "rd4ad" in name or "dino" in name else "resnet18"
    with pytest.raises(UsageError, match=rf"no pretrained weights of {known} on this machine"):
        build(name, **{"backbone.weights": "pretrained", "backbone.name": known}).fit(TRAIN, progress=False)
    assert not list(tmp_path.rglob("*"))


@needs_anomalib
@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("anomalib_rd4ad", {"backbone.name": "test_resnet"}, "Set backbone.name to resnet18"),
        ("dinomaly", {"backbone.name": "test_resnet"}, "'test_resnet' is no DINOv2 transformer"),
        ("anomaly_dino", {"backbone.image_size": 32}, "multiple of 14.*Set 28"),
        ("efficient_ad", {"backbone.image_size": 128}, "must be 256 or more"),
        ("efficient_ad", LARGE | {"backbone.weights": "pretrained"}, "pretrained_teacher_small.pth .* is not at "),
    ],
)
def test_refuses_what_a_model_cannot_look_through(name, changes, words, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=words):
        build(name, **changes).fit(TRAIN, progress=False)


@needs_anomalib
def test_efficientads_penalty_needs_natural_images(monkeypatch, tmp_path):
    detector = build("efficient_ad", **LARGE)
    detector.shape = [1, 16, 16]
    detector._prepare()
    saved = tmp_path / "teacher.safetensors"
    save_file(detector.net.teacher.state_dict(), saved)
    with pytest.raises(UsageError, match="ImageNette"):
        build("efficient_ad", **LARGE | {"backbone.weights": str(saved)}).fit(TRAIN, progress=False)


@needs_anomalib
def test_a_frozen_backbone_is_no_part_of_a_model():
    detector = build("fastflow", **{"anomalib.epochs": 1}).fit(TRAIN, progress=False)
    before = {k: v.clone() for k, v in detector.backbone.state_dict().items()}
    detector.net.train()
    assert not detector.backbone.training and not any("extractor" in name for name in detector.net.state_dict())
    detector.fit(TRAIN, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in detector.backbone.state_dict().items())


@needs_anomalib
def test_cflows_map_is_the_librarys_but_for_whose_maximum_it_takes():
    from anomalib.models.image.cflow.anomaly_map import AnomalyMapGenerator

    from diawork.detectors.adopted_flows import Likelihoods

    rng = torch.Generator().manual_seed(0)
    sides = (8, 4)
    logs = [torch.randn(3 * s * s, generator=rng) for s in sides]
    parts = {"distribution": logs, "height": list(sides), "width": list(sides), "image_size": (16, 16)}
    ours = Likelihoods(2)
    ours.looking = True
    ours(**parts)
    ours.looking = False
    difference = ours(**parts) - AnomalyMapGenerator(range(2))(**parts)
    assert torch.allclose(difference, difference[0, 0, 0].expand_as(difference), atol=1e-5)
    alone = ours(**parts | {"distribution": [d[: s * s] for d, s in zip(logs, sides, strict=True)]})
    assert torch.allclose(alone[0], ours(**parts)[0])


@needs_anomalib
def test_the_library_does_not_see_another_timm_after_a_model_is_made():
    import timm

    before = timm.create_model
    build("cflow")._prepare()
    assert timm.create_model is before


@needs_anomalib
@pytest.mark.slow
def test_efficientad_fits_saves_and_loads(tmp_path):
    few = TRAIN.take(range(4))
    detector = build("efficient_ad", **LARGE | {"anomalib.epochs": 2}).fit(few, folder=tmp_path, progress=False)
    scores = detector.score(TEST.take([0, 9]))
    again = type(detector).load(tmp_path, compute=Compute()).score(TEST.take([0, 9]))
    assert np.array_equal(scores.total, again.total) and scores.maps.shape == (2, 16, 16)
    assert detector.anomaly_scores(TEST.take([9]))[0] == pytest.approx(scores.total[1], rel=1e-4)
    assert scores.total[1] > scores.total[0] and "random, seed 0" in detector.weights
