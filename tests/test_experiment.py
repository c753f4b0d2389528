"""Experiment: one run from config to result on the phantom, reuse, selection, identities."""

import csv
import json
import socket
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diawork.base.errors import UsageError
from diawork.base.registry import CONTROLS
from diawork.data.datasets import load
from diawork.detectors.controls import StatsKNN
from diawork.detectors.dia import CSI, DIA
from diawork.runs.artifacts import shared_ddpm
from diawork.runs.evidence import MOST, PseudoCheck, evidence
from diawork.runs.experiment import run_experiment, run_suite, select_on
from diawork.runs.methods import METHODS, label_of, method_config
from diawork.runs.presets import preset
from diawork.runs.resolve import resolve
from diawork.runs.run import ORACLE, Run
from tests.builders import write_lock
from tests.conftest import make_images

SMOKE = preset("smoke")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(root):
    return run_experiment(SMOKE, out=root, progress=False)


@pytest.fixture(scope="module")
def splits():
    return load("phantom")


def test_a_run_leaves_everything_a_report_reads(run):
    names = {p.name for p in run.folder.iterdir()}
    assert names == {
        "config.json", "detector.safetensors", "evidence.npz", "metrics.jsonl", "result.json",
        "scores.csv", "status.json",
    }  # fmt: skip
    result = run.result()
    assert result["detector"] == "DIA" and result["selection"] == "fixed epoch 2"
    assert set(result["metrics"]) == {"val", "test"} and "f1" in result["metrics"]["test"]
    assert len(run.metrics()) == 6 and run.evidence()["strip"].shape[1] == 13


def test_a_search_scores_val_and_never_test(root, monkeypatch):
    scored = []
    score = DIA.score
    monkeypatch.setattr(
        DIA, "score", lambda self, images, **kw: (scored.append(images.split), score(self, images, **kw))[1]
    )
    found = run_experiment(SMOKE.override({"score.evaluate": "val"}), out=root, progress=False)
    assert set(scored) == {"val"} and set(found.result()["metrics"]) == {"val"}
    assert {line.split(",")[0] for line in (found.folder / "scores.csv").read_text().splitlines()[1:]} == {"val"}
    assert len(found.evidence()["statistics"]) == len(load("phantom").val)


