"""Random configs: what is not refused before any work runs to its result, and nothing ends in a traceback."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diawork.base.compute import Compute
from diawork.base.config import ExperimentConfig
from diawork.base.errors import UsageError
from diawork.base.registry import DETECTORS
from diawork.cli.main import main
from diawork.evaluation import metrics, pixels
from diawork.runs.experiment import run_experiment
from diawork.runs.methods import METHODS, runnable
from diawork.runs.presets import preset
from tests.toys import TOY

WITHOUT_EXTRAS = METHODS.keys() - {name for name, entry in DETECTORS.items() if entry.extra}
BASE = {
    "diffusion.dim": 4, "diffusion.dim_mults": [1], "diffusion.image_size": 16, "diffusion.steps": 1,
    "diffusion.batch_size": 2, "train.epochs": 1, "train.batch_size": 4, "train.epoch_n": 1, "score.samples": 1,
}  # fmt: skip
LEGAL = {  # may still not fit each other
    "seed": [0, 7],
    "data.contamination": [0, 0.2],
    "data.lesion_size": [None, 3, 5.5],
    "data.lesion_contrast": [None, -0.3, 0.5],
    "data.size": [None, 12, 16],
    "data.drop_leaks": [False, True],
    "data.normal_class": [None, "healthy"],
    "diffusion.dim": [4, 6, 10],
    "diffusion.dim_mults": [[1], [2, 1], [1, 3, 2], [1, 1, 1, 1, 1]],
    "diffusion.channels": [1, 3],
    "diffusion.image_size": [8, 12, 16, 17, 18, 24],
    "diffusion.timesteps": [1, 5, 21, 100, 1000],
    "diffusion.beta_schedule": ["cosine", "linear", "sigmoid"],
    "diffusion.loss": ["l1", "l2"],
    "diffusion.steps": [0, 1, 2],
    "diffusion.batch_size": [1, 50],
    "diffusion.accumulate": [1, 2],
    "diffusion.lr": [1e-6, 0.01],
    "diffusion.lr_schedule": ["constant", "cosine"],
    "diffusion.betas": [[0, 0], [0.9, 0.999]],
    "diffusion.clip_norm": [1e-3, 10],
    "diffusion.ema_decay": [0, 0.9, 1],
    "diffusion.ema_every": [1, 10],
    "diffusion.hflip": [True, False],
    "diffusion.precision": ["run", "fp32"],
    "diffusion.seed": [0, 2**31 - 1],
    "diffusion.per_seed": [True, False],
    "diffusion.data_fraction": [0.01, 0.5, 1],
    "diffusion.dataset": [None, "phantom"],
    "dissolve.match": ["none", "ddpm"],
    "dissolve.t_range": [None, [0, 0], [0, 4], [3, 20], [30, 130], [999, 999]],
    "dissolve.t_per": ["image", "batch"],
    "dissolve.range_mode": ["normalized", "released"],
    "dissolve.weights": ["ema", "raw"],
    "dissolve.bridge": [None, "pad", "resize", "none"],
    "dissolve.antialias": [True, False],
    "dissolve.bank_steps": [0, 1, 2],
    "dissolve.kernel_size": [3, 7, 31, 33],
    "dissolve.sigma": [None, 0.01, 3],
    "dissolve.noise_sd": [0.001, 2],
    "dissolve.resize_to": [1, 8, 16, 40],
    "views.shift": ["rotation", "cutperm"],
    "views.crop_scale": [[0.01, 0.01], [0.5, 1]],
    "views.crop_ratio": [[0.01, 100], [1, 1]],
    "views.jitter_probability": [0, 1],
    "views.brightness": [0, 1],
    "views.contrast": [0, 1],
    "views.saturation": [0, 1],
    "views.grey_probability": [0, 1],
    "views.hue": [0, 0.5],
    "views.hflip": [True, False],
    "views.third_source": ["image", "second_view"],
    "views.dissolve_per": ["image", "shift"],
    "views.dissolve_branches": ["third", "all"],
    "encoder.stem": ["imagenet", "cifar"],
    "encoder.channels": [1, 3],
    "encoder.projection_dim": [1, 16],
    "loss.mask": ["naive", "shifted_removed"],
    "loss.constant": ["mean", "repo", "paper"],
    "loss.temperature": [0.01, 10],
    "loss.contrastive_weight": [0, 1],
    "loss.shift_weight": [0, 1],
    "loss.classifier": ["shift", "shift_dissolved"],
    "train.batch_size": [2, 50],
    "train.epoch_size": ["full", "samples", "batches"],
    "train.optimizer": ["lars", "sgd", "adamw"],
    "train.peak_lr": [1e-4, 0.1],
    "train.start_lr": [1e-5, 0.1],
    "train.momentum": [0, 0.99, 1],
    "train.weight_decay": [0, 0.1],
    "train.warmup_epochs": [0, 100],
    "train.decay_epochs": [None, 1],
    "train.clip_norm": [None, 0.1],
    "train.select": ["last", "val"],
    "train.track_test": [True, False],
    "score.flip_per": ["copy", "shift"],
    "score.crop_scale": [[0.01, 1], [1, 1]],
    "score.parts": ["both", "similarity", "shift"],
    "score.evaluate": ["test", "val"],
}
OURS = ("data", "diffusion", "dissolve", "views", "encoder", "loss", "train", "score")  # the others: as smoke has them
ILLEGAL = {  # alone, on the toy
    "seed": [-1, True, "0", 1.5, 2**31],
    "data.contamination": [0.5, 0.6],  # the toy has 2 anomalous training images and 6 healthy ones
    "data.lesion_size": [0, 1000, "4"],
    "data.lesion_contrast": [-2, 2],
    "data.size": [4, "32"],
    "data.drop_leaks": [1],
    "data.normal_class": ["sick", 3],
    "diffusion.dim": [1, 2, 3, 5, 7, 10**6, "8"],
    "diffusion.dim_mults": [[], [0], 1, [1.5], [1, 1, 1, 1, 1, 1]],
    "diffusion.channels": [0, 2, True],
    "diffusion.image_size": [0, 8, 17, 1e9],
    "diffusion.timesteps": [0, 1, 130, True, 1e400],
    "diffusion.betas": [[0.9], [0.9, 1], 0.9],
    "diffusion.data_fraction": [0, 1.1],
    "diffusion.dataset": ["nowhere", ""],
    "dissolve.t_range": [[5, 3], [-1, 3], [3], [0, 1000], "30", [True, 9]],
    "dissolve.bank_steps": [-1, 102],
    "dissolve.bridge": ["stretch"],
    "dissolve.kernel_size": [1, 4],
    "dissolve.sigma": [0, 1e-300],
    "views.crop_scale": [[0, 1], [0.5, 2], [1, 0.5]],
    "views.crop_ratio": [[0, 1], [1, 1e9]],
    "views.hflip": ["no", 1],
    "encoder.channels": [2, True],
    "encoder.projection_dim": [0],
    "loss.temperature": [0, "0.1", 1e400],
    "train.epochs": [0, True, 1.5, "3"],
    "train.batch_size": [1],
    "train.select": ["test"],
    "score.crop_scale": [[0, 1]],
    "score.evaluate": ["train"],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The manifest of a phantom of a few images, and one folder for all runs."""
    folder = tmp_path_factory.mktemp("random")
    text = TOY.replace("24, lesion: 0", "6, lesion: 2").replace("healthy: 8, lesion: 8", "healthy: 3, lesion: 3")
    (folder / "tiny.yaml").write_text(text.replace("healthy: 12, lesion: 12", "healthy: 4, lesion: 3"))
    return folder / "tiny.yaml"


