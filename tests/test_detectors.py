"""One contract for every registered detector: the same face, whatever is behind it."""

import os
import shutil

import numpy as np
import pytest
import torch

from diawork.base.compute import Compute
from diawork.base.errors import DataError, UsageError
from diawork.base.registry import CONTROLS, DETECTORS
from diawork.data.images import ImageSet
from diawork.runs.methods import method_config
from diawork.runs.presets import preset
from tests.toys import Eager, as_format_1, child, ended

SIZE = 16
LONG_ENOUGH = {
    "rd4ad.epochs": 30,
    "scrd4ad.steps": 40,
    "kdad.epochs": 100,
    "simsid.epochs": 15,
    "simsid.lr": 2e-3,
    "train.epochs": 4,
}  # to tell noise from blobs
CAN_LOOK_THROUGH = {"anomalib": {"backbone.image_size": 32}}
SMOKE = preset("smoke").override({"dissolve.operator": "gaussian_blur", "train.epochs": 1})
INSTALLED = [name for name, entry in DETECTORS.items() if entry.installed]
LABEL_FREE = [name for name in INSTALLED if not DETECTORS[name].oracle]
OURS = [name for name in LABEL_FREE if name not in (*CONTROLS, "dia", "csi")]
UNTRAINED = ("deep_knn", "patchcore", "padim", "anomalib")
TRAINED = [name for name in OURS if name not in UNTRAINED]


