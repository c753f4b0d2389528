"""Tables, sentences and the page, from made-up run folders."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from diawork import figures
from diawork.base.errors import DataError, UsageError
from diawork.evaluation.comparison import CROSSED, IMAGES, Comparison, _tested
from diawork.evaluation.metrics import auroc
from diawork.figures import player_html
from diawork.report import page as report
from diawork.report.page import write_html
from diawork.report.pictures import ALL, followed, shortcuts
from diawork.report.published import beside_paper, beside_published, paper_comparison, published
from diawork.report.rows import SEARCHED, Place, collect, compare, compare_all, joined, rows_of
from diawork.report.sentences import agreement, focus_of, headline
from diawork.sweeps.file import list_sweeps
from diawork.sweeps.sweep import Sweep
from tests.builders import CONTROL, ORACLE, PNG, make_run, make_suite, numbers, toy_row, write_evidence

NO_ENDS = {f"{m}_{end}": None for m in ("auroc", "auprc", "fpr95") for end in ("low", "high")}  # as a file says it
ONE_ANOMALY = {"auroc": 1.0, "auprc": 1.0, "fpr95": 0.0, "n_normal": 20, "n_anomalous": 1} | NO_ENDS


@pytest.fixture
def suite(tmp_path):
    return make_suite(tmp_path / "runs")


@pytest.fixture
def quick(monkeypatch):
    """Leave out the drawing where a test reads the words alone."""
    monkeypatch.setattr(figures, "png_bytes", lambda figure, dpi=0: PNG)
    monkeypatch.setattr(figures, "dissolve_frames", lambda inputs, stacks, ts, dpi: [PNG] * len(ts))
    for name in ("roc", "score_histogram", "loss_curve", "nearest_neighbours"):
        monkeypatch.setattr(figures, name, lambda *arrays, **options: None)


def by_method(results):
    """The rows of one data set by the names of their methods."""
    return {row.method: row for row in results.rows}


class Page(HTMLParser):
    """Everything on a page that could load, run or lead somewhere."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.urls, self.handlers, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data", "xlink:href")]
        self.handlers += [key for key, _ in attrs if key.startswith("on")]

    def handle_data(self, data):
        self.text += re.sub(r"\s+", " ", data)


# --- tables -----------------------------------------------------------------------------------------


def test_one_row_a_finished_run(suite):
    results = collect(suite)
    assert len(results.runs) == results.found == 8
    assert {run.method for run in results.runs} == {"dia", "csi", "stats_knn", "oracle_statistic"}


def test_only_finished_runs_give_numbers(suite):
    for name, status in (
        ("a", {"state": "failed", "error": "NaN"}),
        ("b", {"state": "running"}),
        ("c", {"state": "done"}),
    ):
        (suite / name).mkdir()
        (suite / name / "status.json").write_text(json.dumps(status))
    results = collect(suite)
    assert results.missing == (("a", "failed: NaN"), ("b", "running"), ("c", "no result"))
    assert (len(results.runs), results.found) == (8, 11)


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 9}', '{"schema": 1}', '{"schema": 1, "dataset": {}}'])
def test_an_unreadable_run_is_listed_with_its_reason(suite, content):
    folder = make_run(suite, "DIA", 9)
    (folder / "result.json").write_text(content)
    results = collect(suite)
    assert [name for name, reason in results.missing if reason] == [folder.name]
    assert len(results.runs) == 8


def test_numbers_that_are_not_finite_do_not_count(tmp_path):
    path = make_run(tmp_path) / "result.json"
    path.write_text(re.sub(r'("auroc": )[\d.]+', r"\1NaN", path.read_text()))
    assert "not finite" in collect(tmp_path).missing[0][1]


def test_what_is_a_control_is_what_the_run_says_or_the_registry_knows(tmp_path):
    make_run(tmp_path, "NN-flow")
    make_run(tmp_path, "stats", control=True)
    make_run(tmp_path, CONTROL)  # of a version that did not write it
    controls = {row.label: row.control for row in collect(tmp_path).rows}
    assert controls == {"NN-flow": False, "stats": True, CONTROL: True}


def older(scores, anomalous):
    """A run of a version that knew AUROC and FPR alone."""
    row = numbers(scores, anomalous)
    kept = ("auroc", "auroc_low", "auroc_high", "fpr95", "n_normal", "n_anomalous")
    return {name: row[name] for name in kept}


def test_a_metric_that_joined_later_is_a_gap_in_an_older_run(quick, tmp_path):
    make_run(tmp_path, "CSI", summary=older)
    make_run(tmp_path, "DIA")
    table = collect(tmp_path).summary().set_index("label")
    gaps = table.loc["CSI", ["auprc", "auprc_low", "fpr95_low", "f1"]]
    assert gaps.isna().all() and table.loc["CSI", ["auroc", "fpr95"]].notna().all()
    assert table.loc["DIA"][gaps.index].notna().all()
    page = write_html(tmp_path, tmp_path / "r.html", title="t", asked="a").read_text("utf-8")
    assert "<td>–<small>no interval</small></td>" in page and "2 of 2 runs finished" in page


