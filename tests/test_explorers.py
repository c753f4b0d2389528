"""ViewsExplorer and ScoreExplorer: what they say, that they follow their controls, and that they live on."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from diawork import figures
from diawork.base.config import ExperimentConfig
from diawork.base.errors import DataError, UsageError
from diawork.base.registry import entry_of
from diawork.data.datasets import load
from diawork.method.operators import GaussianBlur, Identity
from diawork.runs.experiment import run_experiment
from diawork.runs.presets import preset
from diawork.runs.run import Run
from diawork.widgets import ScoreExplorer, ViewsExplorer
from tests.conftest import make_images

# --- views ----------------------------------------------------------------------------------------------


@pytest.fixture
def views():
    return ViewsExplorer(make_images(size=8), ExperimentConfig(), GaussianBlur(3))


def test_opens_at_the_first_positive_pair_and_says_so(views):
    assert views.views().images.shape == (24, 1, 8, 8) and views.cell() == (0, 8)
    first, second = views.sentence().split("\n")
    assert first == "image 0, shift 0°, branch O  ×  image 0, shift 0°, branch O′:"
    assert second.startswith("positive, pulled together")


def test_every_kind_of_pair_has_its_words(views):
    said = {
        (0, 3): "negative, pushed apart: another image or shift",
        (0, 18): "negative, pushed apart: the other view is dissolved",
        (0, 0): "excluded, because it is the same view",
        (16, 0): "excluded, because a dissolved view is never an anchor",
    }
    for views.pair, words in said.items():
        assert views.sentence().endswith(words)
    views.mask, views.pair = "shifted_removed", (0, 16)
    assert views.sentence().endswith("excluded, by the mask: the anchor's own dissolved twin")
    assert views.names()[3] == "image 1, shift 90°, branch O"


@pytest.mark.parametrize(("batch", "shifts"), [(1, 1), (1, 4), (3, 2), (4, 3)])
def test_any_batch_and_number_of_shifts(views, batch, shifts):
    views.batch, views.shifts = batch, shifts
    roles, n = views.roles(), batch * shifts
    assert roles.shape == (3 * n, 3 * n)
    assert (roles == figures.POSITIVE).sum() == 2 * n and (roles[2 * n :] == figures.EXCLUDED).all()
    assert views.still().axes


def test_the_figure_takes_more_shifts_than_the_method_has():
    n = 6
    index = [torch.arange(3 * n) % 1, torch.arange(3 * n) % n, torch.arange(3 * n) // n]
    roles = np.ones((3 * n, 3 * n), int)
    pairs = figures.Pairs(np.zeros((3 * n, 3, 8, 8)), *[i.numpy() for i in index], roles, [str(k) for k in range(n)])
    assert figures.pair_figure(pairs, (0, 1), "a $ sign").axes
    with pytest.raises(UsageError, match=r"cell \(0, 18\)"):
        figures.pair_figure(pairs, (0, 18))


def test_views_are_redrawn_by_the_seed_and_without_a_dissolver_there_are_two_branches(views):
    first = views.views().images
    views.seed = 1
    assert not torch.equal(views.views().images, first)
    views.seed = 0
    assert torch.equal(views.views().images, first)
    csi = ViewsExplorer(make_images(size=8), batch=1)
    assert csi.roles().shape == (8, 8) and csi.cell() == (0, 4) and csi.still().axes


def test_the_views_widget_follows_its_controls(views):
    assert views.widget is views.widget
    seen = {views.picture}
    for control, value in [("seed", 3), ("column", 5), ("mask", "shifted_removed"),
                           ("batch", 4), ("shifts", 2), ("first", 8)]:  # fmt: skip
        views.choose(**{control: value})
        assert views.message == ""
        seen.add(views.picture)
    assert len(seen) >= 6 and (views.batch, views.shifts, views.first, views.mask) == (4, 2, 8, "shifted_removed")
    assert len(views.controls["row"].options) == 24 and views.pair == (0, 8)
    assert all(control.description for control in views.controls.values())


def test_what_the_pair_cannot_say_is_disabled(views):
    views.widget  # noqa: B018
    assert not any(control.disabled for control in views.controls.values())
    alone = ViewsExplorer(make_images(1, size=8), batch=1)
    alone.widget  # noqa: B018
    assert {name for name, control in alone.controls.items() if control.disabled} == {"first", "batch", "mask"}


def test_a_failing_dissolver_is_a_sentence_and_the_views_widget_lives_on(views):
    views.widget  # noqa: B018
    good = views.builder.dissolve
    views.builder.dissolve = lambda x, **_: (_ for _ in ()).throw(RuntimeError("<b>out of memory</b>"))
    views.choose(seed=9)
    said = views.message
    assert "could not be shown (RuntimeError: <b>out of memory" in said
    assert views.picture == b""
    views.builder.dissolve = good
    views.choose(seed=10)
    assert views.message == "" and views.picture


def test_bad_choices_of_views_are_refused(views):
    views.first = 11
    with pytest.raises(DataError, match="2 images from 11 on"):
        views.still()
    with pytest.raises(UsageError, match=r"the pair \(0, 99\) is outside the 24 × 24 matrix"):
        ViewsExplorer(make_images(size=8), None, Identity(), pair=(0, 99)).still()
    with pytest.raises(UsageError, match="at least one image"):
        ViewsExplorer(make_images(0))


# --- scores ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run with a blur in the slot, and its data."""
    from tests.toys import TOY

    folder = tmp_path_factory.mktemp("explored")
    (folder / "toy.yaml").write_text(TOY)
    changes = {"dissolve.operator": "gaussian_blur", "train.epochs": 1, "train.batch_size": 8, "score.samples": 1}
    cfg = preset("smoke", dataset=str(folder / "toy.yaml")).override(changes)
    return run_experiment(cfg, out=folder / "runs", progress=False), load(folder / "toy.yaml")


