"""Metrics: closed forms, agreement with scikit-learn, ties, intervals, refusals."""

import time

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from diawork.base.errors import DataError, DiaworkError, NumericError, UsageError
from diawork.evaluation import metrics


def scored(n=200, lift=1.0, decimals=9, seed=0):
    rng = np.random.default_rng(seed)
    anomalous = rng.random(n) < 0.4
    anomalous[:2] = True, False
    return np.round(rng.normal(size=n) + lift * anomalous, decimals), anomalous


def slow_fpr(scores, anomalous, tpr):
    found = [t for t in scores if (scores[anomalous] >= t).mean() >= tpr - 1e-12]
    return min((scores[~anomalous] >= t).mean() for t in found)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 9), st.integers(0, 3), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_agree_with_the_reference_also_among_ties(n, seed, decimals, tpr):
    scores, anomalous = scored(n, decimals=decimals, seed=seed)
    assert metrics.auroc(scores, anomalous) == pytest.approx(reference.roc_auc_score(anomalous, scores))
    pair = metrics.by_class(scores, anomalous)
    precision = reference.average_precision_score(anomalous, scores)
    assert metrics.METRICS["auprc"](*pair) == pytest.approx(precision)
    assert metrics.METRICS["fpr95"](*pair, tpr=tpr) == pytest.approx(slow_fpr(scores, anomalous, tpr))


def test_higher_means_more_anomalous():
    assert metrics.auroc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1.0
    scores, anomalous = scored()
    assert metrics.auroc(-scores, anomalous) == pytest.approx(1 - metrics.auroc(scores, anomalous))
    assert metrics.auroc(scores, ~anomalous) == pytest.approx(1 - metrics.auroc(scores, anomalous))


def test_constant_scores_are_chance_exactly():
    row = metrics.summary(np.full(50, 3.0), np.arange(50) < 20, threshold=3.0)
    assert [row[k] for k in ("auroc", "auroc_low", "auroc_high")] == [0.5, 0.5, 0.5]
    assert [row[k] for k in ("auprc", "fpr95", "f1", "specificity")] == pytest.approx([0.4, 1.0, 0.0, 1.0])


def test_summary_names_everything_a_table_needs():
    scores, anomalous = scored()
    row = metrics.summary(scores, anomalous, threshold=0.7)
    assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
    assert row["auprc_low"] < row["auprc"] < row["auprc_high"]
    assert row["fpr95_low"] < row["fpr95"] < row["fpr95_high"]
    assert (row["n_normal"], row["n_anomalous"]) == ((~anomalous).sum(), anomalous.sum())
    flagged = scores > 0.7
    assert row["f1"] == pytest.approx(reference.f1_score(anomalous, flagged))
    assert row["accuracy"] == pytest.approx((flagged == anomalous).mean())
    assert row["sensitivity"] == pytest.approx(flagged[anomalous].mean())
    assert row["specificity"] == pytest.approx(1 - flagged[~anomalous].mean())
    assert "f1" not in metrics.summary(scores, anomalous)


def test_interval_agrees_with_a_slow_bootstrap():
    scores, anomalous = scored(60)
    low, high = metrics.bootstrap_ci(scores, anomalous, n=4000)
    rng, values = np.random.default_rng(1), []
    for _ in range(1500):
        a, b = (rng.choice(s, len(s)) for s in (scores[anomalous], scores[~anomalous]))
        values.append((a[:, None] > b).mean() + (a[:, None] == b).mean() / 2)
    assert np.quantile(values, [0.025, 0.975]) == pytest.approx([low, high], abs=0.02)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    truth = 0.7602  # P(N(1, 1) > N(0, 1)) = Φ(1/√2)
    anomalous = np.arange(60) < 30
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(120, 60)) + anomalous
    inside = [low <= truth <= high for low, high in (metrics.bootstrap_ci(s, anomalous, n=400) for s in scores)]
    assert 0.88 <= np.mean(inside) <= 0.99


def test_interval_is_repeatable_and_narrows_with_the_level():
    scores, anomalous = scored()
    wide, narrow = (metrics.bootstrap_ci(scores, anomalous, level=level) for level in (0.95, 0.5))
    assert wide == metrics.bootstrap_ci(scores, anomalous)
    assert wide != metrics.bootstrap_ci(scores, anomalous, seed=1)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("name", metrics.METRICS)
