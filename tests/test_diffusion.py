"""Diffusion: the loss falls, resume is exact, foreign weights are refused."""

from dataclasses import replace

import pytest
import torch

from diawork.base.checkpoints import load_checkpoint
from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig
from diawork.base.errors import CheckpointError, DataError, Interrupted, NumericError
from diawork.base.stopping import _asked
from diawork.method import ddpm as diffusion
from diawork.method.ddpm import build_ddpm, denoising_loss, load_ddpm, pretrain_ddpm, sample_ddpm, save_ddpm
from diawork.method.dissolve import Dissolver
from diawork.runs.presets import preset
from tests.conftest import make_images
from tests.toys import as_format_1, before_each_save

TINY = DiffusionConfig(
    dim=8, dim_mults=(1, 2), image_size=16, steps=4, batch_size=4, lr=1e-3, ema_every=1, lr_schedule="cosine"
)


def change(**fields):
    return TINY.model_copy(update=fields)


def same_weights(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture(scope="module")
def trained():
    return pretrain_ddpm(make_images(), TINY)


def test_settings_are_the_published_ones():
    ddpm = build_ddpm(TINY)
    assert (ddpm.objective, ddpm.num_timesteps) == ("pred_noise", 1000)
    assert torch.allclose(ddpm.loss_weight, torch.ones(1000))


def test_the_unet_is_the_librarys_of_today():
    unet = build_ddpm(preset("paper").diffusion).model
    assert sum(p.numel() for p in unet.parameters()) == 35_711_491  # as README says; released 36.25 M
    assert {type(m).__name__ for m in unet.modules()} >= {"RMSNorm"}


def test_loss_is_zero_for_a_perfect_prediction():
    ddpm, x, noise = build_ddpm(TINY), torch.rand(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    ddpm.model.forward = lambda *_: noise
    assert denoising_loss(ddpm, x, torch.tensor([5, 900]), noise) == 0


def test_learns_a_constant_image():
    images = make_images(8)
    images.images.fill_(0.8)
    losses = pretrain_ddpm(images, change(steps=60, lr=3e-3, lr_schedule="constant")).losses
    assert len(losses) == 60 and sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_trains_on_healthy_images_alone():
    mixed = make_images(12, anomalous=5)
    assert pretrain_ddpm(mixed, change(steps=1)).data["images"] == 7
    assert pretrain_ddpm(mixed, change(steps=1, data_fraction=0.5)).data["images"] == 4


def test_average_and_raw_weights_differ_and_both_are_kept(trained, tmp_path):
    assert not same_weights(trained.raw, trained.ema)
    save_ddpm(tmp_path, trained)
    again = load_ddpm(tmp_path, TINY)
    assert same_weights(again.raw, trained.raw) and same_weights(again.ema, trained.ema)
    assert again.config == TINY and again.data == trained.data and again.losses == trained.losses


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_training_goes_on_exactly(trained, tmp_path, stop_after):
    def stop(_checkpointer, step, _snapshot):
        if step == stop_after:
            _asked.set()

    with before_each_save(stop), pytest.raises(Interrupted):
        pretrain_ddpm(make_images(), TINY, folder=tmp_path)
    resumed = pretrain_ddpm(make_images(), TINY, folder=tmp_path)
    assert same_weights(resumed.raw, trained.raw) and same_weights(resumed.ema, trained.ema)
    assert resumed.losses == trained.losses
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["ddpm.safetensors"]


def test_accumulated_micro_batches_visit_every_image_once_an_epoch(monkeypatch):
    seen, loss = [], diffusion.denoising_loss
    monkeypatch.setattr(diffusion, "denoising_loss", lambda *a, **kw: seen.append(len(a[1])) or loss(*a, **kw))
    losses = pretrain_ddpm(make_images(), change(accumulate=3, steps=2)).losses
    assert seen == [4] * 6 and len(losses) == 2


def test_a_finished_training_is_loaded(trained, tmp_path, monkeypatch):
    pretrain_ddpm(make_images(), TINY, folder=tmp_path)
    monkeypatch.setattr("diawork.method.ddpm._pretrained", None)
    assert same_weights(pretrain_ddpm(make_images(), TINY, folder=tmp_path).raw, trained.raw)


def test_a_ddpm_of_format_1_is_loaded(trained, tmp_path, monkeypatch):
    save_ddpm(tmp_path, trained)
    as_format_1(tmp_path / "ddpm")
    monkeypatch.setattr("diawork.method.ddpm._pretrained", None)
    found = pretrain_ddpm(make_images(), TINY, folder=tmp_path)
    assert same_weights(found.ema, trained.ema) and found.losses == trained.losses


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"dim": 16}, "dim: in file 8, wanted 16"),
        ({"image_size": 32}, "image_size"),
        ({"channels": 3}, "channels"),
        ({"beta_schedule": "linear"}, "beta_schedule: in file 'cosine', wanted 'linear'"),
        ({"timesteps": 500}, "timesteps"),
    ],
)
def test_foreign_weights_are_refused_with_the_difference(trained, tmp_path, fields, named):
    save_ddpm(tmp_path, trained)
    with pytest.raises(CheckpointError, match=named):
        load_ddpm(tmp_path, change(**fields))