@pytest.fixture
def scored(finished):
    return ScoreExplorer(*finished, GaussianBlur(3))


def test_images_are_ranked_and_filtered(scored):
    everything = scored.listed()
    assert len(everything) == 24 and (np.diff(everything["score"]) <= 0).all()
    counts = {}
    for scored.show in ("healthy", "anomalous", "errors"):
        counts[scored.show] = len(scored.listed())
    assert counts["healthy"] == counts["anomalous"] == 12
    wrong = (everything["score"] > scored.opened().threshold) != everything["anomalous"]
    assert counts["errors"] == wrong.sum()


def test_the_parts_add_up_to_the_score(scored):
    opened, row = scored.opened(), scored.listed().iloc[4]
    parts = scored.reasons(row).parts
    total = sum((parts[name] + opened.typical[name]).mean() for name in parts)
    assert total == pytest.approx(row["score"], abs=1e-4)


def test_reasons_hold_neighbour_residual_map_and_mask(scored, finished):
    splits, row = finished[1], scored.listed().iloc[0]
    reasons = scored.reasons(row)
    best = int(np.argmin([row[f"similarity_{k}"] for k in range(4)]))
    nearest = splits.train.normal().images[int(row[f"nearest_{best}"])].numpy()
    assert np.array_equal(reasons.nearest, nearest) and reasons.nearest_shift == f"{90 * best}°"
    assert reasons.residual.shape == (1, 16, 16) and reasons.map.shape == reasons.mask.shape == (16, 16)
    assert reasons.title.startswith("rank 1 of 24: ") and scored.sentence().startswith(reasons.title)
    assert "called" in scored.sentence()
    assert scored.remark == "" and scored.methods()[0] == "neighbours"


def test_the_score_widget_follows_its_controls(scored):
    scored.widget  # noqa: B018
    first = scored.picture
    scored.choose(place=9)
    assert scored.picture != first and scored.place == 9
    scored.choose(show="healthy")
    assert scored.place == scored.controls["place"].value == 1 and scored.controls["place"].max == 12
    scored.choose(method="residual")
    assert scored.method == "residual" and scored.message == ""
    scored.choose(show="anomalous")
    assert scored.controls["method"].value == "residual"


