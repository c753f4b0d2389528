"""Conformal: p values and thresholds keep their rate, by simulation, among ties, by patient and on real images."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, false_discovery_control, kstest

from diawork.base.errors import DataError, NumericError, UsageError
from diawork.evaluation.conformal import alarm, calibrate, check_alarm, false_discoveries, images_needed, realised

SCORES = np.array([0.3, 0.1, 0.2, 0.4])


def test_p_is_the_share_of_healthy_images_that_score_as_high():
    assert calibrate(SCORES).p_values([0.05, 0.25, 0.5]) == pytest.approx([1.0, 3 / 5, 1 / 5])


def test_ties_count_against_the_alarm():
    assert calibrate(SCORES).p_values([0.4, 0.2]) == pytest.approx([2 / 5, 4 / 5])
    assert calibrate(np.ones(19)).p_values([1.0, 2.0]) == pytest.approx([1.0, 1 / 20])


def test_order_does_not_matter_and_more_anomalous_means_smaller():
    rng = np.random.default_rng(0)
    healthy, new = rng.normal(size=50), np.sort(rng.normal(size=20))
    p = calibrate(healthy).p_values(new)
    assert np.array_equal(p, calibrate(healthy[::-1]).p_values(new)) and (np.diff(p) <= 0).all()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(0, 9), st.integers(0, 2), st.sampled_from([0.05, 0.1, 0.29, 0.5]), st.booleans())
def test_an_alarm_is_raised_exactly_where_p_is_small(n, seed, decimals, alpha, by_patient):
    rng = np.random.default_rng(seed)
    made = calibrate(rng.normal(size=n).round(decimals), rng.integers(0, 9, n) if by_patient else None)
    new = rng.normal(size=200).round(decimals)
    if made.finest <= alpha:
        assert np.array_equal(new > alarm(made, alpha).threshold, made.p_values(new) <= alpha + 1e-9)
    else:
        with pytest.raises(UsageError):
            alarm(made, alpha)


def simulated(alpha, n=99, decimals=9, runs=1_000, **options):
    """The false-alarm rate that each of many calibrations realises, exactly: scores are uniform, then rounded."""
    rng = np.random.default_rng(0)
    thresholds = [alarm(calibrate(rng.random(n).round(decimals)), alpha, **options).threshold for _ in range(runs)]
    return 1 - np.array(thresholds) - 0.5 * 10.0**-decimals


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 99), (0.1, 34), (0.2, 12)])
def test_the_mean_rate_stays_below_alpha_and_its_spread_is_betas(alpha, n):
    rates = simulated(alpha, n)
    k = int(alpha * (n + 1))
    assert k / (n + 1) <= alpha and rates.mean() == pytest.approx(k / (n + 1), abs=3 * rates.std() / len(rates) ** 0.5)
    assert kstest(rates, beta(k, n + 1 - k).cdf).pvalue > 0.01
    low, high = realised(n, k)
    assert np.mean((rates >= low) & (rates <= high)) == pytest.approx(0.95, abs=0.02)


def test_ties_make_it_stricter():
    assert simulated(0.1, decimals=1).mean() < simulated(0.1).mean()


def test_with_confidence_it_is_this_calibrations_own_rate_that_is_bounded():
    rates = simulated(0.1, n=99, confidence=0.95)
    assert 0.945 <= np.mean(rates <= 0.1) <= 0.985 and np.mean(simulated(0.1) <= 0.1) < 0.7


def patients(rng, n, images=5):
    """Scores of n patients whose images resemble one another, some with many images, and the patients' names."""
    own = np.repeat(rng.normal(size=n), counts := rng.integers(1, 2 * images, n))
    return own + 0.3 * rng.normal(size=len(own)), np.repeat(np.arange(n), counts)


