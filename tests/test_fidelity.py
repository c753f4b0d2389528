"""Fidelity: every path is trained on the same seeds and compared with the plain one, on validation images alone."""

from dataclasses import replace

import pytest

from diawork.base.compute import Compute, has_bf16
from diawork.base.config import DiffusionConfig
from diawork.base.errors import DataError, UsageError
from diawork.bench.fidelity import PATHS, compare_paths, compare_pretraining, paths_table
from diawork.data.images import load
from diawork.runs.methods import resolve
from diawork.runs.parents import shared_ddpm
from diawork.runs.presets import preset

SMALL = {"train.epochs": 1, "train.epoch_n": 1, "train.batch_size": 4, "diffusion.steps": 2}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder, whole = tmp_path_factory.mktemp("fidelity"), load("phantom")
    splits = replace(whole, train=whole.train.take(range(8)), val=whole.val.take([0, 1, -2, -1]))
    cfg = resolve(preset("smoke").override(SMALL), splits)
    return cfg, splits, shared_ddpm(cfg, splits, root=folder, progress=False), folder


def test_every_path_and_seed_is_a_row_and_plain_differs_from_itself_by_nothing(parts):
    cfg, splits, ddpm, folder = parts
    rows = compare_paths(cfg, splits, ddpm, folder=folder, seeds=(0, 1), bank_steps=2, samples=1, progress=False)
    assert list(rows["path"]) == [*PATHS, *PATHS] and list(rows["seed"]) == [0] * 4 + [1] * 4
    plain = rows[rows["path"] == "plain"]
    assert (plain["difference"] == 0).all()
    table = paths_table(rows)
    assert list(table["path"]) == list(PATHS) and (table["seeds"] == 2).all()
    assert table["auroc"][2] == pytest.approx(rows[rows["path"] == "bank"]["auroc"].mean())


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