@pytest.mark.parametrize("value", [0.5, 3, None, "high", {"a": 1}, [1, 2]])
def test_a_metric_that_nobody_here_knows_is_no_reason_to_refuse_a_run(tmp_path, value):
    make_run(tmp_path, summary=lambda scores, anomalous: numbers(scores, anomalous) | {"surprise": value})
    results = collect(tmp_path)
    assert len(results.runs) == len(results.rows) == 1
    assert ("surprise" in results.runs[0].metrics["test"]) == isinstance(value, int | float)


@pytest.mark.parametrize("name", ["auroc", "auroc_low", "n_anomalous"])
def test_without_its_auroc_and_counts_a_run_gives_no_number(tmp_path, name):
    make_run(tmp_path, summary=lambda *arrays: {k: v for k, v in numbers(*arrays).items() if k != name})
    results = collect(tmp_path)
    assert not results.runs and name in results.missing[0][1]


def test_a_page_says_where_no_interval_can_be_given(quick, tmp_path):
    make_run(tmp_path, summary=lambda *_: ONE_ANOMALY)
    page = Page(write_html(tmp_path, tmp_path / "r.html", title="t", asked="a").read_text("utf-8")).text
    assert "DIA has the highest AUROC, 1.000 (no interval)" in page and "nan" not in page
    assert "No interval can be given for the AUROC of DIA: a class has a single image." in page


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        collect(tmp_path / "nowhere")


def test_means_and_spread_over_seeds(suite):
    row = by_method(collect(suite))["dia"]
    values = np.array([run.metric("auroc") for run in row.runs])
    assert row.auroc.value == pytest.approx(values.mean())
    assert row.auroc.sd == pytest.approx(np.std(values, ddof=1))
    assert row.auroc.low < values.min() and row.auroc.high > values.max() and row.auroc.seeds == tuple(values)
    assert (row.seeds, row.n_normal, row.n_anomalous) == (3, 20, 40)


def test_best_first_and_oracles_last(suite):
    *fair, oracle = collect(suite).rows
    areas = [row.auroc.value for row in fair]
    assert oracle.oracle and oracle.auroc.value > max(areas) and areas == sorted(areas, reverse=True)


def test_different_settings_are_never_averaged(suite):
    make_run(suite, "DIA", 0, settings={"loss.mask": "shifted_removed"})
    rows = {(row.method, row.variant): row.label for row in collect(suite).rows}
    assert rows["dia", "loss.mask naive"] == "DIA (loss.mask naive)" and ("dia", "loss.mask shifted_removed") in rows
    assert rows["csi", ""] == "CSI"


def test_different_data_under_one_name_are_kept_apart(suite):
    make_run(suite, "DIA", 0, data="other!")
    found = collect(suite)
    assert len(found.sections) == 2 and set(found.curves()) <= set(found.styles)


def test_the_same_images_opened_at_another_size_stand_in_one_table(suite):
    make_run(suite, "PatchCore", 0, data="larger", settings={"data.size": 64})
    found = collect(suite)
    assert len(found.sections) == 1 and len(found.paired("PatchCore", "dia")) == 1


def test_of_equal_runs_the_newest_counts(suite, tmp_path):
    make_run(tmp_path / "again", "DIA", 0, strength=0.0, created="2027-01-01")
    results = collect([suite, tmp_path / "again"])
    assert len(results.runs) == 9
    row = by_method(results)["dia"]
    assert (row.seeds, row.auroc.sd > 0.1) == (3, True)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["fixed epoch 10"] * 3, "fixed epoch 10"),
        (["best validation AUROC, epoch 9", "best validation AUROC, epoch 10"], "best validation AUROC, epoch 9, 10"),
        (["fixed epoch 10", "no training"], "fixed epoch 10; no training"),
    ],
)
def test_selection_rules_are_joined(rules, said):
    assert joined(rules) == said


def test_paired_difference_is_that_of_the_means(suite):
    results = collect(suite)
    row, rows = results.paired("dia", "csi").iloc[0], by_method(results)
    assert row["difference"] == pytest.approx(rows["dia"].auroc.value - rows["csi"].auroc.value)
    assert row["low"] < row["difference"] < row["high"]
    assert (row["n_normal"], row["n_anomalous"], *map(len, row["areas"])) == (20, 40, 3, 3)
    assert row["covers"] == "images and seeds"


def test_paired_against_itself_is_zero(suite):
    row = collect(suite).paired("stats_knn", "stats_knn").iloc[0]
    assert (row["difference"], row["p"]) == (0, 1)


def test_paired_refuses_unknown_names_and_other_images(suite):
    with pytest.raises(UsageError, match="Did you mean"):
        collect(suite).paired("DIA", "CS")
    make_run(suite, "RD4AD", n=30)
    with pytest.raises(DataError, match="same images"):
        collect(suite).paired("dia", "rd4ad")


def test_curves_hold_one_pair_a_seed(suite):
    found = collect(suite).curves()
    assert {label: len(pairs) for label, pairs in found.items()} == {"DIA": 3, "CSI": 3, CONTROL: 1, ORACLE: 1}


