"""Controls: closed forms of the statistics, slow references, one face, refusals, the published check."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_images

from diawork.base import registry
from diawork.base.errors import CheckpointError, DataError, UsageError
from diawork.base.registry import DETECTORS
from diawork.data.datasets import load
from diawork.data.images import ImageSet
from diawork.detectors.controls import (
    FILE,
    STATISTICS,
    OracleStatistic,
    PixelKNN,
    StatsKNN,
    StatsMahalanobis,
    image_statistics,
)  # fmt: skip
from diawork.evaluation.metrics import auroc

CONTROLS = (StatsKNN, StatsMahalanobis, PixelKNN, OracleStatistic)
LABEL_FREE = CONTROLS[:3]


def as_set(pixels, anomalous=None, split="test"):
    pixels = torch.as_tensor(np.asarray(pixels, np.float32))[:, None]
    anomalous = np.zeros(len(pixels), bool) if anomalous is None else np.asarray(anomalous, bool)
    return ImageSet(pixels, np.where(anomalous, "lesion", "healthy"), anomalous, np.arange(len(pixels)), split, "made")


def named(pixels):
    return dict(zip(STATISTICS, image_statistics(as_set(pixels).images).T, strict=True))


def wave(fy, fx, n=32, amplitude=0.25):
    y, x = np.mgrid[:n, :n] / n
    return 0.5 + amplitude * np.cos(2 * np.pi * (fy * y + fx * x))


def test_statistics_of_a_flat_and_a_striped_image():
    stripes = np.tile([0.2, 0.8], (1, 16, 8))
    found = named(np.concatenate([np.full((1, 16, 16), 0.3), stripes]))
    assert found["mean"] == pytest.approx([0.3, 0.5])
    assert found["sd"] == pytest.approx([0, 0.3], abs=1e-6)
    assert found["gradient x"] == pytest.approx([0, 0.6], abs=1e-6)
    assert found["gradient y"] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("n", [28, 32, 49])
@pytest.mark.parametrize(
    ("fy", "fx", "band"), [(1, 0, "1-2"), (0, 2, "2-4"), (4, 0, "4-7"), (0, 7, "7-10"), (6, 8, "10-14")]
)
def test_a_wave_lies_in_its_band_alone_lower_end_included(n, fy, fx, band):
    found = named(wave(fy, fx, n)[None])
    energies = {name: value[0] for name, value in found.items() if name.startswith("energy")}
    assert max(energies, key=energies.get) == f"energy {band}"
    assert sorted(energies.values())[-2] < energies[f"energy {band}"] - 10


def test_energy_is_the_log_of_mean_power():
    weak, strong = named(np.stack([wave(3, 0, amplitude=0.1), wave(3, 0, amplitude=0.4)]))["energy 2-4"]
    assert strong - weak == pytest.approx(2 * np.log(4), abs=1e-5)


def test_small_images_have_finite_statistics():
    assert np.isfinite(image_statistics(make_images(size=8).images)).all()


def test_colour_is_averaged():
    grey = make_images(4).images
    assert np.allclose(image_statistics(grey), image_statistics(grey.expand(-1, 3, -1, -1)), atol=1e-6)


def slow_neighbours(train, test, k=5):
    distances = [[np.sqrt(((a - b) ** 2).sum()) for a in train] for b in test]
    return [np.mean(sorted(row)[:k]) for row in distances]


def test_statistics_neighbours_agree_with_a_slow_reference():
    train, test = make_images(20), make_images(6, seed=1, split="test")
    a, b = image_statistics(train.images), image_statistics(test.images)
    wanted = slow_neighbours((a - a.mean(0)) / a.std(0), (b - a.mean(0)) / a.std(0))
    assert StatsKNN().fit(train).anomaly_scores(test) == pytest.approx(wanted)


def test_pixel_neighbours_agree_with_a_slow_reference():
    train, test = make_images(20), make_images(6, seed=1, split="test")
    wanted = slow_neighbours(train.images.numpy(), test.images.numpy())
    assert PixelKNN().fit(train).anomaly_scores(test) == pytest.approx(wanted, rel=1e-4)


def test_mahalanobis_agrees_with_its_formula():
    train, test = make_images(40), make_images(6, seed=1, split="test")
    a, b = image_statistics(train.images), image_statistics(test.images)
    inverse = np.linalg.inv(np.cov(a.T, bias=True))
    wanted = [np.sqrt((row - a.mean(0)) @ inverse @ (row - a.mean(0))) for row in b]
    assert StatsMahalanobis().fit(train).anomaly_scores(test) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("control", LABEL_FREE)
def test_learns_from_healthy_images_alone_and_never_reads_a_label(control):
    mixed = make_images(20, anomalous=6)
    test = make_images(8, seed=1, split="test")
    relabelled = make_images(8, seed=1, split="test", anomalous=5)
    scores = control().fit(mixed).anomaly_scores(test)
    assert np.array_equal(scores, control().fit(mixed.normal()).anomaly_scores(test))
    assert np.array_equal(scores, control().fit(mixed).anomaly_scores(relabelled))


@pytest.mark.parametrize("control", LABEL_FREE)
def test_higher_means_more_anomalous(control):
    train = as_set(0.5 + 0.02 * np.random.default_rng(0).normal(size=(30, 16, 16)))
    near = 0.5 + 0.02 * np.random.default_rng(1).normal(size=(5, 16, 16))
    far = np.clip(0.5 + 0.3 * np.random.default_rng(2).normal(size=(5, 16, 16)), 0, 1)
    scores = control().fit(train).anomaly_scores(as_set(np.concatenate([near, far])))
    assert scores.shape == (10,)
    assert scores[:5].max() < scores[5:].min()


@pytest.mark.parametrize("control", LABEL_FREE)
def test_works_with_two_identical_healthy_images(control):
    flat = as_set(np.full((2, 16, 16), 0.5))
    assert np.isfinite(control().fit(flat).anomaly_scores(make_images(3))).all()


@pytest.mark.parametrize(("shade", "chosen"), [(0.9, "high mean"), (0.1, "low mean")])
def test_oracle_names_the_statistic_and_sign_it_chose(shade, chosen):
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0.4, 0.6, (20, 1, 1)) + rng.normal(0, rng.uniform(0.01, 0.02, (20, 1, 1)), (20, 16, 16))
    pixels[10:] += (shade - 0.5) / 2
    test = as_set(pixels, np.arange(20) >= 10)
    oracle = OracleStatistic().fit(make_images())
    assert auroc(oracle.anomaly_scores(test), test.anomalous) == 1.0
    assert oracle.chosen == chosen


def test_oracle_is_marked_and_beats_every_single_statistic():
    test = make_images(40, anomalous=20, split="test")
    each = [auroc(column, test.anomalous) for column in image_statistics(test.images).T]
    best = auroc(OracleStatistic().fit(test).anomaly_scores(test), test.anomalous)
    assert best == pytest.approx(max(max(a, 1 - a) for a in each))
    assert [control.oracle for control in CONTROLS] == [False, False, False, True]


@pytest.mark.parametrize("control", CONTROLS)
def test_saved_and_loaded_scores_are_the_same(control, tmp_path):
    test = make_images(8, seed=1, split="test", anomalous=4)
    fitted = control().fit(make_images())
    fitted.save(tmp_path / "run")
    assert np.array_equal(control.load(tmp_path / "run").anomaly_scores(test), fitted.anomaly_scores(test))


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "not an archive", "objects"])
def test_refuses_a_file_that_is_not_its_own(damage, tmp_path):
    StatsKNN().fit(make_images()).save(tmp_path)
    path = tmp_path / FILE
    if damage == "missing":
        path.unlink()
    elif damage == "objects":
        np.savez(path, kind=np.array([object()], dtype=object))
    elif damage != "foreign":
        path.write_bytes(path.read_bytes()[:100] if damage == "truncated" else b"hello")
    with pytest.raises(CheckpointError):
        (PixelKNN if damage == "foreign" else StatsKNN).load(tmp_path)


def test_refuses_to_score_before_fitting():
    with pytest.raises(UsageError, match="has not been fitted"):
        StatsKNN().anomaly_scores(make_images())


def test_refuses_images_of_another_size():
    with pytest.raises(DataError, match=r"do not fit the \(1, 16, 16\) of the training images"):
        PixelKNN().fit(make_images()).anomaly_scores(make_images(size=8))


def test_refuses_training_without_healthy_images():
    with pytest.raises(DataError, match="no normal images"):
        StatsKNN().fit(make_images(4, anomalous=4))


def test_refuses_an_oracle_without_both_classes():
    with pytest.raises(DataError, match="both classes"):
        OracleStatistic().fit(make_images()).anomaly_scores(make_images())


def test_every_control_is_listed():
    assert set(CONTROLS) == {DETECTORS[name].load() for name in registry.CONTROLS}
    assert len({control.name for control in CONTROLS}) == len(CONTROLS)


@pytest.mark.skipif(
    not (Path(os.environ.get("DIAWORK_DATA", "nowhere")) / "pneumoniamnist.npz").is_file(), reason="needs the real data"
)
def test_reproduces_the_measured_controls_on_pneumoniamnist():
    data = load("pneumoniamnist")
    anomalous, columns = data.test.anomalous, image_statistics(data.test.images).T
    found = {c.name: auroc(c().fit(data.train).anomaly_scores(data.test), anomalous) for c in CONTROLS}
    assert found[StatsKNN.name] == pytest.approx(0.833, abs=0.001)
    assert found[OracleStatistic.name] == pytest.approx(0.910, abs=0.001)
    assert 1 - auroc(columns[STATISTICS.index("gradient x")], anomalous) == pytest.approx(0.898, abs=0.001)
