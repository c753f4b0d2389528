"""Ranks over data sets: by hand, beside SciPy's Friedman, at its level under the null, and on the page."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from diawork.base.errors import DataError, NumericError
from diawork.evaluation import ranks
from diawork.evaluation.ranks import rank_over_sets
from diawork.report.sentences import over_sets
from tests.builders import toy_row


def test_ranks_by_hand():
    ranking = rank_over_sets(np.array([[0.9, 0.8, 0.7], [0.6, 0.6, 0.5]]))
    assert ranking.mean.tolist() == [1.25, 1.75, 3.0] and ranking.worst.tolist() == [1.5, 2.0, 3.0]


def test_critical_difference_is_demsars():
    assert rank_over_sets(np.random.default_rng(0).random((14, 4))).critical == pytest.approx(1.25, abs=0.005)


def test_p_is_friedmans_where_sets_are_many():
    auroc = np.random.default_rng(3).normal(size=(40, 4)) + [0.4, 0.2, 0, 0]
    assert rank_over_sets(auroc).p == pytest.approx(friedmanchisquare(*auroc.T).pvalue, abs=0.015)


def test_few_sets_err_no_more_often_than_they_say(monkeypatch):
    monkeypatch.setattr(ranks, "PERMUTATIONS", 199)
    draws = np.random.default_rng(0).random((400, 3, 4))
    assert np.mean([rank_over_sets(one).p < 0.05 for one in draws]) <= 0.075


def test_sentences():
    ordered = np.tile([0.9, 0.8, 0.7], (6, 1))
    said = rank_over_sets(ordered).sentence
    assert "the mean ranks of 3 rows differ" in said and "Nemenyi, 95%" in said
    assert "Over 2 data sets the mean ranks of 3 rows are not told apart" in rank_over_sets(ordered[:2]).sentence


def test_sets_that_share_their_anatomy_are_one_draw():
    ordered, clusters = np.tile([0.9, 0.8, 0.7], (6, 1)), ["lung"] * 3 + ["eye"] * 3
    alone, together = rank_over_sets(ordered), rank_over_sets(ordered, clusters)
    assert alone.p < 0.001 and together.p == pytest.approx(rank_over_sets(ordered[:2]).p, abs=0.02) and together.p > 0.1
    assert together.critical > alone.critical and (alone.mean == together.mean).all()
    assert "Over 6 data sets in 2 clusters" in together.sentence


def test_the_published_page_of_eleven_sets_shows_no_lead_over_its_four_clusters():
    report = json.loads((Path(__file__).parent.parent / "reports" / "travels.json").read_text("utf-8"))
    rows = [toy_row(**{name: row[name] for name in ("label", "auroc", "section", "dataset", "oracle")})
            for row in report["rows"]]  # fmt: skip
    found = over_sets(rows)
    assert "Over 11 data sets in 4 clusters" in found.sentence and 0.09 < found.p < 0.15


def test_rows_of_every_set_are_ranked_and_oracles_are_not():
    areas = [("a", "DIA", 0.9), ("a", "CSI", 0.8), ("a", "looked", 0.95), ("a", "alone", 0.7)]
    areas += [("b", "DIA", 0.6), ("b", "CSI", 0.7), ("b", "looked", 0.95)]
    rows = [toy_row(label, area, section=section, oracle=label == "looked") for section, label, area in areas]
    found = over_sets(rows)
    assert [(row["label"], row["mean_rank"], row["lowest_on"]) for row in found.rows] == [
        ("CSI", 1.5, "b"), ("DIA", 1.5, "b"),
    ]  # fmt: skip
    assert over_sets(rows[:4]) is None


@pytest.mark.parametrize(
    ("auroc", "error", "words"),
    [(np.ones((1, 3)), DataError, "two sets and two rows"), (np.full((2, 2), np.nan), NumericError, "not finite")],
)
def test_refuses(auroc, error, words):
    with pytest.raises(error, match=words):
        rank_over_sets(auroc)