def test_images_of_one_patient_share_its_weight():
    made = calibrate([1.0, 2.0, 3.0, 9.0], ["a", "a", "a", "b"])
    assert (made.units, made.unit) == (2, "patient")
    assert made.p_values([2.5, 9.5]) == pytest.approx([(1 + 1 / 3 + 1) / 3, 1 / 3])
    alone = calibrate(SCORES, ["a", "b", "c", "d"]).p_values(SCORES)
    assert alone == pytest.approx(calibrate(SCORES).p_values(SCORES))


def test_by_patient_the_rate_holds_where_by_image_it_does_not():
    rng, by = np.random.default_rng(0), {True: [], False: []}
    for _ in range(1_500):
        own = rng.normal(size=20)
        size = np.where(own < 0, 8, 1)  # who scores low comes often: images alone make the threshold too low
        scores = np.repeat(own, size) + 0.1 * rng.normal(size=size.sum())
        new = rng.normal(size=50) + 0.1 * rng.normal(size=50)
        for known in by:
            made = calibrate(scores, np.repeat(np.arange(20), size) if known else None)
            by[known].append(np.mean(new > alarm(made, 0.1).threshold))
    assert np.mean(by[True]) <= 0.1 + 0.005 < 0.15 < np.mean(by[False])


@pytest.mark.parametrize(
    ("alpha", "confidence", "words"),
    [
        (0.05, None, "beyond 12 healthy images: the smallest they reach is 0.07692, and 0.05 takes 19 of them"),
        (
            0.05,
            0.95,
            "beyond 12 healthy images with 95 % confidence: the smallest .* 0.2209, and 0.05 takes 59 of them",
        ),
    ],
)
def test_refuses_a_rate_that_so_few_images_cannot_reach(alpha, confidence, words):
    with pytest.raises(UsageError, match=words):
        alarm(calibrate(np.arange(12.0)), alpha, confidence=confidence)


@pytest.mark.parametrize("confidence", [None, 0.9])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
def test_the_number_of_images_needed_is_the_smallest_that_will_do(alpha, confidence):
    n = images_needed(alpha, confidence)
    assert alarm(calibrate(np.arange(float(n))), alpha, confidence=confidence).threshold == n - 1
    if n > 1:
        with pytest.raises(UsageError, match=f"takes {n} of them"):
            alarm(calibrate(np.arange(float(n - 1))), alpha, confidence=confidence)


def test_refuses_what_makes_no_sense():
    with pytest.raises(UsageError, match="alpha=0 and confidence=None must lie in"):
        alarm(calibrate(SCORES), 0)
    with pytest.raises(UsageError, match="by patient only the mean over calibrations is bounded"):
        alarm(calibrate(SCORES, list("aabb")), 0.4, confidence=0.9)
    with pytest.raises(DataError, match=r"\(3,\) patients do not fit \(4,\) scores"):
        calibrate(SCORES, list("aab"))
    with pytest.raises(NumericError, match="not finite"):
        calibrate(SCORES).p_values([np.nan])
    with pytest.raises(DataError, match="N ≥ 1"):
        calibrate([])