# --- the paper --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "method", "dataset", "setting", "metric", "value"),
    [
        ("t1", "DIA", "pneumoniamnist", "", "auroc", 0.903),
        ("t1", "CFA", "kvasir_polyp", "", "auroc", 0.354),
        ("t2", "DIA", "retinal_oct", "shift cutperm", "auroc", 0.890),
        ("t3", "DIA", "aptos2019", "dissolving size 64 px", "auroc", 0.937),
        ("ratio", "DIA", "cifar100", "data ratio 0.1", "auroc", 0.832),
        ("heuristics", "Gaussian blur", "aptos2019", "shift cutperm", "auroc", 0.942),
        ("simsid_zhanglab", "SimSID", "zhanglab", "", "f1", 0.880),
        ("simsid_covidx", "CutPaste", "covidx", "", "accuracy", 0.831),
    ],
)
def test_published_numbers(table, method, dataset, setting, metric, value):
    rows = pd.DataFrame(published(table))
    key = {"method": method, "dataset": dataset, "setting": setting, "metric": metric}
    found = rows[np.logical_and.reduce([rows[k] == v for k, v in key.items()])]
    assert list(found["value"]) == [pytest.approx(value)]


def test_the_headline_gain_follows_from_the_readme_value():
    rows = pd.DataFrame(published("t1")).pivot(index="method", columns="dataset", values="value")
    ratio = (rows.loc["DIA"] / rows.loc["CSI"]).drop("retinal_oct")
    assert (ratio.sum() + 0.919 / rows.loc["CSI", "retinal_oct"]) / 6 - 1 == pytest.approx(0.184, abs=5e-4)


def test_every_published_number_has_a_source_and_its_footnotes():
    rows = pd.DataFrame(published())
    assert rows["source"].str.len().min() > 10
    assert rows["value"].between(0, 1)[rows["metric"] != "cost"].where(rows["dataset"].notna(), True).all()
    dia = rows[(rows["table"] == "t1") & (rows["method"] == "DIA") & (rows["dataset"] == "retinal_oct")].iloc[0]
    assert any("0.919" in remark for remark in dia["remarks"])
    assert rows[(rows["table"] == "t1") & (rows["method"] == "UniAD")].iloc[0]["marks"] == {
        "‡": "does not support 32 x 32 images; the MNIST sets were run at 128 px"
    }


def test_an_unknown_published_table_is_refused():
    with pytest.raises(UsageError, match="Did you mean 't1'"):
        published("t11")


def test_ours_and_theirs_stay_in_columns_of_their_own(suite):
    results = collect(suite)
    both = paper_comparison(results).set_index("label")
    assert both.loc["DIA", "published"] == 0.903
    assert both.loc["DIA", "difference"] == pytest.approx(both.loc["DIA", "auroc"] - 0.903)
    assert both.loc["DIA", "difference_low"] < both.loc["DIA", "difference"]
    assert np.isnan(both.loc["RD4AD", "auroc"])
    assert CONTROL not in both.index and not any(one.ours and one.ours.control for one in beside_paper(results.rows))


def variants(root):
    """DIA under two shifts as a sweep names them, the other than the published one ahead on test."""
    for shift, strength in (("rotation", 0.6), ("cutperm", 2.0)):
        settings = {"detector": "dia", "views.shift": shift, "train.epochs": 30}
        make_run(root, "DIA", strength=strength, settings=settings, dataset="kvasir_polyp")
    runs = collect(root).runs
    places = [Place(f"DIA, {run.settings['views.shift']}", (), None) for run in runs]
    return rows_of([run.model_copy(update={"place": place}) for run, place in zip(runs, places, strict=True)])


def test_a_published_row_stands_beside_the_row_that_declares_it_not_beside_the_best(tmp_path):
    rows = variants(tmp_path)
    table = beside_published("t2", rows, {"DIA, rotation": ["DIA", "shift rotation"]})
    assert [(one.label, one.theirs.setting) for one in table.ran] == [("DIA, rotation", "shift rotation")]
    assert table.ran[0].ours.auroc.value < max(row.auroc.value for row in rows)


def test_a_row_beside_a_published_one_shows_the_settings_that_differ(tmp_path):
    repeats = {"DIA, cutperm": ["DIA", ""], "DIA, rotation": ["DIA", "shift rotation"]}
    table = beside_published("t2", variants(tmp_path), repeats)
    differs = next(one.differs for one in table.ran if one.label == "DIA, rotation")
    assert "train.epochs 30, published 200" in differs and not any("views.shift" in one for one in differs)


def test_the_rules_of_papers_stand_where_their_detectors_do(tmp_path, quick):
    make_run(tmp_path / "runs", "DIA")
    make_run(tmp_path / "runs", "SimSID", strength=0.5)

    def text():
        return Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text

    with_one = text()
    assert "F1 and accuracy as SimSID takes them: oracles" in with_one and "rule of SCRD4AD" not in with_one
    make_run(tmp_path / "runs", "SCRD4AD", strength=0.7)
    assert "as SCRD4AD and SimSID take them" in text()