def made(n, *, split="train", anomalous=0, seed=0, channels=1, size=SIZE):
    """Smooth blobs under faint noise; the last ``anomalous`` ones under strong noise."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    blob = torch.exp(-2 * (x.square() + y.square())) * 0.4 + 0.3
    labels = np.arange(n) >= n - anomalous
    strength = torch.where(torch.from_numpy(labels), 0.5, 0.02)[:, None, None, None]
    images = (blob + strength * torch.randn(n, channels, size, size, generator=rng)).clamp(0, 1)
    names = np.where(labels, "lesion", "healthy")
    return ImageSet(images, names, labels, np.arange(n), split, "made")


TRAIN, TEST = made(16), made(10, split="test", anomalous=5, seed=1)


def build(name, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    cfg = method_config(SMOKE, name).override(CAN_LOOK_THROUGH.get(name, {}) | changes)
    return DETECTORS[name].load().build(cfg, dissolve=None, compute=Compute())


def learnt(name):
    return build(name, **LONG_ENOUGH)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Return a detector fitted in a folder, made once."""
    known = {}

    def get(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            known[name] = learnt(name).fit(TRAIN, folder=folder, progress=False), folder
        return known[name]

    return get


@pytest.mark.parametrize("name", INSTALLED)
def test_saved_and_loaded_it_scores_the_same(name, fitted, tmp_path):
    detector, _ = fitted(name)
    detector.save(tmp_path)
    wanted, found = (d.score(TEST) for d in (detector, type(detector).load(tmp_path, compute=Compute())))
    assert wanted.total.shape == (len(TEST),) and np.array_equal(found.total, wanted.total)
    assert wanted.maps is None or np.array_equal(found.maps, wanted.maps)


@pytest.mark.parametrize("name", [name for name in OURS if name != "simsid"])  # a critic learns for longer
def test_higher_means_more_anomalous(name, fitted):
    scores = fitted(name)[0].anomaly_scores(TEST)
    assert scores[TEST.anomalous].min() > scores[~TEST.anomalous].max()


@pytest.mark.parametrize("name", [name for name in OURS if DETECTORS[name].load().has_map and name != "simsid"])
def test_maps_are_higher_where_there_is_more_to_see(name, fitted):
    level = fitted(name)[0].score(TEST).maps.mean((1, 2))
    assert level[TEST.anomalous].min() > level[~TEST.anomalous].max()


@pytest.mark.parametrize("name", LABEL_FREE)
def test_scores_do_not_depend_on_the_batch_or_its_order(name, fitted):
    detector, _ = fitted(name)
    whole, order = detector.anomaly_scores(TEST), np.random.default_rng(0).permutation(len(TEST))
    turned = detector.anomaly_scores(TEST.take(order))
    alone = np.concatenate([detector.anomaly_scores(TEST.take([i])) for i in range(3)])
    close = 5e-3 if name == "simsid" else 1e-3  # its critic divides by the spread of few values, and so rounding grows
    assert turned == pytest.approx(whole[order], rel=close, abs=1e-5)
    assert alone == pytest.approx(whole[:3], rel=close, abs=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_maps_have_the_images_size_and_no_scale_of_another_image(name, fitted):
    detector, _ = fitted(name)
    maps = detector.score(TEST).maps
    assert (maps is None) == (not detector.map_methods(None, TRAIN))
    if maps is not None:
        alone = next(iter(detector.map_methods(None, TRAIN).values()))(TEST.take([7]))
        assert maps.shape == (len(TEST), SIZE, SIZE) and np.isfinite(maps).all()
        assert alone[0] == pytest.approx(maps[7], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("other", [{"channels": 3}, {"size": 20}])
def test_refuses_images_of_another_shape_in_one_sentence(name, other, fitted):
    with pytest.raises(DataError, match=r"do not fit the \(1, 16, 16\) of the training images"):
        fitted(name)[0].score(made(2, split="test", **other))


@pytest.mark.parametrize("name", ["dia", "csi", *CONTROLS])
def test_a_loaded_one_refuses_them_too(name, fitted):
    again = DETECTORS[name].load().load(fitted(name)[1], compute=Compute())
    with pytest.raises(DataError, match=r"do not fit the \(1, 16, 16\) of the training images"):
        again.score(made(2, split="test", size=20))


@pytest.mark.parametrize("name", [*OURS, *CONTROLS, "csi"])
def test_refuses_to_score_before_fitting(name):
    with pytest.raises(UsageError, match=r"Call fit\(train\)"):
        build(name).score(TEST)


@pytest.mark.parametrize("name", [name for name in OURS if "backbone" in DETECTORS[name].uses and name != "anomalib"])
def test_looks_through_the_packaged_backbone(name):
    changes = {f"{name}.{DETECTORS[name].length}": 2} if DETECTORS[name].length else {}
    detector = build(name, backbone__name="tf_efficientnet_lite0", **changes).fit(TRAIN, progress=False)
    scores = detector.score(TEST)
    assert np.isfinite(scores.total).all() and np.ptp(scores.total) > 0
    assert scores.maps is None or np.ptp(scores.maps) > 0


def test_computes_in_fp32_what_low_precision_moves_unless_bf16_is_asked_for(monkeypatch):
    monkeypatch.setattr("diawork.base.compute.has_bf16", lambda device: True)
    kind, cfg = DETECTORS["deep_knn"].load(), method_config(SMOKE, "deep_knn")
    chosen = [kind(cfg, compute=Compute.auto("cpu", precision)).compute.precision for precision in ("auto", "bf16")]
    assert chosen == ["fp32", "bf16"] and DETECTORS["simsid"].load()(compute=Compute.auto()).compute.precision == "bf16"


@pytest.mark.parametrize("name", OURS)
def test_fits_on_healthy_images_alone(name, fitted):
    mixed = made(20, anomalous=4)
    mixed.images[:16] = TRAIN.images
    again = learnt(name).fit(mixed, progress=False)
    assert np.array_equal(again.anomaly_scores(TEST), fitted(name)[0].anomaly_scores(TEST))


@pytest.mark.parametrize("name", OURS)
def test_refuses_training_without_healthy_images(name):
    with pytest.raises(DataError, match="no normal images"):
        build(name).fit(made(4, anomalous=4), progress=False)


@pytest.mark.parametrize("format_1", [False, True])
@pytest.mark.parametrize("name", OURS)
def test_a_finished_training_is_loaded(name, format_1, fitted, monkeypatch, tmp_path):
    detector, folder = fitted(name)
    folder = shutil.copytree(folder, tmp_path / "copy")
    if format_1:
        as_format_1(folder / "detector")
    fresh = learnt(name)
    monkeypatch.setattr(type(fresh), "_learn", None)
    fresh.fit(TRAIN, folder=folder, progress=False)
    assert np.array_equal(fresh.anomaly_scores(TEST), detector.anomaly_scores(TEST))
    assert (fresh.parameters, fresh.steps, fresh.selection) == (detector.parameters, detector.steps, detector.selection)


@pytest.mark.parametrize("name", OURS)
def test_names_its_weights_where_it_needs_some(name, fitted):
    detector, _ = fitted(name)
    assert detector.requires_weights == ("random, seed 0" in detector.weights)
    assert detector.label == DETECTORS[name].label and detector.parameters


@pytest.mark.parametrize("name", TRAINED)
def test_killed_and_resumed_it_scores_the_same(name, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    monkeypatch.setattr("diawork.base.loop.Checkpointer", Eager)
    short = {
        "rd4ad.epochs": 4,
        "scrd4ad.steps": 4,
        "simsid.epochs": 4,
        "kdad.epochs": 4,
        "mean_shift.epochs": 4,
        "train.epochs": 2,
    }
    whole = build(name, **short).fit(TRAIN, progress=False)

    def die_after_the_second_step():
        save = Eager.save
        monkeypatch.setattr(Eager, "save", lambda *args: (save(*args), args[1] == 2 and os._exit(9)))
        build(name, **short).fit(TRAIN, folder=tmp_path, progress=False)

    assert ended(child(die_after_the_second_step)) == 9
    assert len(list(tmp_path.glob("step-*.safetensors"))) == 2
    resumed = build(name, **short).fit(TRAIN, folder=tmp_path, progress=False)
    assert np.array_equal(resumed.anomaly_scores(TEST), whole.anomaly_scores(TEST))
    assert resumed.steps == whole.steps and not list(tmp_path.glob("step-*"))
    torch.set_num_threads(threads)