def test_a_search_that_would_score_test_or_nothing_is_refused_before_it_starts(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="scores test after every epoch"):
        SMOKE.override({"score.evaluate": "val", "train.track_test": True})
    whole = load("phantom")
    monkeypatch.setattr("diawork.runs.experiment.load", lambda *_: replace(whole, val=whole.val.take(np.arange(0))))
    with pytest.raises(UsageError, match="no validation images"):
        run_experiment(SMOKE.override({"score.evaluate": "val"}), out=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_classifier_of_shift_and_dissolved_trains_scores_and_loads(root):
    cfg = SMOKE.override({"loss.classifier": "shift_dissolved"})
    found = run_experiment(cfg, out=root, progress=False)
    assert DIA.load(found.folder).encoder.shift.out_features == 8
    assert np.isfinite(found.result()["metrics"]["test"]["auroc"])
    csi = [method_config(one, "csi") for one in (cfg, SMOKE)]
    assert len({resolve(one, load("phantom")).digest() for one in csi}) == 1


def test_a_finished_run_is_reused(run, root, monkeypatch):
    monkeypatch.setattr("diawork.runs.experiment.entry_of", None)
    assert run_experiment(SMOKE, out=root, progress=False).folder == run.folder


def test_the_same_run_elsewhere_gives_the_same_scores(run, tmp_path):
    again = run_experiment(SMOKE, out=tmp_path, progress=False)
    assert (again.folder / "scores.csv").read_bytes() == (run.folder / "scores.csv").read_bytes()


def test_saved_detector_scores_as_before(run, splits):
    detector = DIA.load(run.folder)
    rows = [line.split(",") for line in (run.folder / "scores.csv").read_text().splitlines() if line.startswith("test")]
    assert detector.anomaly_scores(splits.test)[:5] == pytest.approx([float(r[4]) for r in rows[:5]], rel=1e-3)
    assert len(detector.healthy) == len(splits.train.normal())


def test_suite_runs_controls_once_and_reuses_what_is_there(run, root):
    seen = []
    runs = run_suite(SMOKE, ["dia", "stats_knn"], [0, 1], out=root, progress=False, on_run=seen.append)
    assert len(runs) == 3 and runs[0].folder == run.folder and seen == runs
    assert [r.result()["detector"] for r in runs[:2]] == ["DIA", "DIA"]
    ddpms = [p for p in root.iterdir() if p.name.startswith("ddpm-")]
    assert len(ddpms) == 1  # shared by the seeds


def test_a_bank_is_shared_by_the_seeds(run, root):
    cfg = SMOKE.override({"dissolve.bank_steps": 1})
    first, second = (run_experiment(cfg.override({"seed": s}), out=root, progress=False) for s in (0, 1))
    assert first.done and second.done
    assert [path.suffix for path in sorted((root / "banks").glob("*/*"))] == [".json", ".npy"]  # and no lock


class Torn:
    timesteps = 1000

    def stack(self, x, ts):
        raise RuntimeError("torn")


def test_a_picture_that_cannot_be_drawn_costs_no_result():
    healthy, images = SimpleNamespace(train=make_images()), make_images(anomalous=4)
    with pytest.warns(UserWarning, match=r"this run has no dissolving strip \(RuntimeError: torn\)"):
        arrays = evidence(healthy, images, [], detector=None, dissolver=Torn())
    assert set(arrays) == {"statistics", "statistics_names"}


def test_selection_on_validation_is_recorded(root):
    cfg = SMOKE.override({"detector": "csi", "train.select": "val"})
    selection = run_experiment(cfg, out=root, progress=False).result()["selection"]
    assert selection.startswith("best validation AUROC, epoch ")


def test_a_matched_alternative_records_its_strength(run, root):
    cfg = method_config(SMOKE, "noise").override({"dissolve.match": "ddpm"})
    made = run_experiment(cfg, out=root, progress=False)
    found = made.result()["matched"]
    assert made.result()["diffusion_images"] == 480
    assert found["mean_squared_change"] == pytest.approx(found["wanted"], rel=0.02)
    assert DIA.load(made.folder).cfg.dissolve.noise_sd == found["settings"]["noise_sd"]
    assert made.config()["config"]["dissolve"]["match"] == "ddpm" and "strip" not in made.evidence()
    assert len([p for p in root.iterdir() if p.name.startswith("ddpm-")]) == 1  # the dissolver's own


def test_what_matching_needs_is_part_of_the_identity(splits):
    noise = method_config(SMOKE, "noise").override({"dissolve.match": "ddpm"})
    longer = noise.override({"diffusion.steps": 99})
    assert resolve(noise, splits) != resolve(longer, splits)
    assert resolve(SMOKE.override({"dissolve.match": "ddpm"}), splits) == resolve(SMOKE, splits)


def test_a_model_of_another_data_set_has_its_own_identity(toy, root, splits):
    foreign = SMOKE.override({"diffusion.dataset": str(toy), "diffusion.steps": 2, "train.epochs": 1})
    made = run_experiment(foreign, out=root, progress=False)
    assert next(p for p in root.iterdir() if p.name.startswith("ddpm-toy")).joinpath("ddpm.safetensors").exists()
    assert made.config()["data"]["identity"] != splits.identity
    own = SMOKE.override({"diffusion.dataset": "phantom"})
    assert resolve(own, splits) == resolve(SMOKE, splits)


def test_tracked_test_scores_lie_apart_and_change_nothing(root):
    cfg = SMOKE.override({"detector": "csi"})
    plain, tracked = (
        run_experiment(cfg.override({"train.track_test": t}), out=root, progress=False) for t in (False, True)
    )
    epochs = json.loads((tracked.folder / ORACLE).read_text())
    assert list(epochs) == ["1", "2"] and all(set(one) == {"val", "pseudo", "test"} for one in epochs.values())
    assert (tracked.folder / "scores.csv").read_bytes() == (plain.folder / "scores.csv").read_bytes()
    assert not (plain.folder / ORACLE).exists() and tracked.result()["selection"] == "fixed epoch 2"


def test_selection_on_test_is_not_offered(splits):
    with pytest.raises(UsageError, match="selection on 'test' is not offered"):
        select_on("test", splits)


def test_what_a_method_does_not_use_is_not_its_identity(splits):
    other = SMOKE.override({"diffusion.steps": 99, "dissolve.noise_sd": 0.3})
    dialled = SMOKE.override({"data.contamination": 0.1})
    assert resolve(method_config(SMOKE, "pixel_knn"), splits) != resolve(method_config(dialled, "pixel_knn"), splits)
    assert resolve(method_config(SMOKE, "csi"), splits) == resolve(method_config(other, "csi"), splits)
    assert resolve(method_config(SMOKE, "pixel_knn"), splits) == resolve(method_config(other, "pixel_knn"), splits)
    assert resolve(SMOKE, splits) != resolve(other, splits)


def test_manifest_fills_in_what_the_config_leaves_open(splits):
    assert resolve(SMOKE, splits).dissolve.t_range == tuple(splits.manifest.t_range)
    own = SMOKE.override({"dissolve.t_range": [5, 9]})
    assert resolve(own, splits).dissolve.t_range == (5, 9)


def test_methods_have_names_of_their_own():
    labels = [label_of(method_config(SMOKE, m)) for m in METHODS]
    assert len(set(labels)) == len(METHODS) and set(CONTROLS) < set(METHODS)
    with pytest.raises(UsageError, match="Did you mean 'gaussian_blur'"):
        method_config(SMOKE, "gausian_blur")


def test_validation_scores_between_epochs_change_nothing(splits):
    """The detector's own hook, feature bank and scores included, against a training that was left alone."""
    cfg = SMOKE.override({"detector": "csi"})
    alone, asked = CSI(None, cfg).fit(splits.train, progress=False), CSI(None, cfg)
    torch.rand(7)
    asked.fit(splits.train, on_epoch=select_on("val", splits), progress=False)
    assert len(asked.history.epochs) == 2 and not alone.history.epochs
    weights = alone.encoder.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in asked.encoder.state_dict().items())
    assert np.array_equal(alone.anomaly_scores(splits.test), asked.anomaly_scores(splits.test))