def test_without_their_detectors_no_rule_of_a_paper_is_shown(suite, tmp_path, quick):
    assert "oracles" not in Page(write_html(suite, tmp_path / "r.html", title="t", asked="a").read_text()).text


def test_ours_on_the_same_test_images_stands_beside_the_published_auroc_alone(tmp_path):
    make_run(tmp_path, "SimSID", settings={"detector": "simsid"}, dataset="chestxray224")
    table = beside_published("simsid_zhanglab", collect(tmp_path).rows, {"SimSID": ["SimSID"]})
    (beside,) = table.ran
    assert beside.theirs.metric == "auroc" and beside.theirs.method == "SimSID"
    assert beside.difference.value == pytest.approx(beside.ours.auroc.value - 0.911)
    assert any("554 (88.8 %) of its 624 images" in remark for remark in table.remarks)


def test_what_a_shipped_sweep_repeats_is_published():
    for sweep in map(Sweep.load, list_sweeps()):
        numbers = [one for table in sweep.published for one in published(table)]
        repeated = {(row[0], " ".join(row[1:])) for row in sweep.repeats.values()}
        assert repeated <= {(one.method, one.setting) for one in numbers}, sweep.name


def test_a_data_set_without_published_numbers_compares_nothing(tmp_path):
    make_run(tmp_path, dataset="phantom")
    assert paper_comparison(collect(tmp_path)).empty


# --- sentences --------------------------------------------------------------------------------------


def told(rows, difference=None, se=0.005, **changes):
    """The headline for rows (detector, auroc, control, oracle) and a comparison of the first with the second."""
    made = [toy_row(label, area, control=control, oracle=oracle) for label, area, control, oracle in rows]
    rivals = {} if difference is None else {made[1]: compared(difference, se, **changes)}
    return " ".join(headline(sorted(made, key=lambda row: (row.oracle, -row.auroc.value)), rivals))


def compared(difference, se, covers=CROSSED, seeds=3):
    test = _tested(difference, t(40, scale=se), 1)
    areas = ((0.8,) * seeds,) * 2
    return Comparison(difference, **test._asdict(), covers=covers, n_normal=234, n_anomalous=390, areas=areas)


DIA_ROW, CSI_ROW = ("DIA", 0.85, False, False), ("CSI", 0.83, False, False)


@pytest.mark.parametrize(
    ("other", "test", "says"),
    [
        (CSI_ROW, {"difference": 0.02}, "DIA is ahead of CSI. This rests on 234 healthy and 390 anomalous images"),
        (CSI_ROW, {"difference": 0.02, "se": 0.02}, "DIA is not told apart from CSI (a difference of 0.05"),
        (CSI_ROW, {"difference": 0.001, "se": 0.002}, "DIA is equal within 0.01 to CSI."),
        (CSI_ROW, {"difference": -0.03}, "DIA is behind CSI."),
        (("stats", 0.8, True, False), {"difference": 0.05}, "DIA clears the best label-free control, stats."),
        (("stats", 0.84, True, False), {"difference": 0.01, "se": 0.01}, "DIA has not shown"),
        (("stats", 0.9, True, False), {"difference": -0.05}, "It is a trivial control"),
    ],
)
def test_headline_says_who_is_ahead_and_what_cannot_be_told(other, test, says):
    assert says in told([DIA_ROW, other], **test)


def test_one_seed_supports_no_lead_however_small_p_is():
    said = told([DIA_ROW, CSI_ROW], difference=0.05, se=0.001, covers=IMAGES, seeds=1)
    assert "One seed gives no verdict on the methods DIA and CSI." in said and ". DIA is ahead" not in said
    assert "This trained DIA is ahead of CSI (DeLong, over images)." in said


def test_the_page_of_one_seed_names_nobody_ahead(quick, tmp_path):
    make_run(tmp_path / "runs", "DIA", strength=2.5)
    make_run(tmp_path / "runs", "CSI", strength=0.5)
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert "One seed gives no verdict on the methods DIA and CSI." in text
    assert "one seed, so of these trained models alone: DIA is ahead" in text and ". DIA is ahead" not in text


def test_every_comparison_of_a_data_set_is_adjusted_for_their_number(suite):
    rows = by_method(collect(suite))
    tests, failures = compare_all([(rows["dia"], rows[other]) for other in ("csi", "stats_knn")])
    alone = compare(rows["dia"], rows["csi"])
    assert not failures and {one.test.family for one in tests} == {2}
    assert tests[0].test.p >= alone.p and (tests[0].test.low, tests[0].test.high) == (alone.low, alone.high)
    assert tests[0].test.detectable > alone.detectable


@pytest.mark.parametrize(("area", "says"), [(0.5, "small"), (0.9, "how much training alone moves")])
def test_headline_is_cautious(area, says):
    row = toy_row("DIA", area, half=0.08, sd=float("nan"), seeds=1, n_normal=9, n_anomalous=9)
    assert says in " ".join(headline([row], {}))


