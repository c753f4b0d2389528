"""Anomaly maps: shapes, what they need, closed forms, isolation; healthy patches; a report's part."""

import numpy as np
import pytest
import torch

from diawork.base.config import ExperimentConfig
from diawork.base.errors import DataError, NumericError, UsageError
from diawork.data.datasets import load
from diawork.detectors import maps
from diawork.detectors.dia import DIA
from diawork.detectors.learned import smoothed
from diawork.detectors.patches import PatchBank
from diawork.method.encoder import build_encoder
from diawork.method.operators import GaussianBlur, Identity
from diawork.method.scoring import FeatureBank
from diawork.report.pictures import localisation
from diawork.report.rows import collect, pixel_table
from diawork.runs.evidence import mapped
from diawork.runs.run import Run
from tests.builders import make_run, toy_row

SIDE = 16


class Painter:
    """An occupant of the slot that whitens one corner, at half of its steps."""

    timesteps = 4

    def stack(self, x, ts):
        painted = x.clone()
        painted[..., :4, :4] = 1
        return torch.stack([painted if t < 1 else x for t in ts])


@pytest.fixture(scope="module")
def x():
    return torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def detector(x):
    cfg = ExperimentConfig().override({"score.samples": 1, "dissolve.operator": "identity"})
    made = DIA(None, cfg)
    made.encoder.eval()
    made.bank = FeatureBank.fit(made._features(x, "bank", samples=1))
    return made


@pytest.fixture(scope="module")
def every(detector, x):
    return maps.AnomalyMaps(detector, operator=GaussianBlur(5), healthy=x.flip(0, 2).square())


def anomaly_map(source, x, *method, operator=None, **smooth):
    """A map by a fitted detector or an operator."""
    detector = source if hasattr(source, "bank") else None
    return maps.AnomalyMaps(detector, operator=operator or (None if detector else source))(x, *method, **smooth)


@pytest.mark.parametrize("method", maps.NEEDS)
def test_a_map_has_a_value_a_pixel_whatever_the_batch(every, x, method, monkeypatch):
    whole = every(x, method)
    assert whole.shape == (3, SIDE, SIDE) and whole.dtype == np.float32 and (whole >= 0).all() and whole.std() > 0
    monkeypatch.setattr(maps, "BATCH", 2)
    np.testing.assert_allclose(every(x, method), whole, rtol=1e-3, atol=1e-5)


def test_methods_are_those_that_the_parts_allow(detector, every, x):
    assert every.methods == list(maps.NEEDS)
    assert maps.AnomalyMaps(operator=Identity()).methods == ["residual"]
    assert maps.AnomalyMaps(DIA(None, detector.cfg), healthy=x).methods == ["residual"]  # no bank yet
    assert list(maps.MAP_WORDS) == list(maps.NEEDS)


def test_the_residual_is_where_the_dissolver_changes_the_image(x):
    found = anomaly_map(Painter(), x, smooth=0)
    assert (found[:, 4:] == 0).all() and (found[:, :4, 4:] == 0).all()
    np.testing.assert_allclose(found[:, :4, :4], (1 - x[:, 0, :4, :4]) / 2, atol=1e-6)
    assert anomaly_map(Painter(), x, smooth=3 / 32)[:, 5, 5].min() > 0
    np.testing.assert_allclose(anomaly_map(Painter(), x), smoothed(torch.from_numpy(found)), atol=1e-6)
    assert not anomaly_map(Identity(), x, "residual").any()


def test_the_gradient_is_that_of_the_score(detector, x):
    found = anomaly_map(detector, x, "gradient", smooth=0)
    step = 1e-2
    for i, r, c in [(0, 3, 4), (2, 9, 9)]:
        moved = x[i : i + 1].repeat(2, 1, 1, 1)
        moved[0, 0, r, c] += step
        moved[1, 0, r, c] -= step
        with torch.no_grad():
            high, low = maps._score(detector, moved).total.tolist()
        assert found[i, r, c] == pytest.approx(abs(high - low) / (2 * step), rel=0.2, abs=2e-3)


def test_nothing_is_occluded_by_the_image_itself(detector, x):
    assert not anomaly_map(detector, x, "occlusion", operator=Identity()).any()