def test_a_model_that_another_process_pretrains_is_waited_for(splits, tmp_path, monkeypatch):
    folder = shared_ddpm(SMOKE, splits, out=tmp_path, progress=False).folder
    record, lock = (folder / "ddpm.safetensors").read_bytes(), folder / "lock"
    (folder / "ddpm.safetensors").unlink()
    write_lock(folder, 1, socket.gethostname())

    def the_other_finishes(_):
        (folder / "ddpm.safetensors").write_bytes(record)
        lock.unlink()

    monkeypatch.setattr("diawork.base.locks.time.sleep", the_other_finishes)
    monkeypatch.setattr("diawork.method.ddpm._pretrained", None)
    assert shared_ddpm(SMOKE, splits, out=tmp_path, progress=False).folder == folder


def test_failure_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("diawork.runs.experiment._evaluate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_experiment(SMOKE.override({"detector": "csi"}), out=tmp_path, progress=False)
    state = json.loads(next(tmp_path.glob("*/status.json")).read_text())
    assert state["state"] == "failed" and "ZeroDivisionError" in state["error"]


def test_a_p_value_stands_beside_each_test_score_from_healthy_validation_images(root):
    run = run_experiment(method_config(SMOKE, "stats_knn"), out=root, progress=False)
    header = (run.folder / "scores.csv").read_text().splitlines()[0]
    val, test = run.scores("val"), run.scores("test")
    healthy = val.loc[~val["anomalous"], "score"].to_numpy()
    wanted = [(1 + (healthy >= score).sum()) / (1 + len(healthy)) for score in test["score"]]
    assert header.endswith(",p_value") and test["p_value"].tolist() == pytest.approx(wanted, abs=0.02)
    assert val["p_value"].isna().all()


def test_a_runs_alarm_has_a_guarantee_and_a_run_without_p_values_is_read(root, tmp_path):
    run = run_experiment(method_config(SMOKE, "stats_knn"), out=root, progress=False)
    assert run.alarm(0.1).rate <= 0.1 and "On average over calibrations" in run.alarm(0.1).guarantee
    older = Run(tmp_path)
    older.write_scores([{key: row[key] for key in row if key != "p_value"} for row in csv_rows(run)])
    older.finish(run.result())
    assert older.scores()["p_value"].isna().all() and older.alarm(0.1) == run.alarm(0.1)


def csv_rows(run):
    return list(csv.DictReader((run.folder / "scores.csv").open()))


def test_an_epoch_is_chosen_without_labels_and_every_run_is_checked_so(root, monkeypatch):
    cfg = SMOKE.override({"detector": "csi", "train.select": "pseudo"})
    result = run_experiment(cfg, out=root, progress=False).result()
    assert result["selection"].startswith("best self-check, epoch ")
    assert {"auroc", "low", "high", "verdict", "findings"} <= set(result["self_check"])
    facts, probe = result["self_check"]["facts"], result["shift_probe"]
    assert 0 <= facts["shift_accuracy"] <= 1 and facts["shifts"] == 4 and 0 < facts["features"][0] < 1
    assert probe["shift"] == "rotation" and 0 <= probe["accuracy"] <= 1 and len(probe["moved"]) == 3


def test_the_shift_is_printed_before_training(root, capsys, monkeypatch):
    monkeypatch.setattr(CSI, "fit", lambda *args, **kwargs: sys.exit("training"))
    with pytest.raises(SystemExit):
        run_experiment(SMOKE.override({"detector": "csi", "views.shift": "cutperm"}), out=root)
    assert "a linear probe of thumbnails named" in capsys.readouterr().out


def test_facts_of_a_detector_are_those_of_its_features(splits):
    healthy = splits.val.normal().take(range(8))
    detector = CSI(cfg=SMOKE)
    facts = detector.facts(healthy)
    same = detector.facts(healthy.take([0] * 8))
    assert facts.shifts == 4 and facts.features.variance > 0
    assert same.features.variance == pytest.approx(0, abs=1e-6)  # equal images, equal draws: equal features


def test_the_self_check_sees_no_label(splits):
    detector = StatsKNN().fit(splits.train)
    hidden = replace(splits.val.normal(), class_names=np.array(["?"] * len(splits.val.normal())))
    one, other = PseudoCheck(splits.val).of(detector), PseudoCheck(hidden).of(detector)
    assert one == other and one.n <= MOST and [row.kind for row in one.rows] == ["cutpaste", "poisson", "warp", "noise"]
