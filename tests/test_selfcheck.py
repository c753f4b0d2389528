"""Self-check: what scores of pseudo-anomalies say without a label, with intervals by image; collapse and reasons."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from diawork.base.errors import DataError, NumericError, UsageError
from diawork.evaluation.diagnostics import (
    Diagnostics,
    Kept,
    Spread,
    by_selection,
    collapse,
    explain,
    feature_spread,
    likely_reasons,
    rank_agreement,
    self_check,
    verdict,
)
from diawork.evaluation.metrics import auroc
from diawork.runs.evidence import recorded


def checked(gains, n=120, noise=0.5, seed=0, **facts):
    """The self-check of n images whose pseudo-anomalies score ``gains`` (kind → gain) higher."""
    rng = np.random.default_rng(seed)
    healthy = rng.normal(size=n)
    pseudo = {(kind, 1.0): healthy + gain + noise * rng.normal(size=n) for kind, gain in gains.items()}
    return self_check(healthy, pseudo, Diagnostics(**facts)), healthy, pseudo


def test_each_row_is_an_auroc_and_the_mean_their_mean():
    found, healthy, pseudo = checked({"warp": 0.3, "noise": 2.0})
    for row, scores in zip(found.rows, pseudo.values(), strict=True):
        assert row.auroc == pytest.approx(auroc(np.r_[healthy, scores], np.arange(240) >= 120))
        assert row.low < row.auroc < row.high and row.above_own == np.mean(scores > healthy)
    assert found.auroc == pytest.approx(np.mean([row.auroc for row in found.rows])) and found.n == 120
    assert found.above_own == pytest.approx(np.mean([row.above_own for row in found.rows]))
    assert [(row.kind, row.strength) for row in found.rows] == [("warp", 1.0), ("noise", 1.0)]


def test_the_interval_is_that_of_resampled_images():
    found, healthy, pseudo = checked({"warp": 0.5})
    rng, values, scores = np.random.default_rng(1), [], pseudo["warp", 1.0]
    for _ in range(2_000):
        rows = rng.integers(0, 120, 120)
        values.append(auroc(np.r_[healthy[rows], scores[rows]], np.arange(240) >= 120))
    assert np.quantile(values, [0.025, 0.975]) == pytest.approx([found.low, found.high], abs=0.01)


@pytest.mark.parametrize(("gain", "truth"), [(0.0, 0.5), (1.5, 0.8414)])  # Φ(gain / √(1 + 1.25))
def test_the_interval_covers_the_truth_about_as_often_as_it_says(gain, truth):
    inside = [low <= truth <= high for _, low, high in (interval(gain, seed) for seed in range(400))]
    assert 0.92 <= np.mean(inside) <= 0.98


def interval(gain, seed):
    found, _, _ = checked({"warp": gain}, n=60, seed=seed)
    return found.auroc, found.low, found.high


def test_rows_are_joint_intervals_and_wider_than_a_single_one():
    alone, _, _ = checked({"warp": 0.5})
    several, healthy, pseudo = checked({"warp": 0.5, "noise": 1.0, "poisson": 0.2})
    assert several.rows[0].low < self_check(healthy, {("warp", 1.0): pseudo["warp", 1.0]}).rows[0].low
    assert (alone.rows[0].low, alone.rows[0].high) == (alone.low, alone.high)


def test_complete_separation_has_an_interval_inside_the_unit():
    healthy = np.arange(30.0)
    above, below = (self_check(healthy, {("noise", 1.0): healthy + shift}) for shift in (100, -100))
    assert above.auroc == above.high == 1 and above.low == pytest.approx(0.025 ** (1 / 30))
    assert below.auroc == below.low == 0 and below.high == pytest.approx(1 - above.low)


@pytest.mark.parametrize(
    ("gain", "word", "sentence"),
    [
        (2.0, "notices", "The score notices pseudo-anomalies (mean AUROC 0."),
        (0.0, "blind", "The score does not tell pseudo-anomalies from healthy images (mean AUROC 0."),
        (
            -1.0,
            "below chance",
            "The score is below chance: pseudo-anomalies score lower than healthy images (mean AUROC",
        ),
    ],
)
def test_verdicts(gain, word, sentence):
    found, _, _ = checked({"warp": gain})
    assert found.verdict == word and found.findings()[0].startswith(sentence)
    assert "120 healthy validation images" in found.findings()[0]


def test_kinds_that_pass_unnoticed_or_score_lower_are_named():
    found, _, _ = checked({"warp": 0.0, "noise": 3.0, "poisson": -1.0})
    assert [s.split(" (")[0] for s in found.findings()[1:]] == ["Below chance: poisson at 1", "Unnoticed: warp at 1"]


@pytest.mark.parametrize("scores", [np.zeros(20), 1e4 + 1e-4 * np.arange(20.0)])
def test_equal_scores_are_a_collapse(scores):
    found = self_check(scores, {("warp", 1.0): scores[::-1]})
    assert found.verdict == "collapsed" and found.auroc == pytest.approx(0.5)
    assert found.findings()[0].startswith(
        "All scores of 20 healthy validation images and of their pseudo-anomalies are"
    )


def test_a_collapsed_encoder_is_named_whatever_its_scores():
    found, _, _ = checked({"warp": 2.0}, features=Spread(2e-6, 1.0))
    assert found.verdict == "collapsed" and "The encoder" not in found.findings()[0]
    assert "All features point the same way (variance 2e-06 of 1): the encoder collapsed." in found.findings()


def test_narrow_features_that_rank_well_are_no_collapse():
    found, _, _ = checked({"warp": 2.0}, features=Spread(0.0007, 1.0))
    assert found.verdict == "notices"


def test_the_words_about_a_kept_check_are_made_anew():
    check, _, _ = checked({"warp": 2.0, "noise": -1.0}, features=Spread(0.3, 1.2))
    kept = json.loads(json.dumps(recorded(check)))
    again = Kept.of(kept | {"verdict": "another rule's", "findings": []})
    assert (again.verdict, list(again.findings)) == (check.verdict, check.findings())
    assert again.facts == check.facts and again.auroc == check.auroc


def test_of_an_older_check_the_words_and_what_the_scores_follow_are_kept():
    kept = {"auroc": 0.4, "low": 0.3, "high": 0.45, "n": 99, "verdict": "blind", "follows": ["mean", -0.9]}
    again = Kept.of(kept | {"findings": ["It is blind."]})
    assert (again.verdict, again.findings) == ("blind", ("It is blind.",))
    assert again.facts == Diagnostics(follows=("mean", -0.9)) and Kept.of({}) == Kept()


def test_a_reason_is_given_with_the_finding_alone():
    facts = {"shift_accuracy": 0.27, "shifts": 4}
    below, above = (checked({"warp": gain}, **facts)[0].findings() for gain in (-1.0, 2.0))
    assert "names 27% of the shifts of healthy images (chance 25%), so the shifts were no task" in below[1]
    assert len(above) == 1


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (Diagnostics(shift_accuracy=1.0, shifts=4), "names 100% of the shifts .*, so the task was easy"),
        (Diagnostics(follows=("sharpness", -0.83)), r"follows the image's sharpness \(rank correlation −0.83\)"),
        (
            Diagnostics(shift_accuracy=0.8, shifts=4, follows=("mean", 0.3), features=Spread(0.2, 9.0)),
            "None of the facts",
        ),
        (Diagnostics(), "None of the facts"),
    ],
)
def test_likely_reasons(facts, words):
    (said,) = likely_reasons(facts)
    assert re.search(words, said)


def test_explains_only_what_is_below_chance_or_collapsed():
    assert explain("CSI", 0.6, 0.8, Diagnostics()) == explain("CSI", 0.45, 0.8, Diagnostics()) == []
    said = explain("CSI", 0.28, 0.48, Diagnostics(shift_accuracy=0.25, shifts=4))
    assert said[0].startswith("CSI is below chance (interval 0.280 to 0.480)") and "no task" in said[1]
    assert explain("CSI", 0.5, 0.5, Diagnostics()) == ["All scores of CSI are equal: it collapsed."]
    assert explain("CSI", 0.6, 0.8, Diagnostics(features=Spread(0, 0)))[0].startswith(
        "CSI: All features point the same way"
    )


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.3, 0.499, "below chance"), (0.5, 0.6, "blind"), (0.51, 1, "notices")]
)
def test_verdict_of_an_interval(low, high, word):
    assert verdict(low, high) == word


def test_spread_of_features_in_closed_form():
    every_way = feature_spread(np.concatenate([np.eye(8), -np.eye(8)]))
    assert every_way == pytest.approx((1.0, 8.0))
    line = feature_spread(np.array([[1.0, 0.1], [1.0, -0.1]]))
    assert line.dimensions == pytest.approx(1) and not collapse(line)
    assert feature_spread(np.ones((5, 3))) == pytest.approx((0, 0), abs=1e-12) and not collapse(every_way)


def test_spread_does_not_depend_on_length_or_order():
    features = np.random.default_rng(0).normal(size=(40, 6))
    scaled = features[::-1] * np.linspace(0.1, 9, 40)[:, None]
    assert feature_spread(scaled) == pytest.approx(feature_spread(features)) and collapse(None) == ""


def test_each_rule_takes_its_own_epoch():
    epochs = {
        "10": {"test": 0.70, "val": 0.5, "pseudo": 0.9},
        "2": {"test": 0.80, "val": 0.9, "pseudo": 0.9},
        "1": {"test": 0.85, "val": 0.8, "pseudo": 0.1},
    }
    assert by_selection(epochs) == {"pseudo": 0.80, "val": 0.80, "last": 0.70, "oracle": 0.85}
    assert by_selection({"1": {"test": 0.6}, "2": {"test": 0.5, "val": 1.0}}) == {"last": 0.5, "oracle": 0.6}
    assert by_selection({}) == {}


def test_agreement_of_ranks():
    test = np.array([0.5, 0.6, 0.7, 0.75, 0.8, 0.82, 0.85, 0.9])
    same, mixed = rank_agreement(test**2, test), rank_agreement(np.random.default_rng(0).permutation(test), test)
    assert same.rho == pytest.approx(1) and same.p < 0.001 and same.n == 8
    assert mixed.low < mixed.rho < mixed.high and mixed.low < 0 < mixed.high and mixed.p > 0.05


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: self_check(np.arange(9.0), {}), UsageError, "no scores of pseudo-anomalies"),
        (
            lambda: self_check(np.arange(9.0), {("warp", 0.5): np.arange(8.0)}),
            DataError,
            r"8 .* \(warp at 0.5\) do not fit 9",
        ),
        (lambda: self_check(np.arange(9.0), {("warp", 0.5): np.full(9, np.nan)}), NumericError, "not finite"),
        (lambda: feature_spread(np.ones(4)), DataError, "have no spread"),
        (lambda: feature_spread(np.full((4, 2), np.inf)), NumericError, "not finite"),
        (lambda: rank_agreement(np.arange(3.0), np.arange(3.0)), DataError, "wanted four variants or more"),
        (lambda: rank_agreement(np.ones(5), np.arange(5.0)), DataError, "all 5 checks are equal"),
    ],
)
def test_refuses(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.skipif("DIAWORK_DATA" not in os.environ, reason="needs real data")
def test_on_real_images_the_check_is_set_beside_the_test_auroc(capsys):
    """Eleven label-free scores without training: print how the check ranks them, whatever comes out."""
    from sklearn.neighbors import NearestNeighbors

    from diawork.data.pseudo import KINDS, pseudo_anomalies
    from diawork.detectors.controls import STATISTICS, image_statistics

    with np.load(Path(os.environ["DIAWORK_DATA"]) / "pneumoniamnist.npz", allow_pickle=False) as file:
        images = {s: file[f"{s}_images"][:, None].astype(np.float32) / 255 for s in ("train", "val", "test")}
        sick = {s: file[f"{s}_labels"].ravel() > 0 for s in images}
    healthy = {s: x[~sick[s]] for s, x in images.items()}
    pseudo = {(k, s): pseudo_anomalies(healthy["val"], k, strength=s).images for k in KINDS for s in (0.5, 1.0)}
    known = image_statistics(healthy["train"])
    mean, sd = known.mean(0), known.std(0)

    def neighbours(train, new):
        return NearestNeighbors(n_neighbors=5).fit(train).kneighbors(new)[0].mean(1)

    def flat(x):
        return x.reshape(len(x), -1)

    scorers = {
        name: lambda x, i=i: np.abs((image_statistics(x) - mean) / sd)[:, i] for i, name in enumerate(STATISTICS)
    }
    scorers["5-NN on statistics"] = lambda x: neighbours((known - mean) / sd, (image_statistics(x) - mean) / sd)
    scorers["5-NN on pixels"] = lambda x: neighbours(flat(healthy["train"]), flat(x))
    rows = []
    for name, score in scorers.items():
        found = self_check(score(healthy["val"]), {key: score(x) for key, x in pseudo.items()})
        rows.append(
            (name, found.auroc, found.low, found.high, found.above_own, auroc(score(images["test"]), sick["test"]))
        )
    check, own, test = np.array([(row[1], row[4], row[5]) for row in rows]).T
    ranks = {"check": rank_agreement(check, test), "above own": rank_agreement(own, test)}
    with capsys.disabled():
        print("\nscore                   check  interval          above own  test")
        for name, mean_auroc, low, high, above, labelled in rows:
            print(f"{name:<22}  {mean_auroc:.3f}  {low:.3f} to {high:.3f}  {above:.3f}      {labelled:.3f}")
        for name, r in ranks.items():
            print(f"{name} against test: {r.rho:+.2f} ({r.low:+.2f} to {r.high:+.2f}), p {r.p:.3f}, n {r.n}")
    assert all(low <= area <= high for _, area, low, high, *_ in rows) and ranks["check"].n == 11