def test_the_guarantee_is_a_sentence():
    made = calibrate(np.arange(134.0))
    assert alarm(made, 0.05).guarantee == (
        "On average over calibrations, at most 4.44 % of further healthy images raise an alarm; this calibration's own "
        "share is at most 8.49 % with 97.5 % confidence (from 134 healthy images that had no part in fitting, if those "
        "to come are like them)."
    )
    assert alarm(made, 0.05, confidence=0.95).guarantee.startswith("With 95 % confidence, at most 5 % of further")
    by_patient = alarm(calibrate(np.arange(40.0), np.arange(40) // 2), 0.1).guarantee
    assert "at most 10 % of images of further healthy patients" in by_patient and "own share" not in by_patient


def test_a_check_tells_a_kept_guarantee_from_a_broken_one():
    rng = np.random.default_rng(0)
    made = alarm(calibrate(rng.normal(size=135)), 0.05)
    kept, broken = check_alarm(made, rng.normal(size=234)), check_alarm(made, rng.normal(1, 1, size=234))
    assert "in keeping with the guarantee" in kept.sentence and kept.low <= kept.rate <= kept.high
    assert "more than chance allows" in broken.sentence and f"{broken.alarms} of 234" in broken.sentence


@pytest.mark.parametrize("by_patient", [False, True])
def test_a_check_rarely_accuses_images_that_are_alike(by_patient):
    rng, accused = np.random.default_rng(1), []
    for _ in range(600):
        groups = np.arange(60) if by_patient else None
        made = alarm(calibrate(rng.normal(size=60), groups), 0.1)
        accused.append(check_alarm(made, rng.normal(size=80)).p < 0.05)
    assert np.mean(accused) <= 0.07


@pytest.mark.skipif("DIAWORK_DATA" not in os.environ, reason="needs real data")
def test_on_real_images_the_rate_holds_among_alike_and_is_checked_among_others(capsys):
    from diawork.detectors.controls import image_statistics

    with np.load(Path(os.environ["DIAWORK_DATA"]) / "pneumoniamnist.npz", allow_pickle=False) as file:
        healthy = {s: file[f"{s}_images"][file[f"{s}_labels"].ravel() == 0] for s in ("train", "val", "test")}
    features = {s: image_statistics(x[:, None] / 255) for s, x in healthy.items()}
    pool, rng, rates = np.concatenate([features["train"], features["val"]]), np.random.default_rng(0), []

    def scores(known, new):
        z = (known - known.mean(0)) / known.std(0)
        inverse = np.linalg.inv(np.cov(z.T))
        d = (new - known.mean(0)) / known.std(0)
        return np.einsum("ni,ij,nj->n", d, inverse, d)

    for _ in range(200):
        train, val, new = np.split(rng.permutation(pool), [1000, 1135])
        rates.append(np.mean(scores(train, new) > alarm(calibrate(scores(train, val)), 0.05).threshold))
    made = alarm(calibrate(scores(features["train"], features["val"])), 0.05)
    checked = check_alarm(made, scores(features["train"], features["test"]))
    with capsys.disabled():
        print(f"\nrandom splits of train and val: {np.mean(rates):.2%} (sd {np.std(rates):.2%}), guaranteed "
              f"{made.rate:.2%}\n{made.guarantee}\ntest: {checked.sentence}")  # fmt: skip
    assert np.mean(rates) <= 0.05
    assert (checked.p < 0.05) == ("more than chance allows" in checked.sentence)


# --- a batch of new images ----------------------------------------------------------------------------------


def test_few_of_those_flagged_in_a_batch_are_healthy():
    rng, false = np.random.default_rng(0), []
    for _ in range(400):
        made = calibrate(rng.normal(size=200))
        p = made.p_values(np.concatenate([rng.normal(size=80), rng.normal(4, 1, 20)]))
        found = false_discoveries(p, made)
        flagged = p <= found.p
        assert flagged.sum() == found.flagged or not found.flagged
        false.append(flagged[:80].sum() / max(found.flagged, 1) if found.flagged else 0.0)
    assert 0.05 <= np.mean(false) <= 0.1


def test_the_threshold_is_that_of_benjamini_and_hochberg():
    p, made = np.random.default_rng(0).random(500) ** 3, calibrate(np.arange(9_999.0))
    assert false_discoveries(p, made).flagged == (false_discovery_control(p) <= 0.1).sum() > 0


@pytest.mark.parametrize(
    ("n", "words"),
    [(7, "nothing can be flagged here: that takes 9 or more"), (135, "At least 15 images must score above all")],
)
def test_a_batch_says_when_nothing_can_be_flagged(n, words):
    made = calibrate(np.arange(float(n)))
    found = false_discoveries(np.full(200, made.finest) if n == 7 else made.p_values(np.zeros(200)), made)
    assert found.flagged == 0 and found.sentence.startswith("None of 200 images flagged") and words in found.sentence


def test_by_patient_the_batch_claims_no_proof():
    made = calibrate(np.arange(60.0), np.arange(60) // 2)
    assert "30 healthy patients of the calibration; for several images a patient no proof is known." in (
        false_discoveries(made.p_values(np.zeros(5)), made).sentence
    )