def test_without_weights_the_rest_is_shown_with_a_sentence(scored, finished, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(finished[0].folder, bare, ignore=shutil.ignore_patterns("detector*"))
    scored.widget  # noqa: B018
    scored.choose(run=str(bare))
    assert "No map asks the score" in scored.message and scored.picture
    assert scored.methods() == ["residual"]
    scored.choose(run=str(finished[0].folder))
    assert scored.message == "" and "neighbours" in scored.methods()


def test_a_detector_given_is_of_the_run_given_and_another_run_opens_its_own(finished, tmp_path):
    run, splits = finished
    copy, given = tmp_path / "copy", entry_of("dia").load().load(run.folder)
    shutil.copytree(run.folder, copy)
    explorer = ScoreExplorer(run, splits, detector=given)
    assert explorer.opened().maps.detector is given
    explorer.choose(run=str(copy))
    assert explorer.message == "" and explorer.opened().maps.detector is not given


def test_a_bad_run_is_a_sentence_and_the_score_widget_lives_on(scored, finished, tmp_path):
    scored.widget  # noqa: B018
    scored.choose(run=str(tmp_path / "nowhere"))
    assert "this file is missing" in scored.message and scored.picture == b""
    torn = tmp_path / "torn"
    shutil.copytree(finished[0].folder, torn)
    (torn / "scores.csv").write_text("split,index\n")
    scored.choose(run=str(torn))
    assert "scores.csv: the scores cannot be read" in scored.message
    scored.choose(run=str(finished[0].folder))
    assert scored.message == "" and scored.picture


def test_a_dissolver_of_another_resolution_is_a_sentence(finished):
    class Wrong:
        timesteps = 1

        def stack(self, x, ts):
            raise UsageError("bridge='none' cannot bring 16×16 px to the model's 32×32 px.")

    explorer = ScoreExplorer(*finished, Wrong())
    assert explorer.still().axes and explorer.remark.startswith("No residual: bridge='none' cannot bring 16×16")


def test_other_data_other_detectors_and_other_choices_are_refused(finished, scored, tmp_path):
    run, splits = finished
    fewer = dataclasses.replace(splits, test=splits.test.take(np.arange(5)))
    with pytest.raises(DataError, match="it scored 24 images that are not these 5"):
        ScoreExplorer(run, fewer).still()
    with pytest.raises(UsageError, match=r"'error' is not a filter\. Did you mean 'errors'"):
        ScoreExplorer(run, splits, show="error")
    scored.place = 25
    with pytest.raises(DataError, match="place 25 in the list of 'all': it holds 24"):
        scored.still()
    control = tmp_path / "control"
    shutil.copytree(run.folder, control)
    result = run.result()
    Run(control).write_scores(run.scores().filter(regex="^[a-z]+$").assign(split="test").to_dict("records"))
    Run(control).finish(result)
    with pytest.raises(DataError, match="has no parts to show"):
        ScoreExplorer(control, splits).still()


def test_a_search_is_shown_on_validation(finished, tmp_path):
    run, splits = finished
    search = tmp_path / "search"
    shutil.copytree(run.folder, search)
    metrics = {"val": run.result()["metrics"]["val"]}
    Run(search).finish(run.result() | {"metrics": metrics})
    explorer = ScoreExplorer(search, splits)
    rows = explorer.listed()
    assert len(rows) == len(splits.val) and set(rows["index"]) == set(range(len(splits.val)))
    assert explorer.reasons(rows.iloc[0]).image.shape == (1, 16, 16)


def test_maps_grid_needs_as_many_of_each():
    images, masks = np.zeros((2, 8, 8)), np.zeros((2, 8, 8), bool)
    assert len(figures.maps_grid(images, masks, {"a map": images}, ["x", "y"]).axes) == 6
    with pytest.raises(UsageError, match="as many masks and maps"):
        figures.maps_grid(images, masks[:1], {"a map": images})