def test_a_record_that_claims_more_weights_than_its_file_holds_is_refused_before_a_model_is_built(trained, tmp_path):
    save_ddpm(tmp_path, replace(trained, config=change(dim=4096, dim_mults=(64, 64))))  # terabytes
    with pytest.raises(CheckpointError, match="belongs to something else"):
        load_ddpm(tmp_path)


def test_weights_of_other_data_are_refused(trained, tmp_path):
    save_ddpm(tmp_path, trained)
    with pytest.raises(DataError, match="trained on other data"):
        pretrain_ddpm(make_images(seed=9), TINY, folder=tmp_path)


def test_divergence_stops_the_training_and_keeps_the_checkpoint(tmp_path):
    images = make_images()
    with pytest.raises(NumericError, match="DDPM stopped being finite at step"):
        pretrain_ddpm(images, change(lr=1e30, steps=30, lr_schedule="constant"), folder=tmp_path, save_every=0)
    newest = sorted(tmp_path.glob("step-*.safetensors"))[-1]
    assert load_checkpoint(newest.with_suffix("")).state["step"] >= 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_image_that_is_not_finite_stops_the_training_and_is_named(tmp_path, monkeypatch, value):
    """The data set refuses such images; one that comes about on the way must not reach the model."""
    images = make_images()
    broken = images.images.clone()
    broken[5, 0, 0, 0] = value
    monkeypatch.setattr("diawork.method.ddpm.to_model", lambda *_, **__: broken)
    with pytest.raises(NumericError, match=r"images hold NaN or infinite values; healthy images \[.*\b5\b"):
        pretrain_ddpm(images, TINY, folder=tmp_path, save_every=0)
    for path in tmp_path.glob("step-*.safetensors"):
        assert load_checkpoint(path.with_suffix("")).state["step"] >= 1


def test_samples_are_images_and_leave_the_model_as_it_was(trained):
    before = trained.raw.sampling_timesteps
    x = sample_ddpm(trained.raw, 2, steps=3, seed=1)
    assert x.shape == (2, 1, 16, 16) and x.min() >= 0 and x.max() <= 1
    assert torch.equal(sample_ddpm(trained.raw, 2, steps=3, seed=1), x) and trained.raw.sampling_timesteps == before


def test_a_ddpm_pinned_to_fp32_is_trained_and_dissolves_in_fp32_whatever_the_run_computes_in():
    low = Compute(precision="bf16")
    exact, pinned, loose = (
        pretrain_ddpm(make_images(), change(precision=p), compute=compute, progress=False)
        for p, compute in (("run", Compute()), ("fp32", low), ("run", low))
    )
    assert same_weights(exact.raw, pinned.raw) and not same_weights(exact.raw, loose.raw)
    dtypes = [next(Dissolver(ddpm, compute=low).ddpm.model.parameters()).dtype for ddpm in (pinned, loose)]
    assert dtypes == [torch.float32, torch.bfloat16]
