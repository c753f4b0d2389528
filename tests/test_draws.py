"""An image's score, and its map, are its own: neither order, batch, split nor file changes them; schemes never mix."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from diawork.base.compute import Compute
from diawork.base.errors import CheckpointError, DataError
from diawork.base.registry import CONTROLS, entry_of
from diawork.base.seeding import image_keys
from diawork.data.images import ImageSet
from diawork.data.manifests import load_manifest
from diawork.data.readers.picture import read_image
from diawork.detectors.dia import CSI, DIA
from diawork.detectors.maps import AnomalyMaps
from diawork.method.operators import AddNoise, GaussianBlur
from diawork.report.page import write_html
from diawork.report.rows import collect, compare
from diawork.runs.experiment import run_experiment
from diawork.runs.methods import method_config
from diawork.runs.presets import preset
from diawork.runs.resolve import resolve
from diawork.runs.run import Run
from diawork.sweeps.cell import CellFolder
from diawork.sweeps.sweep import Sweep
from tests.builders import make_run, numbers
from tests.conftest import make_images

SMOKE = preset("smoke").override({"score.samples": 3})
CSI_SMOKE = method_config(SMOKE, "csi")


def eight_bit(n, **facts):
    """Images that a PNG can hold."""
    x = make_images(n, 28, **facts)
    return ImageSet(x.images.mul(255).round().div(255), x.class_names, x.anomalous, x.index, x.split, x.name)


TRAIN, TEST = eight_bit(48), eight_bit(12, split="test", anomalous=6, seed=1)


BOTH = [(CSI, "fp32"), (DIA, "bf16")]  # they share the code that scores; the other pairs are for -m slow
REST = [pytest.param(pair, marks=pytest.mark.slow) for pair in ((CSI, "bf16"), (DIA, "fp32"))]


@pytest.fixture(scope="module", params=[*BOTH, *REST], ids=str)
def fitted(request):
    kind, precision = request.param
    detector = kind.build(SMOKE, dissolve=GaussianBlur(), compute=Compute(precision=precision))
    return detector.fit(TRAIN, progress=False), 1e-4 if precision == "fp32" else 1e-2


def test_a_score_does_not_depend_on_company(fitted):
    detector, rounding = fitted
    total = detector.score(TEST).total
    order = np.random.default_rng(0).permutation(len(TEST))
    one_by_one = np.concatenate([detector.score(TEST.take([i])).total for i in range(3, 9)])  # healthy and lesion
    shuffled, subset = detector.score(TEST.take(order)).total, detector.score(TEST.take(range(5))).total
    for other, same in ((one_by_one, total[3:9]), (shuffled, total[order]), (subset, total[:5])):
        assert np.abs(other - same).max() < rounding * total.std()


def test_a_loose_file_scores_as_in_its_set(fitted):
    detector, rounding = fitted
    total = detector.score(TEST).total
    for i, image in enumerate(TEST.images[:4]):
        Image.fromarray(image[0].mul(255).round().byte().numpy()).save(file := io.BytesIO(), "PNG")
        x = torch.from_numpy(read_image(file.getvalue()).image[None])
        loose = ImageSet(x, np.array(["?"]), np.array([False]), np.array([0]), "file", "loose")
        assert image_keys(x) == image_keys(TEST.images)[i]
        assert abs(detector.score(loose).total[0] - total[i]) < rounding * total.std()


@pytest.mark.parametrize("name", [name for name in CONTROLS if not entry_of(name).oracle])
def test_a_control_scores_an_image_alone_as_in_company(name):
    control = entry_of(name).load()().fit(TRAIN)
    alone = np.concatenate([control.score(TEST.take([i])).total for i in range(len(TEST))])
    np.testing.assert_allclose(alone, control.score(TEST).total, rtol=1e-6)


@pytest.mark.parametrize("method", ["residual", "gradient", "occlusion", "neighbours"])
def test_a_map_of_an_image_alone_is_that_in_company(fitted, method):
    maps = AnomalyMaps(fitted[0], operator=AddNoise(), healthy=TRAIN)
    whole = maps(TEST.take(range(4)), method)
    np.testing.assert_allclose(maps(TEST.take([2]), method)[0], whole[2], atol=1e-3 * whole.std())


def test_the_noise_of_the_copies_is_that_of_other_draws(fitted):
    detector, _ = fitted
    many = make_images(100, 28, split="test", seed=2)
    before = detector.score(many)
    other = detector.cfg.model_copy(update={"seed": 1})  # draws alone depend on it: weights and bank are there
    detector.cfg, cfg = other, detector.cfg
    moved = detector.score(many).total - before.total
    detector.cfg = cfg
    assert np.sqrt((before.noise**2).mean()) == pytest.approx(moved.std() / np.sqrt(2), rel=0.35)
    assert detector.score(many, samples=1).noise is None


# --- schemes ---------------------------------------------------------------------------------------


def older(monkeypatch, cfg, root):
    """Make a run as it was made while draws went by an image's position."""
    with monkeypatch.context() as past:
        for room in ("detectors.dia", "runs.experiment", "runs.run"):
            past.setattr(f"diawork.{room}.DRAWS", 1)
        past.setattr("diawork.method.scoring.image_keys", lambda x: np.arange(len(x), dtype=np.uint64))
        return run_experiment(cfg, out=root, progress=False)