def test_the_page_names_first_what_is_below_chance_and_why(quick, tmp_path):
    check = {"auroc": 0.4, "low": 0.35, "high": 0.45, "n": 99, "verdict": "below chance", "follows": ["mean", -0.9]}
    make_run(tmp_path / "runs", "DIA", strength=-2.0, self_check=check | {"findings": ["It is below chance."]})
    make_run(tmp_path / "runs", CONTROL, strength=1.0)
    page = write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()
    text = Page(page).text
    assert "DIA is below chance" in text and "follows the image's mean (rank correlation −0.90)" in text
    assert text.index("DIA is below chance") < text.index("has the highest AUROC")
    assert "1 run does not notice pseudo-anomalies" in text
    assert "DIA, seed 0: It is below chance." in text and "0.400" in text


def test_the_page_says_how_features_spread_and_whether_the_shift_was_a_task(tmp_path):
    facts = {"shift_accuracy": 0.96, "shifts": 4, "features": [0.61, 14.2], "follows": ["mean", 0.1]}
    check = {"auroc": 0.8, "low": 0.7, "high": 0.9, "n": 99, "verdict": "notices", "facts": facts}
    probe = {"shift": "rotation", "accuracy": 0.9, "se": 0.02, "moved": [0.05, 0.9, 1.0], "n": 99}
    for seed in (0, 1):
        make_run(tmp_path / "runs", "DIA", seed=seed, self_check=check, shift_probe=probe)
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert "in all directions), on healthy validation images: DIA 0.61." in text and "DIA 96% (chance 25%)" in text
    assert text.count("named 90% ± 2% (standard error) of the rotation shifts") == 1
    assert "Shift 1 is near a symmetry" in text


def test_a_run_that_tracked_test_shows_what_each_rule_would_take(tmp_path, quick):
    epochs = {"1": {"test": 0.91, "val": 0.8, "pseudo": 0.9}, "2": {"test": 0.88, "val": 0.9, "pseudo": 0.6}}
    make_run(tmp_path / "runs", "DIA", epochs=epochs)
    make_run(tmp_path / "runs", "CSI")
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text
    table = text.split("Oracle: which epoch each rule would take")[1].partition("This table looks")[0]
    assert "DIA0.910+0.0000.880−0.0300.880−0.0300.910" in table.replace(" ", "") and "CSI" not in table


def test_a_page_over_several_sets_ranks_the_rows_that_ran_on_all(tmp_path, quick):
    for dataset in ("pneumoniamnist", "phantom"):
        make_run(tmp_path / "runs", "DIA", dataset=dataset)
        make_run(tmp_path / "runs", CONTROL, dataset=dataset, strength=0.2)
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert "Over 2 data sets the mean ranks of 2 rows are not told apart" in text
    assert "meanrank1.002.00" in text.replace(" ", "")


def test_of_many_sets_a_page_shows_one_table_and_folds_the_rest(tmp_path, quick):
    for dataset in ("pneumoniamnist", "phantom", "phantom_oct_ring", "phantom_oct_spot"):
        make_run(tmp_path / "runs", "DIA", dataset=dataset)
        make_run(tmp_path / "runs", CONTROL, dataset=dataset, strength=0.2)
    page = write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()
    assert page.count('<table class="matrix">') == 1 and len(re.findall('<td class="best">', page)) == 4
    unfolded = re.sub(r"<details.*</details>", "", page, flags=re.DOTALL)
    assert "phantom oct ring" in unfolded and "Results on" not in unfolded


def test_the_self_check_is_set_beside_the_labels_on_a_page_of_any_number_of_rows():
    areas, checks = np.linspace(0.6, 0.9, 7), np.linspace(0.7, 0.5, 7)
    pairs = enumerate(zip("abcdefg", areas, checks, strict=True))
    rows = [toy_row(label, area, check=check, control=i == 6) for i, (label, area, check) in pairs]
    taken, ranked = agreement(rows)
    assert taken == (
        "Of 7 rows (1 control among them) the self-check would take a (test AUROC 0.600; the best has 0.900)."
    )
    assert ranked.startswith("It ranks them backwards: rank correlation −1.00") and ranked.endswith("p < 0.001).")
    assert agreement(rows[:2]) == ["Of 2 rows the self-check would take a (test AUROC 0.600; the best has 0.650)."]
    assert ", which may be chance: rank correlation" in agreement(rows[:4])[1] and agreement(rows[:1]) == []
    assert len(agreement([toy_row(row.label, row.auroc.value, check=0.5) for row in rows])) == 1


def test_a_row_whose_seeds_scatter_shows_its_seeds_and_no_interval(quick, tmp_path):
    for seed, strength in enumerate((0.2, 2.5)):
        make_run(tmp_path / "runs", "SimSID", seed, strength=strength)
        make_run(tmp_path / "runs", "CSI", seed)
    rows = {row.label: row for row in collect(tmp_path / "runs").rows}
    assert not rows["SimSID"].auroc.bounded and rows["SimSID"].auroc.seeds == tuple(
        run.metric("auroc") for run in rows["SimSID"].runs
    )
    low, value, high = rows["CSI"].auroc.low, rows["CSI"].auroc.value, rows["CSI"].auroc.high
    assert low < min(rows["CSI"].auroc.seeds) < value < max(rows["CSI"].auroc.seeds) < high
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert re.search(r"0\.\d{3} ± 0\.\d{3}seeds 0\.\d{3} and 0\.\d{3}", text) and "two seeds that scatter" in text


