"""Deep kNN, PatchCore and PaDiM: each against a slow reference or a closed form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import mahalanobis

from diawork.base.compute import Compute
from diawork.detectors.learned import smoothed
from diawork.detectors.patchcore import PatchCore, coreset
from diawork.runs.experiment import run_experiment
from diawork.runs.methods import method_config
from diawork.runs.presets import preset
from tests.test_detectors import TEST, TRAIN, build


def features(detector, images):
    with torch.no_grad():
        return detector.backbone(images.images)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("strides", [(), (16,)])
def test_deep_knn_is_the_mean_distance_to_the_nearest_pooled_features(strides, normalised):
    changes = {"deep_knn__strides": strides, "deep_knn__normalised": normalised}
    detector = build("deep_knn", **changes).fit(TRAIN, progress=False)
    train, test = (features(detector, images)[0].mean((2, 3)).numpy() for images in (TRAIN, TEST))
    if normalised:
        train, test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    wanted = [np.sort(np.linalg.norm(train - row, axis=1))[:2].mean() for row in test]
    assert detector.anomaly_scores(TEST) == pytest.approx(wanted, rel=1e-3)


def slow_coreset(x, size, first):
    chosen = [first]
    while len(chosen) < size:
        chosen.append(int(np.argmax([min(np.linalg.norm(row - x[c]) for c in chosen) for row in x])))
    return chosen


@pytest.mark.parametrize(("size", "first"), [(1, 3), (6, 0), (20, 7)])
def test_coreset_agrees_with_a_slow_greedy_search(size, first):
    x = torch.rand(20, 5, generator=torch.Generator().manual_seed(0)).double()
    assert coreset(x, size, first=first).tolist() == slow_coreset(x.numpy(), size, first)


def test_coreset_of_identical_patches_picks_none_twice():
    assert sorted(coreset(torch.ones(5, 3), 5).tolist()) == [0, 1, 2, 3, 4]


def test_patchcore_with_a_whole_bank_is_the_distance_to_the_nearest_patch():
    cfg = method_config(preset("smoke"), "patchcore")
    cfg = cfg.override({"patchcore.coreset": 1.0, "patchcore.most_patches": 10**6, "patchcore.neighbours": 1})
    detector = PatchCore(cfg, compute=Compute()).fit(TRAIN, progress=False)
    fine, coarse = (F.avg_pool2d(f, 3, 1, 1) for f in features(detector, TEST))
    patches = torch.cat([fine, F.interpolate(coarse, fine.shape[-2:], mode="bilinear")], 1).flatten(2).mT
    wanted = torch.cdist(patches, detector.kept["bank"].expand(len(patches), -1, -1)).amin(2).amax(1)
    assert len(detector.kept["bank"]) == len(TRAIN) * patches.shape[1]
    assert detector.anomaly_scores(TEST) == pytest.approx(wanted.numpy(), rel=1e-3)


def test_patchcore_weighs_a_score_by_how_lonely_its_neighbour_is():
    detector = build("patchcore")
    detector.kept = {"bank": torch.tensor([[0.0], [1.0], [5.0]])}
    detector.hp = detector.hp.model_copy(update={"neighbours": 2})
    found = detector._loneliness(torch.tensor([[-1.0]]), torch.tensor([0]), torch.tensor([1.0]))
    assert float(found) == pytest.approx(1 - np.e / (np.e + np.e**2))


def test_padim_is_the_mahalanobis_distance_at_every_position():
    detector = build("padim").fit(TRAIN, progress=False)
    train, test = (detector._embedded(features(detector, images)).double().numpy() for images in (TRAIN, TEST))
    for at in (0, 17, 63):
        covariance = np.cov(train[at].T) + 0.01 * np.eye(20)
        wanted = mahalanobis(test[at, 6], train[at].mean(0), np.linalg.inv(covariance))
        centred = test[at, 6] - detector.kept["mean"][at].double().numpy()
        assert np.linalg.norm(detector.kept["whitening"][at].double().numpy() @ centred) == pytest.approx(
            wanted, rel=1e-3
        )


def test_padims_score_is_the_largest_of_its_map_and_its_channels_follow_the_seed():
    detector = build("padim").fit(TRAIN, progress=False)
    assert len(detector.drawn) == 20 and len(set(detector.drawn.tolist())) == 20
    score, heat = detector._scored(TEST.images)
    assert torch.equal(score, heat.amax((1, 2))) and heat.shape[-1] == detector.cfg.backbone.image_size


def test_blurring_keeps_a_flat_map_and_spreads_a_point():
    flat, point = torch.ones(1, 64, 64), torch.zeros(1, 64, 64)
    point[0, 32, 32] = 1
    assert torch.allclose(smoothed(flat), flat) and smoothed(point).sum() == pytest.approx(1, abs=1e-3)
    assert 0.05 < float(smoothed(point).max()) < 0.2


def test_a_run_says_which_weights_it_saw_through_and_measures_its_map(toy, tmp_path):
    cfg = method_config(preset("smoke", dataset=str(toy)), "padim")
    run = run_experiment(cfg, out=tmp_path, progress=False)
    assert run.result()["weights"] == "test_resnet, random, seed 0"
    assert run.evidence()["maps_names"][0] == "anomaly map" and "strip" not in run.evidence()
