"""Comparison: errors at their nominal rate, both factors covered, no claim from one seed, Holm and joint."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import chi2, norm, t

from diawork.base.errors import DataError, UsageError
from diawork.evaluation import comparison, sentences
from diawork.evaluation.comparison import Comparison, adjust, compare_detectors, over_trainings
from diawork.evaluation.metrics import auroc
from diawork.report.rows import collect, compare
from tests.builders import make_run
from tests.delong import paired_test

SEED_SD, CENTRE = 0.0075, 1.593  # of the AUROC between trainings; shift of the anomalous scores: AUROC 0.87
SLOPE = norm.pdf(CENTRE / 2**0.5) / 2**0.5  # of the AUROC in the shift
WORLDS = {"alike": (0.965, 0.985), "related": (0.80, 0.90)}  # correlation of scores between detectors, between seeds
ANOMALOUS = np.arange(624) < 390


def draw(rng, seeds, gain=0.0, world="alike"):
    """Scores of a and b (seeds, 624): images shared by both, by the seeds of one, and noise of each training."""
    between, within = WORLDS[world]
    image, sides = rng.normal(size=624), []
    for ahead in (gain, 0.0):
        shift = CENTRE + (ahead + rng.normal(0, SEED_SD, (seeds, 1))) / SLOPE
        own, noise = rng.normal(size=624), rng.normal(size=(seeds, 624))
        score = between**0.5 * image + (within - between) ** 0.5 * own + (1 - within) ** 0.5 * noise
        sides.append(score + shift * ANOMALOUS)
    return sides


def averaged_intervals(a, b):
    """The p value of DeLong intervals averaged over pairs of seeds, as pages once had it."""
    found = comparison._areas([a, b], ANOMALOUS)
    areas, covariance = np.concatenate(found.areas), found.covariance
    r, own = len(a), np.diag(covariance)
    sd = np.sqrt(own[:r, None] + own[None, r:] - 2 * covariance[:r, r:]).mean()
    return 2 * norm.sf(abs(areas[:r].mean() - areas[r:].mean()) / sd)


def rates(n, seeds, gain=0.0, world="alike"):
    """Shares of p < 0.05 among n draws: independent seeds, paired seeds, averaged intervals."""
    rng, found = np.random.default_rng(seeds), []
    for _ in range(n):
        a, b = draw(rng, seeds, gain, world)
        tests = [compare_detectors(a, b, ANOMALOUS, paired_seeds=paired).p for paired in (False, True)]
        found.append([*tests, averaged_intervals(a, b)])
    return (np.array(found) < 0.05).mean(0)


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_false_lead_is_about_as_rare_as_it_says(seeds):
    independent, paired, averaged = rates(300, seeds)
    assert 0.02 <= independent <= 0.085 and 0.02 <= paired <= 0.085 and averaged > 0.09


SEED_LOGIT = 0.071  # σ of a detector's seeds: √(2 · 0.071² / χ²₂), as in 51 cells of earlier reports


def cells(rng, seeds, gaps, n=624, sd=None):
    """Scores of detectors (seeds, n), each ``gap`` of AUROC above 0.87, their seeds scattered as in earlier reports."""
    truth, image, made = np.arange(n) < n * 0.625, rng.normal(size=n), []
    for gap in gaps:
        spread = sd or np.sqrt(2 * SEED_LOGIT**2 / rng.chisquare(2))
        middle = logit(0.87 + gap) + rng.normal(0, spread, (seeds, 1))
        own, noise = rng.normal(size=n), rng.normal(size=(seeds, n))
        made.append(0.8**0.5 * image + 0.1**0.5 * (own + noise) + 2**0.5 * norm.ppf(expit(middle)) * truth)
    return made, truth


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_error_rates_and_power_in_figures(seeds, capsys):
    rng, draws = np.random.default_rng(seeds), 800
    error, *power = (
        np.mean([compare_detectors(*made, truth, paired_seeds=False).verdict in ("ahead", "behind")
                 for made, truth in (cells(rng, seeds, (gap, 0.0)) for _ in range(draws))])
        for gap in (0.0, 0.02, 0.05)
    )  # fmt: skip
    with capsys.disabled():
        print(f"\n{seeds} seeds, 624 images: error {error:.3f}, power at 0.02 {power[0]:.2f}, at 0.05 {power[1]:.2f}")
    assert error <= 0.07 and power[0] < power[1]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3])
def test_a_family_of_15_in_figures(seeds, capsys):
    rng, gaps, found = np.random.default_rng(seeds), [0.0] * 5 + [-0.05] * 4 + [-0.1] * 3 + [-0.3] * 3, []
    for _ in range(300):
        (ours, *theirs), truth = cells(rng, seeds, (0.0, *gaps))
        tests = adjust([compare_detectors(ours, one, truth, paired_seeds=False) for one in theirs])
        found.append([test.verdict in ("ahead", "behind") for test in tests])
    found = np.array(found)
    family, power = found[:, :5].any(1).mean(), [found[:, a:b].mean() for a, b in ((5, 9), (9, 12), (12, 15))]
    with capsys.disabled():
        print(
            f"\nfamily of 15, {seeds} seeds: any false verdict {family:.3f}, power at 0.05, 0.1, 0.3",
            *np.round(power, 2),
        )
    assert family <= 0.08 and power[2] > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("sd", [0.05, 0.15, 0.4, 0.7])
def test_coverage_of_a_rows_interval_in_figures(seeds, sd, capsys):
    rng, inside, given = np.random.default_rng(seeds), [], 0
    truth_of = np.mean(expit(logit(0.87) + np.random.default_rng(0).normal(0, sd, 100_000)))
    for _ in range(300):
        (one,), truth = cells(rng, seeds, (0.0,), sd=sd)
        found = comparison._areas([one, one[:1]], truth)
        areas, error = found.areas[0], np.sqrt(np.diag(found.covariance))[:seeds]
        half = 1.96 * error / (areas * (1 - areas))
        low, high = over_trainings(areas, expit(logit(areas)[:, None] + half[:, None] * [-1, 1]))
        given += not np.isnan(low)
        inside += [low <= truth_of <= high] if not np.isnan(low) else []
    with capsys.disabled():
        print(f"\n{seeds} seeds of logit sd {sd}: covers {np.mean(inside):.2f}, given in {given / 3:.0f} %")
    assert np.mean(inside) >= 0.9 or given < 200


def test_two_seeds_that_scatter_decide_nothing_and_have_no_interval():
    (ours, theirs), truth = cells(np.random.default_rng(0), 2, (0.0, 0.0), sd=0.02)
    theirs = theirs + np.array([[0.0], [-2.5]]) * truth
    found = compare_detectors(ours, theirs, truth, paired_seeds=False)
    assert found.verdict == "withheld" and np.isnan([found.low, found.high, found.p]).all()
    assert re.fullmatch(r"no verdict: two seeds that scatter \(DIA 0.8.. and 0.8.., SimSID 0.8.. and 0.2..\)",
                        found.reading("DIA", "SimSID"))  # fmt: skip
    assert all(np.isnan(over_trainings(np.array([0.682, 0.453]), np.array([[0.64, 0.72], [0.4, 0.5]]))))
    (kept, held) = adjust([compare_detectors(ours, ours - truth, truth, paired_seeds=False), found])
    assert kept.verdict == "ahead" and kept.family == 2 and np.isnan(held.p)


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
@pytest.mark.parametrize("gap", [-0.6, 0.0, 0.1299])
def test_no_interval_leaves_what_a_difference_can_be(seeds, gap):
    made, truth = cells(np.random.default_rng(seeds), seeds, (gap, 0.0), n=24)
    found = compare_detectors(*made, truth, paired_seeds=False)
    assert np.isnan(found.low) or -1 <= found.low <= found.high <= 1
    assert not found.detectable > 1


def test_two_seeds_borrow_a_variance_and_three_do_not():
    made, truth = cells(np.random.default_rng(3), 3, (0.05, 0.0), sd=0.05)
    two, three = (compare_detectors(*(x[:n] for x in made), truth, paired_seeds=False) for n in (2, 3))
    assert (two.covers, three.covers) == (comparison.BORROWED, comparison.CROSSED)
    assert two.high - two.low < 0.15 and two.low < two.difference < two.high


def test_seeds_are_paired_from_four_on():
    made, truth = cells(np.random.default_rng(4), 4, (0.0, 0.0), sd=0.2)
    pairs = [
        compare_detectors(*(x[:n] for x in made), truth, paired_seeds=paired).p for n in (3, 4) for paired in (0, 1)
    ]
    assert pairs[0] == pairs[1] and pairs[2] != pairs[3]


def test_nothing_is_ahead_of_a_training_that_ended_early():
    found = dataclasses.replace(made(0.05, 0.01), doubts=("", "12% of its published steps, not converged"))
    assert found.reading("DIA", "RD4AD") == "no verdict: RD4AD, 12% of its published steps, not converged"
    assert found.swapped.verdict == "withheld" and dataclasses.replace(found, difference=-0.05).verdict == "behind"


def exact_error(images, seeds, shares=(1.0,), grid=100):
    """False leads at 5 % in the normal model: variance ``images`` known, the rest estimated from seeds."""
    middles = (np.arange(grid) + 0.5) / grid
    spread = [(1 - images) * s * chi2.ppf(middles, n - 1) / (n - 1) for s, n in zip(shares, seeds, strict=True)]
    errors = []
    for found in itertools.product(*spread):
        variance, df = comparison._satterthwaite(images, list(zip(found, [n - 1 for n in seeds], strict=True)))
        errors.append(2 * norm.sf(t.ppf(0.975, df) * np.sqrt(variance)))
    return np.mean(errors)


@pytest.mark.parametrize(
    ("seeds", "shares"), [((3,), (1,)), ((5,), (1,)), ((10,), (1,)), ((3, 3), (0.5, 0.5)), ((5, 5), (0.8, 0.2))]
)
@pytest.mark.parametrize("images", [0.1, 0.4, 0.8])
def test_error_lies_between_4_and_6_percent_whatever_the_share_of_the_images(seeds, shares, images):
    assert 0.04 <= exact_error(images, seeds, shares, grid=1000 if len(seeds) == 1 else 20) <= 0.06


def test_difference_and_counts():
    a, b = draw(np.random.default_rng(0), 3, 0.05)
    found = compare_detectors(a, b, ANOMALOUS, paired_seeds=False)
    by_seed = [auroc(x, ANOMALOUS) - auroc(y, ANOMALOUS) for x, y in zip(a, b, strict=True)]
    assert found.difference == pytest.approx(np.mean(by_seed))
    assert found.low < found.difference < found.high and found.verdict == "ahead"
    assert (found.n_normal, found.n_anomalous, *map(len, found.areas)) == (234, 390, 3, 3)
    assert found.covers == "images and seeds" and found.detectable > found.high - found.difference


@pytest.mark.parametrize("paired", [False, True])
def test_sides_swap_with_the_sign(paired):
    a, b = draw(np.random.default_rng(1), 4, 0.02)
    one, two = (compare_detectors(*sides, ANOMALOUS, paired_seeds=paired) for sides in ((a, b), (b, a)))
    assert (one.difference, one.low, one.p) == pytest.approx((-two.difference, -two.high, two.p))


def test_order_of_images_and_of_seed_pairs_does_not_matter():
    a, b = draw(np.random.default_rng(2), 4)
    rows, images = np.random.default_rng(0).permutation(4), np.random.default_rng(1).permutation(624)
    one = compare_detectors(a, b, ANOMALOUS, paired_seeds=True)
    two = compare_detectors(a[rows][:, images], b[rows][:, images], ANOMALOUS[images], paired_seeds=True)
    assert dataclasses.astuple(one)[:6] == pytest.approx(dataclasses.astuple(two)[:6])


def test_pairing_helps_where_seeds_move_both_sides():
    rng = np.random.default_rng(3)
    a, b = draw(rng, 5)
    both = rng.normal(0, 0.3, (5, 1)) * ANOMALOUS
    paired, independent = (compare_detectors(a + both, b + both, ANOMALOUS, paired_seeds=p) for p in (True, False))
    assert paired.high - paired.low < 0.5 * (independent.high - independent.low)


def test_without_spread_over_seeds_it_is_delong():
    a, b = (np.repeat(side, 3, axis=0) for side in draw(np.random.default_rng(4), 1, 0.02))
    known = paired_test(a[0], b[0], ANOMALOUS)
    for paired in (True, False):
        found = compare_detectors(a, b, ANOMALOUS, paired_seeds=paired)
        assert (found.difference, found.low, found.high, found.p) == pytest.approx(known)


@pytest.mark.parametrize(("seeds_a", "seeds_b"), [(1, 1), (1, 5), (5, 1)])
def test_one_seed_supports_no_lead_however_large(seeds_a, seeds_b):
    a, b = draw(np.random.default_rng(5), 5, 0.09)
    found = compare_detectors(a[:seeds_a], b[:seeds_b], ANOMALOUS, paired_seeds=seeds_a == seeds_b)
    assert found.low > 0 and found.covers == "images" and found.verdict == "undecided"
    assert found.reading("DIA", "CSI") == "one seed, so of these trained models alone: DIA is ahead"


def test_one_seed_each_has_the_interval_of_delong():
    a, b = draw(np.random.default_rng(6), 1)
    found = compare_detectors(a, b, ANOMALOUS, paired_seeds=True)
    known = paired_test(a[0], b[0], ANOMALOUS)
    assert (found.difference, found.low, found.high, found.p) == pytest.approx(known)


def test_one_seed_each_agrees_with_a_paired_bootstrap_over_images():
    a, b = draw(np.random.default_rng(9), 1, 0.05)
    found = compare_detectors(a, b, ANOMALOUS, paired_seeds=True)
    rng, values = np.random.default_rng(2), []
    for _ in range(600):
        rows = np.concatenate([rng.choice(np.flatnonzero(c), c.sum()) for c in (ANOMALOUS, ~ANOMALOUS)])
        values.append(auroc(a[0, rows], ANOMALOUS[rows]) - auroc(b[0, rows], ANOMALOUS[rows]))
    assert found.difference == pytest.approx(auroc(a[0], ANOMALOUS) - auroc(b[0], ANOMALOUS))
    assert (found.high - found.low) / 3.92 == pytest.approx(np.std(values), rel=0.15)


@pytest.mark.parametrize("paired", [True, False])
def test_a_side_that_draws_nothing_needs_one_row(paired):
    a, b = draw(np.random.default_rng(7), 5, 0.08)
    once = compare_detectors(a, b[:1], ANOMALOUS, paired_seeds=paired, fixed={"b"})
    often = compare_detectors(a, np.repeat(b[:1], 5, axis=0), ANOMALOUS, paired_seeds=paired)
    assert dataclasses.astuple(once)[:3] == pytest.approx(dataclasses.astuple(often)[:3], rel=0.02 if paired else 0.01)
    assert (len(once.areas[1]), once.verdict) == (1, "ahead")


def test_two_controls_are_compared_over_images():
    a, b = draw(np.random.default_rng(8), 1, 0.08)
    found = compare_detectors(a, b, ANOMALOUS, paired_seeds=False, fixed={"a", "b"})
    assert found.verdict == "ahead" and found.p == pytest.approx(paired_test(a[0], b[0], ANOMALOUS).p)


def test_a_detector_is_equal_to_itself():
    a, _ = draw(np.random.default_rng(9), 4)
    found = compare_detectors(a, 2 * a, ANOMALOUS, paired_seeds=True)
    assert (found.difference, found.low, found.high, found.p) == pytest.approx(
        (0, 0, 0, 1)
    ) and found.verdict == "equal"


def made(difference, se, seeds=5, **changes):
    """A comparison of 5 seeds with 40 degrees of freedom."""
    test = comparison._tested(difference, t(40, scale=se), 1)
    values = {"covers": "images and seeds", "n_normal": 234, "n_anomalous": 390, "areas": ((0.8,) * 5, (0.8,) * seeds)}
    return Comparison(difference, **test._asdict(), **(values | changes))


@pytest.mark.parametrize(
    ("difference", "se", "words"),
    [
        (0.030, 0.010, "DIA is ahead"),
        (-0.030, 0.010, "CSI is ahead"),
        (0.001, 0.003, "equal within 0.01"),
        (0.005, 0.002, "DIA is ahead, by less than 0.01"),
        (0.010, 0.010, "not told apart; a difference of 0.029 or more would have shown"),
    ],
)
def test_readings(difference, se, words):
    assert made(difference, se).reading("DIA", "CSI") == words


def test_detectable_difference_is_found_with_80_percent_power():
    c = made(0.0, 0.01)
    found = np.random.default_rng(0).normal(c.detectable, 0.01, 20_000) / 0.01
    assert np.mean(found > t.ppf(0.975, 40)) == pytest.approx(0.8, abs=0.01)


def test_a_family_is_adjusted_by_holm_and_its_intervals_stay_their_own():
    family = [made(0.040, 0.010), made(0.024, 0.010), made(0.001, 0.010)]
    adjusted = adjust(family)
    p = [c.p for c in family]
    assert [c.p for c in adjusted] == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    assert [(c.low, c.high) for c in adjusted] == [(c.low, c.high) for c in family]
    assert all(c.family == 3 for c in adjusted) and adjust([]) == [] and adjust(family[:1])[0] == family[0]
    a, b = draw(np.random.default_rng(5), 5)
    alone, many = (compare_detectors(a, b, ANOMALOUS, paired_seeds=False, family=n).detectable for n in (1, 15))
    assert many > alone


def test_equal_by_a_family_asks_more_of_each():
    family = [made(0.0, 0.0045)] * 15
    assert family[0].verdict == "equal" and {c.verdict for c in adjust(family)} == {"open"}


@pytest.mark.parametrize(
    ("a", "b", "labels", "options", "error", "words"),
    [
        ((3, 8), (2, 8), [0] * 4 + [1] * 4, {"paired_seeds": True}, UsageError, "3 and 2 seeds cannot be paired"),
        ((3, 8), (3, 8), [0] * 7 + [1], {}, DataError, "1 anomalous and 7 normal images: .* two of each"),
        ((3, 8), (3, 8), [0] * 4 + [1] * 4, {"fixed": {"c"}}, UsageError, "may name the sides 'a' and 'b' only"),
        ((1, 3, 8), (3, 8), [0] * 4 + [1] * 4, {}, DataError, r"scores a of shape \(1, 3, 8\)"),
        ((3, 8), (3, 8), [0] * 9, {}, DataError, "do not fit"),
    ],
)  # fmt: skip
def test_refuses(a, b, labels, options, error, words):
    rng = np.random.default_rng(0)
    with pytest.raises(error, match=words):
        compare_detectors(rng.normal(size=a), rng.normal(size=b), labels, **({"paired_seeds": False} | options))


# --- as the tables call it ---------------------------------------------------------------------------


def test_two_rows_are_compared_on_their_seeds_and_images(tmp_path):
    for seed in range(3):
        make_run(tmp_path, "DIA", seed, strength=3.0, n=200)
    make_run(tmp_path, "5-NN on pixels", strength=0.5, n=200)
    ours, theirs = collect(tmp_path).rows
    test = compare(ours, theirs)
    a, b = (np.stack([run.pair[0] for run in row.runs]) for row in (ours, theirs))
    known = compare_detectors(a, b, ours.runs[0].pair[1], paired_seeds=False, fixed="b")
    assert test.difference == pytest.approx(known.difference) and test.p == pytest.approx(known.p)
    assert (test.reading("DIA", "5-NN"), *map(len, test.areas)) == ("DIA is ahead", 3, 1)
    assert test.swapped.reading("5-NN", "DIA") == "DIA is ahead" and test.swapped.low == -test.high


# --- in sentences ------------------------------------------------------------------------------------


def test_a_conclusion_is_a_few_short_sentences_from_the_numbers():
    one_seed = made(0.05, 0.01, seeds=1, covers="images")
    family = {"A": made(0.06, 0.01), "B": made(0.0, 0.002), "C": made(-0.06, 0.01), "D": made(0.0, 0.01), "E": one_seed}
    said = sentences.conclusion("DIA", dict(zip(family, adjust(list(family.values())), strict=True)))
    assert said == [
        "DIA is ahead of A, equal within 0.01 to B and behind C.",
        "DIA is not told apart from D (a difference of 0.029 or more would have shown).",
        "One seed gives no verdict on the methods DIA and E.",
        "This trained DIA is ahead of E (DeLong, over images).",
        "This rests on 234 healthy and 390 anomalous images and 1 to 5 seeds a side, adjusted for 5 comparisons.",
    ]
    with pytest.raises(UsageError, match="compared with no rival"):
        sentences.conclusion("DIA", {})


def test_limits_name_what_the_numbers_do_not_cover():
    one_seed, two = made(0.05, 0.01, covers="images", seeds=1), made(0.01, 0.01, covers=comparison.BORROWED)
    said = " ".join(sentences.limits({"CSI": one_seed, "5-NN": two}))
    assert "One seed on a side (CSI)" in said and "borrowed from 51 cells of earlier reports" in said
    assert len(sentences.limits({"CSI": made(0.01, 0.01)})) == 1


@pytest.mark.parametrize(("n", "words"), [(1, "a"), (2, "a and b"), (3, "a, b and c"), (5, "a, b, c and 2 more")])
def test_lists_read_as_english(n, words):
    assert sentences.listed(list("abcde")[:n]) == words


def test_no_comparison_is_made_where_every_image_says_the_same():
    perfect, constant = np.tile([0.0, 1, 2, 3], (2, 1)), np.zeros((2, 4))
    with pytest.raises(DataError, match="every image says the same"):
        compare_detectors(perfect, constant, np.array([0, 0, 1, 1]), paired_seeds=False)
    assert compare_detectors(perfect, perfect, np.array([0, 0, 1, 1]), paired_seeds=True).p == 1


def test_an_interval_is_given_in_words_or_said_not_to_be():
    assert sentences.interval(-0.01, 0.03, lead="95 % interval ", sign=True) == "95 % interval −0.010 to +0.030"
    assert sentences.interval(np.nan, np.nan, lead="95 % interval ") == "no interval"