def test_each_kind_of_anomaly_is_set_against_all_healthy_images(quick, tmp_path):
    folder = make_run(tmp_path / "runs", "DIA")
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert "Each kind of anomaly" not in text  # one kind alone
    path = folder / "scores.csv"
    table = pd.read_csv(path)
    table["class_name"] = np.where(table["anomalous"] == 0, "healthy", np.where(table["index"] % 2, "drusen", "fluid"))
    table.to_csv(path, index=False)
    page = write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()
    (row,), healthy = collect(tmp_path / "runs").rows, table["anomalous"] == 0
    kept = table[healthy | (table["class_name"] == "fluid")]
    area = auroc(kept["score"].to_numpy(), kept["anomalous"].to_numpy())
    told = Page(page).text.split("Each kind of anomaly")[1]
    assert f"{area:.3f}" in told.partition("AUROC of one kind")[0] and f"{row.sensitivity(0.95):.3f}" in told
    limit = np.sort(table.loc[healthy, "score"])[int(np.ceil(0.95 * healthy.sum())) - 1]
    assert row.sensitivity(0.95) == np.mean(table.loc[~healthy, "score"] > limit)


@pytest.mark.parametrize(
    ("strength", "says"), [(1.3, "At this size no difference between DIA and CSI was found."), (-1.0, "ahead of CSI")]
)
def test_the_page_says_whether_dissolving_pays(quick, tmp_path, strength, says):
    for seed in range(3):
        make_run(tmp_path / "runs", "DIA", seed, strength=1.4)
        make_run(tmp_path / "runs", "CSI", seed, strength=strength)
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert says in text.partition("Does dissolving pay? ")[2][:60]


def test_one_seed_says_nothing_about_whether_dissolving_pays(quick, tmp_path):
    make_run(tmp_path / "runs", "DIA", strength=2.0)
    make_run(tmp_path / "runs", "CSI", strength=0.2)
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert "Does dissolving pay? One seed cannot tell." in text


def test_nothing_is_said_to_be_ahead_of_a_training_that_ended_early(quick, tmp_path):
    for seed in range(3):
        make_run(tmp_path / "runs", "DIA", seed, strength=2.0)
        make_run(tmp_path / "runs", "RD4AD", seed, strength=0.0, published_share=0.12)
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert "Nothing is said to be ahead of RD4AD (12% of its published steps, not converged)." in text
    assert "no verdict: RD4AD, 12% of its published steps, not converged" in text and "is ahead" not in text


def test_the_focus_is_chosen_on_val_not_on_test():
    a, b = (toy_row(v, area, method="dia", variant=v, val=val) for v, area, val in (("a", 0.9, 0.7), ("b", 0.8, 0.8)))
    assert focus_of([a, b]) is b
    plain = toy_row("DIA", 0.7, val=0.1)
    assert focus_of([a, b, plain]) is plain


def test_headline_of_oracles_alone_names_no_winner():
    assert "none of them is a detector" in told([("looked", 0.9, True, True)])


def test_headline_calls_an_oracle_a_bar():
    said = told([DIA_ROW, ("looked", 0.91, True, True)])
    assert "Reference only, chosen with the test labels: looked has 0.910" in said
    assert "no label-free detector here reaches it" in said
    assert "DIA lies above it" in told([DIA_ROW, ("looked", 0.80, True, True)])


# --- the page ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    asked = "diawork run --seeds 3"
    return write_html(make_suite(root / "runs"), root / "r" / "page.html", title="DIA on X", asked=asked).read_text()


def test_the_page_holds_what_it_must(page):
    text = Page(page).text
    for said in (
        "DIA on X", "diawork run --seeds 3", "8 of 8 runs finished", "val is used for selection with its labels",
        "test is scored once", "not for clinical use", "CC BY 4.0", "val has labels", "Beside the paper", "oracle",
        "Where it fails", "What the model dissolves", "Training", "torch",
    ):  # fmt: skip
        assert said in text, said


def test_the_page_loads_nothing_and_runs_nothing(page):
    found = Page(page)
    assert all(url.startswith(("data:image/png;base64,", "#", "./")) for url in found.urls)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(found.tags)
    assert not found.handlers
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_page_is_small(page):
    assert len(page.encode()) < 5_000_000


HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg/onload=alert(1)>', "{{ 7*7 }}",
    "javascript:x", "\u202egnp.exe", "a\x1b[31mb\x00",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(quick, tmp_path, text):
    make_run(tmp_path, text, dataset=text.replace("/", "_").replace("\x00", ""), settings={text: text}, selection=text,
             data=text)  # fmt: skip
    out = write_html(tmp_path, tmp_path / "r.html", title=text, asked=text)
    found = Page(out.read_text("utf-8"))
    assert not {"script", "svg"} & set(found.tags) and not found.handlers
    assert all(url.startswith(("data:image/png;base64,", "./")) for url in found.urls)
    assert "49" not in found.text.partition("What was asked")[2][:40]
    assert "\u202e" not in found.text and "\x1b" not in found.text


