"""Fidelity: every path is trained on the same seeds and compared with the plain one, on validation images alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diawork.base.compute import Compute, has_bf16
from diawork.base.config import DiffusionConfig
from diawork.base.errors import DataError, UsageError
from diawork.base.files import read_json
from diawork.bench.fidelity import Paths, compare_paths, compare_pretraining, paths_table
from diawork.bench.page import write_costs
from diawork.data.datasets import load
from diawork.evaluation.comparison import compare_detectors
from diawork.evaluation.metrics import summary
from diawork.runs.artifacts import shared_ddpm
from diawork.runs.presets import preset
from diawork.runs.resolve import resolve

SMALL = {"train.epochs": 1, "train.epoch_n": 1, "train.batch_size": 4, "diffusion.steps": 2}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder, whole = tmp_path_factory.mktemp("fidelity"), load("phantom")
    splits = replace(whole, train=whole.train.take(range(8)), val=whole.val.take([0, 1, -2, -1]))
    cfg = resolve(preset("smoke").override(SMALL), splits)
    return cfg, splits, shared_ddpm(cfg, splits, out=folder, progress=False), folder


FP32 = ["plain", "bank", "few samples"]  # no path claims a precision that the machine does not compute in


@pytest.mark.parametrize(("precision", "paths"), [("bf16", ["plain", "bf16", *FP32[1:]]), ("fp32", FP32)])
def test_every_path_and_seed_is_a_row_and_plain_differs_from_itself_by_nothing(parts, tmp_path, precision, paths):
    if precision == "bf16" and not has_bf16(Compute().device):
        pytest.skip("this processor has no bf16 arithmetic")
    cfg, splits, ddpm, _ = parts
    compute = Compute.auto("cpu", precision)
    found = compare_paths(
        cfg, splits, ddpm, folder=tmp_path, seeds=(0, 1), bank_steps=2, samples=1, compute=compute, progress=False
    )
    rows = found.rows
    assert list(rows["path"]) == paths * 2 and list(rows["seed"]) == [0] * len(paths) + [1] * len(paths)
    table = paths_table(found)
    assert table["difference"].notna().tolist()[0] is False and {s.shape for s in found.scores.values()} == {(2, 4)}
    assert list(table["path"]) == paths and (table["seeds"] == 2).all()
    assert table["auroc"][paths.index("bank")] == pytest.approx(rows[rows["path"] == "bank"]["auroc"].mean())


def made(gain, seeds=3, n=200):
    """Paths of random scores, ``fast`` with less of the truth than ``plain`` by ``gain``."""
    rng, anomalous = np.random.default_rng(0), np.arange(n) >= n // 2
    plain = anomalous + rng.normal(size=(1, n)) + 0.1 * rng.normal(size=(seeds, n))
    scores = {"plain": plain, "fast": plain - gain * anomalous + 0.03 * rng.normal(size=(seeds, n))}
    rows = [
        {"path": path, "seed": seed, "fit_seconds": 1.0} | summary(row, anomalous)
        for path, of_seeds in scores.items()
        for seed, row in enumerate(of_seeds)
    ]
    return Paths(pd.DataFrame(rows), scores, anomalous)


@pytest.mark.parametrize(("gain", "seeds", "says"), [(0.8, 3, "plain is ahead"), (0.8, 1, "one seed, so of these"),
                                                     (0.0, 3, "equal within 0.01")])  # fmt: skip
def test_a_path_is_compared_with_plain_over_images_and_seeds(gain, seeds, says):
    paths = made(gain, seeds)
    table = paths_table(paths).set_index("path")
    known = compare_detectors(paths.scores["fast"], paths.scores["plain"], paths.anomalous, paired_seeds=True)
    assert says in table.loc["fast", "reading"] and table.loc["fast", "difference_low"] == pytest.approx(known.low)
    assert pd.isna(table.loc["plain", ["difference", "p", "reading"]]).all()


def test_the_page_shows_the_reading_of_each_path(tmp_path, monkeypatch):
    monkeypatch.setattr("diawork.figures.png_bytes", lambda figure: b"")
    accuracy = {"asked": "?", "paths": paths_table(made(0.8)).to_dict("records"), "pretraining": [], "last": 50}
    costs = read_json(Path(__file__).parent.parent / "reports" / "cost.json") | {"accuracy": accuracy}
    page = write_costs(costs, tmp_path / "cost.html").read_text("utf-8")
    assert "plain is ahead" in page and "images and seeds" in page


def test_why_a_path_is_not_compared_is_said():
    few = made(0.8)._replace(anomalous=np.arange(200) >= 199)
    assert "not compared: 1 anomalous and 199 normal" in paths_table(few).set_index("path").loc["fast", "reading"]


def test_precisions_are_compared_on_equal_draws(parts):
    _, splits, _, folder = parts
    cfg = DiffusionConfig(dim=8, dim_mults=(1, 2), steps=3, batch_size=4)
    found = compare_pretraining(splits, cfg, bridge="pad", folder=folder, compute=Compute.auto("cpu"), progress=False)
    assert found["difference"].iloc[0] == 0 and found["difference"].abs().max() < 0.05
    assert len(found) == (2 if has_bf16(Compute().device) else 1)


def test_what_cannot_be_compared_is_refused(parts):
    cfg, splits, ddpm, folder = parts
    healthy = replace(splits, val=splits.val.normal())
    with pytest.raises(DataError, match="no healthy and anomalous validation images"):
        compare_paths(cfg, healthy, ddpm, folder=folder)
    with pytest.raises(UsageError, match="those of DIA"):
        compare_paths(cfg.override({"detector": "csi"}), splits, ddpm, folder=folder)