@pytest.fixture
def few_resamples(monkeypatch):
    """Make intervals cheap: they are tested elsewhere."""
    monkeypatch.setattr(metrics.bootstrap_ci, "__kwdefaults__", {"level": 0.95, "n": 50, "seed": 0})
    monkeypatch.setattr(pixels.pixel_summary, "__kwdefaults__", {"limit": 0.3, "n": 20, "level": 0.95, "seed": 0})


changes = st.lists(st.sampled_from(sorted(LEGAL)), unique=True, min_size=2, max_size=15).flatmap(
    lambda keys: st.fixed_dictionaries({key: st.sampled_from(LEGAL[key]) for key in keys})
)


def ran(manifest, n):
    """Run n random configs, or see them refused before any work; return how many ran."""
    done = []

    @settings(max_examples=n, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(changes, st.sampled_from(sorted(WITHOUT_EXTRAS)))
    def runs_or_is_refused(changes, method):
        try:
            cfg = runnable(preset("smoke", dataset=str(manifest)).override(BASE | changes), method)
        except UsageError:
            return
        where = {"out": manifest.parent / "runs", "compute": Compute.auto("cpu", "fp32"), "progress": False}
        done.append(run_experiment(cfg, **where).done)

    runs_or_is_refused()
    return sum(done)


def test_random_configs_run_or_are_refused(tiny, few_resamples):
    assert ran(tiny, 8) >= 3


@pytest.mark.slow
def test_three_hundred_random_configs_run_or_are_refused(tiny, few_resamples):
    number = ran(tiny, 300)
    print(f"{number} of 300 random configs ran, the others were refused before any work")
    assert number >= 100


def test_every_knob_is_varied():
    knobs = {key for key in ExperimentConfig().flat() if key.split(".")[0] in OURS}
    assert knobs - set(LEGAL) - set(BASE) == {
        "dissolve.operator",
        "dissolve.model",
        "diffusion.objective",
    }  # the method's own, a folder, and one value


@pytest.mark.parametrize("key", ILLEGAL)
def test_illegal_values_are_refused_at_validation(tiny, key):
    cfg = preset("smoke", dataset=str(tiny)).override(BASE)
    for value in ILLEGAL[key]:
        with pytest.raises(UsageError):
            runnable(cfg.override({key: value}), "dia")
            print(f"{key}={value!r} was accepted")


@pytest.mark.parametrize("key", ["diffusion.dim", "diffusion.image_size", "dissolve.bank_steps", "data.lesion_size"])
def test_print_config_refuses_them_too(tiny, key, capsys):
    base = [word for name, value in BASE.items() if name != key for word in ("--set", f"{name}={json.dumps(value)}")]
    argv = ["run", "--print-config", "--preset", "smoke", "--dataset", str(tiny), *base]
    assert main(argv) == 0
    for value in ILLEGAL[key]:
        assert main([*argv, "--set", f"{key}={json.dumps(value)}"]) == 2
        assert "bug of ours" not in capsys.readouterr().err