@pytest.mark.parametrize("anomalous", [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]])  # one of a class, or a perfect order
def test_no_interval_is_given_where_the_images_cannot_give_one(anomalous, name):
    assert np.isnan(metrics.bootstrap_ci([0, 1, 2, 3], anomalous, name)).all()


def test_constant_scores_are_chance_for_certain():
    assert metrics.bootstrap_ci([1, 1, 1, 1], [0, 0, 1, 1]) == (0.5, 0.5)


def test_large_sets_are_bounded_in_time_and_fall_back_to_percentiles():
    scores, anomalous = scored(metrics.BCA_MAX_IMAGES + 1)
    start = time.perf_counter()
    low, high = metrics.bootstrap_ci(scores, anomalous, n=200)
    assert time.perf_counter() - start < 10
    assert low < metrics.auroc(scores, anomalous) < high < low + 0.05


@pytest.mark.parametrize("n", [1, 7, 20, 100])
def test_threshold_keeps_the_promised_specificity_and_no_more(n):
    healthy = np.random.default_rng(n).permutation(n).astype(float)
    threshold = metrics.threshold_at_specificity(healthy, 0.95)
    assert (healthy <= threshold).mean() >= 0.95
    assert (healthy < threshold).mean() < 0.95


@pytest.mark.parametrize(
    ("scores", "anomalous", "error", "says"),
    [
        ([1.0, np.nan, 2.0], [0, 1, 1], NumericError, "1 of 3 scores are not finite, the first at position 1"),
        ([1.0, np.inf], [0, 1], NumericError, "not finite"),
        ([1.0, 2.0], [0, 0], DataError, "all 2 images are normal"),
        ([1.0, 2.0], [True, True], DataError, "all 2 images are anomalous"),
        ([1.0, 2.0], [0, 1, 1], DataError, "do not fit"),
        ([1.0, 2.0], [0, 2], DataError, "true (anomalous) or false (normal)"),
        ([], [], DataError, "N ≥ 1"),
        ([[1.0], [2.0]], [[0], [1]], DataError, "must be (N,)"),
        (["a", "b"], [0, 1], DataError, "must be numbers"),
    ],
)
def test_refuses_bad_input_in_one_sentence(scores, anomalous, error, says):
    with pytest.raises(error) as caught:
        metrics.summary(scores, anomalous)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.bootstrap_ci([0, 1], [0, 1], "auroq"),
        lambda: metrics.bootstrap_ci([0, 1], [0, 1], level=95),
        lambda: metrics.threshold_at_specificity([0, 1], 1.5),
    ],
)
def test_refuses_parameters_out_of_range(call):
    with pytest.raises(UsageError):
        call()


@pytest.mark.parametrize("aim", ["f1", "accuracy"])
@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_a_papers_threshold_is_the_best_of_all(aim, decimals):
    scores, anomalous = scored(60, decimals=decimals)
    statistic = {"f1": reference.f1_score, "accuracy": reference.accuracy_score}[aim]
    best = max(statistic(anomalous, scores > t) for t in [-9.0, *scores])
    found = metrics.at_best(scores, anomalous, aim)
    assert found[aim] == pytest.approx(best)
    flagged = scores > found["threshold"]
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(anomalous, flagged))
    assert found["f1"] == pytest.approx(reference.f1_score(anomalous, flagged))


def test_constant_scores_flag_all_or_none():
    anomalous = np.arange(10) >= 3
    found = metrics.at_best(np.zeros(10), anomalous, "accuracy")
    assert found["accuracy"] == pytest.approx(0.7) and found["sensitivity"] == 1
    assert metrics.at_best(np.zeros(10), ~anomalous, "accuracy")["sensitivity"] == 0


def test_threshold_refuses_scores_that_are_not_finite():
    with pytest.raises(DiaworkError, match="not finite"):
        metrics.threshold_at_specificity([0.0, np.nan])


def test_noise_of_draws_is_that_of_scores_drawn_again():
    rng = np.random.default_rng(0)
    scores, anomalous = scored(600)
    found = metrics.draws_noise(scores, 0.3 * rng.standard_normal(600), anomalous)
    again = [metrics.auroc(scores + 0.3 * rng.standard_normal(600), anomalous) for _ in range(200)]
    assert found["noise_share"] == pytest.approx(0.3 / scores.std(), rel=0.1)
    assert found["noise_auroc"] == pytest.approx(np.std(again), rel=0.25)
    assert metrics.draws_noise(scores, np.zeros(600), anomalous) == {"noise_share": 0, "noise_auroc": 0}