def test_maps_change_nothing_in_the_detector(every, detector, x):
    before = {name: value.clone() for name, value in detector.encoder.state_dict().items()}
    detector.encoder.train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for method in maps.NEEDS:
        every(x, method)
    assert torch.equal(torch.rand(1), expected) and detector.encoder.training
    assert all(p.grad is None for p in detector.encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.encoder.state_dict().items())
    detector.encoder.eval()


def test_what_is_missing_is_named(detector, x):
    with pytest.raises(UsageError, match=r"'residul' is not a method.*Did you mean 'residual'"):
        anomaly_map(detector, x, "residul")
    with pytest.raises(UsageError, match="'neighbours' needs healthy training images"):
        anomaly_map(detector, x, "neighbours")
    with pytest.raises(UsageError, match="'gradient' needs a fitted detector"):
        anomaly_map(Identity(), x, "gradient")
    with pytest.raises(DataError, match=r"images \(16, 16\) cannot be mapped"):
        anomaly_map(Identity(), x[0, 0])
    with pytest.raises(DataError, match="the images have 2 channels, the encoder 1"):
        anomaly_map(detector, x.repeat(1, 2, 1, 1), "gradient")
    with pytest.raises(NumericError, match="not finite"):
        anomaly_map(Identity(), x * torch.nan)


def test_controls_have_closed_forms(x):
    flat = torch.full_like(x, 0.25)
    np.testing.assert_allclose(maps.blur_map(flat), 0, atol=1e-6)
    np.testing.assert_allclose(maps.mean_map(x, flat), (x[:, 0] - 0.25).abs(), atol=1e-6)


@pytest.mark.parametrize("shift", ["rotation", "cutperm"])
def test_a_patch_of_the_bank_has_no_distance_and_a_strange_one_has(x, shift):
    encoder = build_encoder(seed=1).eval()
    bank = PatchBank.fit(encoder, x, shift, size=100_000)
    assert bank.map(x).max() < 0.05
    strange = x.clone()
    strange[..., :6, :6] = torch.arange(6.0) % 2
    found = bank.map(strange)
    assert found[:, :8, :8].mean() > 1.4 * found[:, 8:, 8:].mean()


def test_a_bank_is_drawn_by_its_seed_alone(x):
    encoder = build_encoder(seed=1).eval()
    one, two, other = (PatchBank.fit(encoder, x, "rotation", size=9, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.axes[3], two.axes[3]) and not torch.equal(one.axes[3], other.axes[3])
    assert one.axes[0].shape == (9, 64)


# --- what a run keeps, and what a report makes of it ----------------------------------------------------


@pytest.fixture
def arrays(detector, toy):
    splits = load(toy)
    methods = detector.map_methods(GaussianBlur(5), splits.train)
    return mapped(splits.test, splits.train.normal(), methods)


def test_a_run_keeps_few_maps_and_all_their_numbers(arrays):
    names = [maps.MAP_WORDS[m] for m in ("neighbours", "residual", "gradient")]
    assert arrays["maps_names"].tolist()[:3] == names and len(arrays["maps_names"]) == 6
    assert arrays["maps"].shape == (6, *arrays["maps_masks"].shape) and arrays["maps"].dtype == np.float16
    assert arrays["maps_counts"].tolist()[:2] == [6, 3]
    assert sum(a.nbytes for a in arrays.values()) < 200_000


def test_the_report_shows_maps_and_table(arrays, tmp_path):
    folder = make_run(tmp_path)
    Run(folder).write_evidence(arrays)
    rows = collect(folder).rows
    shown = localisation(rows[0], arrays, rows)
    assert shown["maps"].image.startswith(b"\x89PNG") and "of DIA" in shown["maps"].caption
    assert len(shown["map_rows"]) == 6 and shown["map_rows"][0]["map"] == "DIA: distance to healthy patches"
    assert all(row["aupro_low"] <= row["aupro"] <= row["aupro_high"] for row in shown["map_rows"])
    assert pixel_table({}).empty


def test_a_damaged_part_is_named(arrays):
    with pytest.raises(DataError, match="the maps of DIA are incomplete"):
        localisation(toy_row("DIA"), {**arrays, "maps_table": np.zeros((2, 3))}, [])
