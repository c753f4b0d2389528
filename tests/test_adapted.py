"""KDAD, mean-shifted contrastive and SimCLR: what each learns, from what, and how it scores."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diawork.base.errors import DataError, UsageError
from diawork.detectors.kdad import Cloner
from diawork.evaluation.diagnostics import feature_spread
from diawork.method.loss import nt_xent
from tests.test_detectors import TEST, TRAIN, build, made


@pytest.mark.parametrize("strides", [(4, 8), (8, 16, 32), (2,)])
def test_the_cloner_has_the_teachers_shapes_and_is_narrow_between(strides):
    channels = [4 * s for s in strides]
    cloner = Cloner(strides, channels, width=3)
    maps = cloner(torch.rand(2, 3, 32, 32))
    assert [tuple(f.shape) for f in maps] == [(2, c, 32 // s, 32 // s) for c, s in zip(channels, strides, strict=True)]


def test_kdad_scores_what_the_cloner_leaves_of_values_and_directions():
    detector = build("kdad", kdad__value_weight=0.5).fit(TRAIN, progress=False)
    teacher, scores = detector._features(TEST.images), detector.anomaly_scores(TEST)
    x = F.interpolate(TEST.images, (32, 32), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        student = detector.net((x - detector.backbone.mean) / detector.backbone.std)
    wanted = np.zeros(len(TEST))
    for e, s in zip(teacher, student, strict=True):
        for i in range(len(TEST)):
            u, v = e[i].flatten().numpy(), s[i].flatten().numpy()
            wanted[i] += 0.5 * ((u - v) ** 2).mean() + 1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert scores == pytest.approx(wanted, rel=1e-3)


def test_kdads_teacher_stays_as_it_is():
    detector = build("kdad").fit(TRAIN, progress=False)
    assert detector.backbone.sha256 == build("kdad").fit(TRAIN, progress=False).backbone.sha256
    assert not any(p.requires_grad for p in detector.backbone.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_mean_shift_trains_what_follows_the_frozen_stage_and_no_statistic(name):
    changes = {"backbone__name": name, "mean_shift__lr": 0.1}
    detector = build("mean_shift", **changes).fit(TRAIN, progress=False)
    before = build("mean_shift", **changes)
    before.shape = [1, 16, 16]
    before._prepare()
    after, before = detector.net.state_dict(), before.net.state_dict()
    moved = {k for k, v in before.items() if not torch.equal(v, after[k])}
    trained = {f"net.{k}" for k, p in detector.net.net.named_parameters() if p.requires_grad}
    assert moved and moved <= trained and len(trained) < len(list(detector.net.parameters()))
    first_moved = min(list(before).index(k) for k in trained)
    assert first_moved > 3


def test_mean_shift_scores_squared_distances_to_the_two_nearest_directions():
    detector = build("mean_shift").fit(TRAIN, progress=False)
    with torch.no_grad():
        train, test = (F.normalize(detector.net(s.images)[0].mean((2, 3)), dim=1).numpy() for s in (TRAIN, TEST))
    wanted = [np.sort(((train - row) ** 2).sum(1))[:2].sum() for row in test]
    assert detector.anomaly_scores(TEST) == pytest.approx(wanted, rel=0.02, abs=1e-5)


def test_mean_shift_contrasts_angles_around_the_centre():
    detector = build("mean_shift", mean_shift__angular_weight=2.0)
    detector.shape = [1, 16, 16]
    detector._prepare()
    centre = F.normalize(torch.rand(96, generator=torch.Generator().manual_seed(0)), dim=0)
    detector.hp = detector.hp.model_copy(update={"angular_weight": 0.0})
    plain = detector._loss(TRAIN.images, centre, 0)
    detector.hp = detector.hp.model_copy(update={"angular_weight": 2.0})
    assert 0 < float((detector._loss(TRAIN.images, centre, 0) - plain).detach()) < 8  # 2 ‖f − c‖², both of length one


def test_simclr_is_csis_loss_with_a_single_shift():
    detector = build("simclr").fit(TRAIN, progress=False)
    seen = []
    detector.net.register_forward_hook(lambda _, inputs, out: seen.append(out.z))
    loss = detector._loss(TRAIN.images, 5)
    n = len(TRAIN)
    z = F.normalize(seen[-1], dim=1)
    similar = (z @ z.T / 0.5).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    wanted = F.cross_entropy(similar, torch.arange(2 * n).roll(n))
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    image, branch = torch.arange(n).repeat(2), torch.arange(2).repeat_interleave(n)
    assert float(nt_xent(seen[-1], image, 0 * image, branch).detach()) == pytest.approx(float(loss.detach()), rel=1e-5)


def test_simclr_scores_by_the_nearest_direction_and_the_length():
    detector = build("simclr").fit(TRAIN, progress=False)
    known, z = detector._embedded(TRAIN.images).z[0], detector._embedded(TEST.images).z[0]
    wanted = -(z @ F.normalize(known, dim=1).T).amax(1) / known.norm(dim=1).mean()
    assert detector.anomaly_scores(TEST) == pytest.approx(wanted.numpy(), rel=1e-4)


@pytest.mark.parametrize("name", ["simclr", "mean_shift"])
def test_the_spread_of_held_out_features_is_told(name):
    detector = build(name).fit(TRAIN, progress=False)
    features = detector._embedded(TEST.images, **({} if name == "simclr" else {"progress": False}))
    rows = features.z[0] if name == "simclr" else features
    facts = detector.facts(TEST)
    assert facts.features == pytest.approx(feature_spread(rows.numpy()), rel=1e-3) and facts.shift_accuracy is None


def test_simclr_refuses_colour_for_a_grey_encoder_and_selection_by_epoch():
    with pytest.raises(DataError, match="3 channels, the encoder 1"):
        build("simclr").fit(made(8, channels=3), progress=False)
    with pytest.raises(UsageError, match="keeps its last step"):
        build("simclr").fit(TRAIN, on_epoch=lambda *_: 0.5, progress=False)
