"""Config: validation, overrides, digests, presets."""

import numpy as np
import pytest

from diawork.base.config import ExperimentConfig
from diawork.base.errors import UsageError
from diawork.base.files import as_json, read_value
from diawork.runs.presets import PRESETS, preset


def test_override_changes_a_copy_and_the_digest():
    cfg = ExperimentConfig()
    changed = cfg.override({"loss.temperature": 0.2, "seed": 3})
    assert (changed.loss.temperature, changed.seed, cfg.loss.temperature) == (0.2, 3, 0.5)
    assert changed.digest("data") != cfg.digest("data") != cfg.digest("other data")


def test_digest_depends_on_content_alone():
    assert ExperimentConfig().override({"train.epochs": 10}).digest() == ExperimentConfig().digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss.temprature": 1}, "Did you mean 'loss.temperature'"),
        ({"loss": 1}, "'loss' is not a parameter"),
        ({"nonsense.x": 1}, "Allowed|Did you mean"),
        ({"loss.temperature": 0}, "loss.temperature: .*greater than or equal to 0.01"),
        ({"dissolve.t_range": [30, 1200]}, r"must lie in \[0, 1000\)"),
        ({"dissolve.t_range": [130, 30]}, "low ≤ high"),
        ({"dissolve.kernel_size": 4}, "must be odd"),
        ({"views.crop_scale": [0, 1]}, "of the area"),
        ({"loss.mask": "some"}, "'naive' or 'shifted_removed'"),
        ({"diffusion.image_size": 30}, "multiple of 8"),
        ({"train.select": "test"}, "'val' or 'pseudo'"),
        ({"train.peak_lr": float("nan")}, "finite"),
        ({"data.contamination": 0.6}, "data.contamination: .*less than or equal to 0.5"),
        ({"data.lesion_size": 0}, "greater than 0"),
        ({"dissolve.match": "blur"}, "'none' or 'ddpm'"),
        ({"dissolve.match": "ddpm", "dissolve.range_mode": "released"}, "leaves that range"),
        ({"seed": "a"}, "integer"),
        ({"diffusion.dim": 2}, "greater than or equal to 4"),
        ({"diffusion.dim": 5}, "multiple of 2"),
        ({"diffusion.dim_mults": []}, "at least 1 item"),
        ({"diffusion.timesteps": 20, "diffusion.beta_schedule": "linear"}, "above 20 for the linear schedule"),
        ({"diffusion.betas": [0.9, 1]}, "less than 1"),
        ({"views.crop_ratio": [0, 1]}, "0.01 ≤ low"),
        ({"score.crop_scale": [0.5, 2]}, "of the area"),
        ({"dissolve.sigma": 1e-300}, "dissolve.sigma: .*0.01"),
    ],
)
def test_refuses_in_one_sentence(change, message):
    with pytest.raises(UsageError, match=message):
        ExperimentConfig().override(change)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", True),
        ("seed", True),
        ("encoder.channels", True),
        ("loss.temperature", "0.1"),
        ("train.epochs", "3"),
        ("views.hflip", "no"),
        ("views.hflip", 1),
        ("dissolve.t_range", [True, 130]),
        ("train.epochs", 1.5),
        ("train.peak_lr", float("inf")),
        ("train.peak_lr", 10**400),
    ],
)
def test_nothing_is_turned_into_another_type(key, value):
    with pytest.raises(UsageError, match=key):
        ExperimentConfig().override({key: value})


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("loss.temperature", 1, 1.0),
        ("train.peak_lr", 1e-4, 1e-4),
        ("diffusion.steps", 1e4, 10_000),
        ("seed", np.int64(3), 3),
        ("dissolve.t_range", [30, 1e2], [30, 100]),
        ("diffusion.dim_mults", (1, 2), [1, 2]),
    ],
)
def test_numbers_and_lists_as_people_write_them(key, value, kept):
    assert ExperimentConfig().override({key: value}).flat()[key] == kept


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("null", None), ("1e-4", 1e-4), ('{"a": [1, false]}', {"a": [1, False]}),
     ("(30, 130)", (30, 130)), ("{'a': 1}", {"a": 1})],
)  # fmt: skip
def test_text_is_read_as_json_or_python(text, value):
    assert read_value(text) == value


@pytest.mark.parametrize("text", ["no", "{", "[" * 100_000, "1" * 5_000, "f()"])
def test_text_that_is_neither_is_said_so(text):
    with pytest.raises(ValueError, match="neither JSON nor a Python literal"):
        read_value(text)


@pytest.mark.parametrize("value", [1e400, [float("nan")], {"a": {1, 2}}, b"x", "\udcff", 1j])
def test_what_no_json_file_can_hold_is_known(value):
    assert as_json({"a": (1, 0.5, None, "ü")}) == {"a": [1, 0.5, None, "ü"]}
    with pytest.raises(ValueError):
        as_json({"a": value})


def test_configs_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        ExperimentConfig().seed = 2


def test_flat_names_are_the_override_keys():
    cfg = ExperimentConfig()
    assert cfg.override(cfg.flat()) == cfg


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_say_how_to_run_them(name):
    assert preset(name, seed=1).seed == 1
    assert f"--preset {name}" in PRESETS[name].__doc__ or "diawork demo" in PRESETS[name].__doc__


def test_presets_state_what_their_sources_say():
    paper, r23, r24 = map(preset, ("paper", "repo2023", "repo2024"))
    assert (paper.dissolve.range_mode, paper.dissolve.weights, paper.loss.mask) == ("normalized", "ema", "naive")
    assert (r23.loss.mask, r24.loss.mask) == ("naive", "shifted_removed")
    assert (r23.diffusion.steps, r24.diffusion.steps) == (25_000, 312_500)
    assert r23.dissolve.t_range == r24.dissolve.t_range == (30, 99)
    assert r23.views.third_source == "second_view" and r24.views.dissolve_per == "shift"
    assert {cfg.diffusion.precision for cfg in (paper, r23, r24)} == {"fp32"}  # mixed precision does not converge
    assert {cfg.loss.constant for cfg in (paper, r23, r24)} == {"repo"}  # the literal one of Eq. 7 does not train
    assert [cfg.score.flip_per for cfg in (paper, r23, r24)] == ["copy", "shift", "shift"]


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'paper'"):
        preset("papper")
