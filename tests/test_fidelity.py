"""Fidelity: every path is trained on the same seeds and compared with the plain one, on validation images alone."""

from dataclasses import replace

import pytest

from diawork.base.compute import Compute, has_bf16
from diawork.base.config import DiffusionConfig
from diawork.base.errors import DataError, UsageError
from diawork.bench.fidelity import compare_paths, compare_pretraining, paths_table
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


FP32 = ["plain", "bank", "few samples"]  # no path claims a precision that the machine does not compute in


@pytest.mark.parametrize(("precision", "paths"), [("bf16", ["plain", "bf16", *FP32[1:]]), ("fp32", FP32)])
def test_every_path_and_seed_is_a_row_and_plain_differs_from_itself_by_nothing(parts, tmp_path, precision, paths):
    if precision == "bf16" and not has_bf16(Compute().device):
        pytest.skip("this processor has no bf16 arithmetic")
    cfg, splits, ddpm, _ = parts
    compute = Compute.auto("cpu", precision)
    rows = compare_paths(
        cfg, splits, ddpm, folder=tmp_path, seeds=(0, 1), bank_steps=2, samples=1, compute=compute, progress=False
    )
    assert list(rows["path"]) == paths * 2 and list(rows["seed"]) == [0] * len(paths) + [1] * len(paths)
    plain = rows[rows["path"] == "plain"]
    assert (plain["difference"] == 0).all()
    table = paths_table(rows)
    assert list(table["path"]) == paths and (table["seeds"] == 2).all()
    assert table["auroc"][paths.index("bank")] == pytest.approx(rows[rows["path"] == "bank"]["auroc"].mean())


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