def test_a_run_under_older_draws_is_scored_anew_with_its_weights(small, tmp_path, monkeypatch):
    run = older(monkeypatch, CSI_SMOKE, tmp_path / "runs")
    before, weights = (run.folder / "scores.csv").read_bytes(), run.folder / "detector.safetensors"
    assert run.done and not run.current
    with pytest.raises(CheckpointError, match="drawn by scheme 1, images are scored by scheme 2"):
        CSI.load(run.folder)
    fresh = run_experiment(CSI_SMOKE, out=tmp_path / "fresh", progress=False)
    monkeypatch.setattr("diawork.detectors.dia.fit", None)  # nothing is trained again
    again = run_experiment(CSI_SMOKE, out=tmp_path / "runs", progress=False)
    assert again.folder == run.folder and again.current and again.result()["draws"] == 2
    assert (run.folder / "scores.csv").read_bytes() == (fresh.folder / "scores.csv").read_bytes() != before
    kept, made = load_file(weights), load_file(fresh.folder / weights.name)
    assert kept.keys() == made.keys()
    assert [name for name in made if name != "history" and not np.array_equal(kept[name], made[name])] == []


def test_new_scores_withdraw_the_result_of_older_ones(small, tmp_path, monkeypatch):
    run = older(monkeypatch, CSI_SMOKE, tmp_path)
    monkeypatch.setattr("diawork.runs.experiment.evidence", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_experiment(CSI_SMOKE, out=tmp_path, progress=False)
    assert not run.done and run.state().startswith("failed")


def test_a_control_is_current_under_any_draws(tmp_path):
    assert Run(make_run(tmp_path, "5-NN on pixels")).current
    assert not Run(make_run(tmp_path, "CSI")).current and Run(make_run(tmp_path, "DIA", draws=2)).current


def test_the_page_prints_draws_and_the_noise_of_copies(tmp_path):
    def noisy(scores, anomalous):
        return numbers(scores, anomalous) | {"noise_share": 0.084, "noise_auroc": 0.00212}

    make_run(tmp_path / "runs", "DIA", draws=2, summary=noisy)
    page = write_html(tmp_path / "runs", tmp_path / "page.html", title="t", asked="a").read_text()
    assert "(scheme 2). With other copies the AUROC would change by about: DIA ±0.0021." in page


def test_tables_set_runs_of_older_draws_apart(tmp_path):
    old, new = make_run(tmp_path, "CSI"), make_run(tmp_path, "DIA", draws=2)
    results = collect(tmp_path)
    assert [run.run.folder for run in results.runs] == [new]
    ((name, reason),) = results.missing
    assert name == old.name and "scored under draws 1, others here under 2: run its command again" in reason
    assert [run.run.folder for run in collect(old).runs] == [old]


def test_runs_of_different_draws_are_not_compared(tmp_path):
    folders = [make_run(tmp_path, "CSI", seed, **more) for seed, more in ((0, {}), (1, {"draws": 2}))]
    (a,), (b,) = (collect(folder).rows for folder in folders)
    with pytest.raises(DataError, match=f"draws 1: {folders[0].name}; draws 2: {folders[1].name}") as caught:
        compare(a, b)
    assert "scores them anew and trains nothing" in caught.value.hint
    with_control = compare(b, *collect(make_run(tmp_path, "5-NN on pixels")).rows)
    assert with_control.n_normal + with_control.n_anomalous == 60


def test_a_cell_of_older_draws_is_pending_and_says_why(tmp_path):
    run, cell = make_run(tmp_path, "CSI"), CellFolder(tmp_path / "cell")
    cell.prepare({"digest": "d", "data": ["x"], "makes_run": True, "notebook": "cell"})
    (cell.path / "runs").mkdir()
    (cell.path / "runs" / run.name).write_text(f"../{run.name}")
    with pytest.raises(CheckpointError, match="without a finished run"):
        cell.finish(1.0)
    result = {"schema": 1, "digest": "d", "data": ["x"], "runs": [f"../{run.name}"], "seconds": 1.0}
    (cell.path / "result.json").write_text(json.dumps(result))
    cell.note("done")
    status = cell.status()
    assert status["state"] == "pending" and f"scored {run.name} under draws 1" in status["error"]


# --- diffusion models ------------------------------------------------------------------------------


def test_a_ddpm_of_the_runs_own_seed_is_the_work_of_that_seed():
    own = [SMOKE.override({"seed": seed, "diffusion.per_seed": True}) for seed in (0, 1)]
    named = [SMOKE.override({"seed": seed, "diffusion.seed": seed}) for seed in (0, 1)]
    facts = load_manifest("phantom")
    assert [resolve(cfg, facts) for cfg in own] == [resolve(cfg, facts) for cfg in named]
    assert resolve(method_config(own[1], "csi"), facts) == resolve(
        method_config(SMOKE, "csi").override({"seed": 1}), facts
    )


@pytest.mark.parametrize(("name", "ddpms"), [("recipe", 5), ("ratio", 6)])
def test_recipe_and_ratio_pretrain_a_ddpm_a_seed_that_cells_of_the_seed_share(name, ddpms):
    configs = [cell.config for cell in Sweep.load(name, "cpu").cells]
    resolved = [resolve(cfg, load_manifest(cfg.dataset)) for cfg in configs]
    dissolving = [cfg for cfg in resolved if cfg.fills_slot]
    assert all(cfg.diffusion.seed == cfg.seed for cfg in dissolving)
    assert len({json.dumps(cfg.diffusion.identity()) for cfg in dissolving}) == ddpms < len(dissolving) + 1


def ddpm_runs(root, seeds):
    """Runs of DIA by (seed, seed of their DDPM)."""
    for seed, model in seeds:
        make_run(root, "DIA", seed, draws=2, settings={"diffusion.seed": model}, diffusion_images=9)
    return root


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([(0, 0), (1, 0), (2, 0)], "One diffusion model (seed 0) serves all seeds"),
        ([(0, 0), (1, 1), (2, 2)], "Each of the 3 seeds has a diffusion model of its own"),
        ([(1, 1)], ""),
    ],
)
def test_the_page_names_the_diffusion_models(tmp_path, seeds, said):
    results = collect(ddpm_runs(tmp_path / "runs", seeds))
    assert [row.label for row in results.rows] == ["DIA"]  # one row, whatever the models
    page = write_html(results, tmp_path / "page.html", title="t", asked="a").read_text()
    assert said in page and ("diffusion model" in page.split("Environment")[0]) == bool(said)


def test_runs_with_a_ddpm_of_their_seed_are_not_averaged_with_others(tmp_path):
    rows = collect(ddpm_runs(tmp_path, [(0, 0), (1, 0), (2, 2)])).in_order
    assert [row.label for row in rows] == ["DIA (diffusion.seed 0)", "DIA (diffusion.seed 2)"]