def test_a_partial_suite_says_n_of_all(quick, suite, tmp_path):
    (suite / "killed").mkdir()
    (suite / "killed" / "config.json").write_text("{}")
    text = Page(write_html(suite, tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert "8 of 9 runs finished" in text
    assert "killed: never started. It contributes no number." in text


def test_no_finished_run_still_gives_a_page(tmp_path):
    (tmp_path / "runs").mkdir()
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert "No run has finished" in text


def test_a_damaged_picture_is_named_and_the_rest_stays(quick, suite, tmp_path):
    for path in suite.rglob("evidence.npz"):
        path.write_bytes(b"PK\x03\x04 torn")
    text = Page(write_html(suite, tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert "A picture is missing" in text
    assert "ROC curves" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scores.csv", "index,score\n1,2\n"),
        ("scores.csv", "\x00\x01"),
        ("result.json", "3"),
        ("result.json", '{"schema": 1, "metrics": {"test": []}}'),
        ("config.json", "[1]"),
        ("status.json", "7"),
        ("metrics.jsonl", '{"stage": "train", "step": "x", "loss": {"a": 1}}\n[1]\n'),
        ("oracle_epochs.json", '{"one": {"test": "high"}}'),
        ("oracle_epochs.json", "[2]"),
        ("evidence.npz", "PK torn"),
    ],
)
def test_one_damaged_run_keeps_no_page_of_others_from_being_written(quick, tmp_path, name, content):
    for seed in (0, 1):
        make_run(tmp_path / "runs", "CSI", seed)
    (make_run(tmp_path / "runs", "DIA") / name).write_text(content)
    text = Page(write_html(tmp_path / "runs", tmp_path / "r.html", title="t", asked="a").read_text("utf-8")).text
    assert "CSI" in text and re.search("[23] of 3 runs finished", text)


FIRST_SCREEN = re.compile(r"<header>.*?</header>|<div class=.answer.>.*?</div>", re.DOTALL)


def test_no_sentence_of_the_first_screen_is_long_and_none_names_a_config_key(page):
    shown = " ".join(FIRST_SCREEN.findall(page))
    sentences = re.split(r"[.:;?] |</(?:p|li|summary|strong|h1)>", shown)
    words = [re.sub(r"<[^>]*>", " ", sentence).split() for sentence in sentences]
    assert [" ".join(one) for one in words if len(one) > 30] == []
    headings = " ".join(re.findall(r"<h\d>(.*?)</h\d>|<th[ >](.*?)</th>", page, re.DOTALL)[0])
    assert not re.search(r"\b(train|dissolve|data|loss|views|score|diffusion)\.\w+", headings)


def test_no_interval_on_a_page_leaves_its_range(page):
    text = Page(page).text
    ends = re.findall(r"([+−]?\d\.\d{3}) to ([+−]?\d\.\d{3})", text)
    numbers = np.array([[float(end.replace("−", "-")) for end in pair] for pair in ends])
    assert len(numbers) > 10 and (numbers[:, 0] <= numbers[:, 1]).all() and (np.abs(numbers) <= 1).all()


def test_a_page_too_large_gives_up_its_pictures_first(quick, suite, tmp_path, monkeypatch):
    full = write_html(suite, tmp_path / "full.html", title="t", asked="a").stat().st_size
    monkeypatch.setattr(report, "MAX_BYTES", full - 1)
    page = write_html(suite, tmp_path / "r.html", title="t", asked="a").read_text()
    assert len(page) < full
    assert 'class="player"' not in page
    assert "Pictures were left out" in page


def test_runs_below_the_page_are_linked_and_others_are_not(quick, suite, tmp_path):
    below = write_html(suite, suite / "r.html", title="t", asked="a").read_text()
    assert re.search(r'href="\./pneumoniamnist-\d+-s0/config.json"', below)
    (tmp_path / "elsewhere").mkdir()
    beside = write_html(suite, tmp_path / "elsewhere" / "r.html", title="t", asked="a").read_text()
    assert "href=" not in beside
    assert str(tmp_path) not in beside


def test_mixed_versions_are_said(quick, suite, tmp_path):
    path = next(suite.rglob("config.json"))
    path.write_text(path.read_text().replace('"2.6"', '"9.9"'))
    text = Page(write_html(suite, tmp_path / "r.html", title="t", asked="a").read_text()).text
    assert "not all made with the same versions: torch" in text


def test_a_folder_is_no_report(suite, tmp_path):
    with pytest.raises(UsageError, match="file name"):
        write_html(suite, tmp_path, title="t", asked="a")


def test_a_long_strip_is_thinned_but_the_slider_has_all(quick, suite, tmp_path):
    folder = next(suite.rglob("evidence.npz")).parent
    write_evidence(folder, ts=tuple(range(50, 650, 50)))
    page = write_html(suite, tmp_path / "r.html", title="t", asked="a").read_text()
    assert page.count('type="radio"') == 12


# --- the player -------------------------------------------------------------------------------------


def test_the_player_is_one_radio_group_with_a_rule_a_frame():
    html = str(player_html([PNG, PNG + b"2"], ["t = 1", "t = 2"], "step", start=1))
    name = re.search(r'name="(p\w+)"', html)[1]
    assert html.count('type="radio"') == html.count("<label for=") == html.count("<img ") == 2
    assert f'id="{name}-1" aria-label="t = 2" checked' in html
    assert f"#{name}-1:checked~.frames img:nth-child(2)" in html


def test_two_players_do_not_share_their_names():
    first, second = (str(player_html([PNG], ["1"], caption)) for caption in "ab")
    assert re.search(r'name="(\w+)"', first)[1] != re.search(r'name="(\w+)"', second)[1]


def test_the_player_escapes_and_refuses():
    assert "<b>" not in str(player_html([PNG], ["<b>"], "<b>"))
    with pytest.raises(UsageError, match="as many labels"):
        player_html([PNG], [], "step")


# --- a search, scored on validation alone -----------------------------------------------------------------


def test_a_search_has_a_page_about_val_and_no_published_rows(tmp_path, quick):
    for method, strength in (("DIA", 1.6), ("CSI", 1.0)):
        make_run(tmp_path / "runs", method, strength=strength, splits=("val",))
    results = collect(tmp_path / "runs")
    assert results.split == "val" and all(row.auroc.known for row in results.rows)
    assert compare(*results.rows).verdict == "undecided"  # one seed each
    page = write_html(results, tmp_path / "page.html", title="t", asked="a").read_text()
    assert "Results on the validation images" in page and "anomalous validation images" in page
    assert "Results on the test" not in page and "Beside the paper" not in page


def test_beside_scored_runs_a_searched_one_gives_no_number(suite):
    folder = make_run(suite / "more", "DIA", strength=3.0, splits=("val",))
    results = collect(suite)
    assert (folder.name, SEARCHED) in results.missing and {run.split for run in results.runs} == {"test"}


# --- what a score follows ---------------------------------------------------------------------------------


def test_a_score_made_of_statistics_is_explained_by_them_and_noise_is_not():
    rng = np.random.default_rng(0)
    statistics = rng.normal(size=(400, 3))
    rho, explained = followed(np.exp(2 * statistics[:, 1]), statistics)
    assert rho[1] == pytest.approx(1) and abs(rho[[0, 2]]).max() < 0.2 and explained == pytest.approx(1)
    assert followed(rng.normal(size=400), statistics)[1] == pytest.approx(0, abs=0.03)
    with pytest.raises(DataError, match="do not fit"):
        followed(np.zeros(5), statistics)


def test_shortcuts_look_at_healthy_images_alone(tmp_path):
    anomalous = np.arange(60) >= 40
    statistics = np.random.default_rng(0).normal(size=(60, 2))
    scores = np.where(anomalous, -1, 1) * statistics[:, 0]
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diawork.figures.table_map", lambda values, *names: drawn.append((values, *names)))
        patch.setattr(figures, "png_bytes", lambda *_: PNG)
        found = shortcuts({"DIA": [(scores, anomalous)] * 2}, statistics, ["mean", "sd"])
    values, rows, columns = drawn[0]
    assert values.shape == (1, 3) and values[0, 0] == pytest.approx(1) and rows == ["DIA"] and columns[-1] == ALL
    assert "40 healthy images" in found.caption


def test_a_page_shows_what_the_scores_follow(tmp_path):
    names = np.array(["mean", "sd"])
    write_evidence(make_run(tmp_path, "DIA"), statistics=np.random.rand(60, 2), statistics_names=names)
    page = write_html(collect(tmp_path), tmp_path / "page.html", title="t", asked="a").read_text()
    assert "What the scores follow" in page and "among the 20 healthy images" in page


# --- what stands first ------------------------------------------------------------------------------------


def test_a_smoke_run_says_that_its_numbers_mean_nothing(quick, tmp_path):
    smoke = {"train.epochs": 2, "train.epoch_size": "batches", "train.epoch_n": 3}
    make_run(tmp_path / "smoke", settings=smoke)
    make_run(tmp_path / "real", settings=smoke | {"train.epochs": 30})
    texts = [
        write_html(tmp_path / n, tmp_path / f"{n}.html", title="t", asked="a").read_text() for n in ("smoke", "real")
    ]
    assert ["the numbers mean nothing" in text for text in texts] == [True, False]


def test_question_and_answer_come_before_results_and_data_notes_below(page):
    text = Page(page).text
    places = [text.index(said) for said in ("How well does", "has the highest AUROC", "Results on", "val has labels")]
    assert places == sorted(places)


def test_the_strip_says_what_was_measured_of_it(page):
    text = Page(page).text
    assert "Larger t changes more, at every step from t = 50 to 400" in text and re.search(
        r"% of their variance\)", text
    )


def test_published_methods_not_run_are_one_line(page):
    assert re.search(r"<summary>12 published methods not run here", page)
