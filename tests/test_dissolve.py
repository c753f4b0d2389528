"""Dissolver: exactness with an oracle, range modes, bridges, refusals, the alternatives."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig, DissolveConfig, ExperimentConfig
from diawork.base.errors import UsageError
from diawork.base.seeding import generator
from diawork.data.datasets import load
from diawork.data.manifests import load_manifest
from diawork.detectors.dia import DIA
from diawork.method.ddpm import DDPM, build_ddpm
from diawork.method.dissolve import Dissolver, check_t, dissolve, from_model, to_model
from diawork.method.operators import (
    OPERATORS,
    AddNoise,
    GaussianBlur,
    Heuristic,
    Identity,
    MedianBlur,
    ResizeOnly,
    build_operator,
    matched,
)
from diawork.runs.methods import label_of
from diawork.runs.resolve import resolve

TINY = DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=16)


class Oracle(nn.Module):
    """Predicts whatever noise it is told, whatever it is shown."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, x, t):
        return self.noise.expand_as(x)


@pytest.fixture(scope="module")
def ddpm():
    return build_ddpm(TINY)


def with_noise(noise):
    ddpm = build_ddpm(TINY)
    ddpm.model.forward = Oracle(torch.as_tensor(noise)).forward
    return ddpm


@pytest.mark.parametrize("t", [0, 30, 200, 400, 800])
def test_known_noise_gives_back_the_clean_image_exactly(t):
    clean, noise = torch.rand(2, 1, 16, 16) * 0.4 + 0.3, torch.randn(2, 1, 16, 16)
    ddpm = with_noise(noise)
    x_t = ddpm.q_sample(clean * 2 - 1, torch.full((2,), t), noise)
    assert torch.allclose(dissolve(ddpm, (x_t + 1) / 2, t), clean, atol=2e-5)


@pytest.mark.parametrize("value", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("t", [50, 400])
def test_range_modes_through_a_network_that_predicts_nothing(value, t):
    ddpm, x = with_noise(0.0), torch.full((1, 1, 16, 16), value)
    factor = ddpm.sqrt_recip_alphas_cumprod[t].item()
    normalized, released = (
        dissolve(ddpm, x, t, range_mode=mode)[0, 0, 0, 0].item() for mode in ("normalized", "released")
    )
    assert normalized == pytest.approx((min(1, max(-1, (2 * value - 1) * factor)) + 1) / 2, abs=1e-5)
    assert released == pytest.approx(min(1, value * factor), abs=1e-5)


@pytest.mark.parametrize(("t", "alpha_bar"), [(30, 0.99647), (100, 0.97158), (200, 0.89776), (800, 0.09314)])
def test_schedule_is_the_published_cosine(ddpm, t, alpha_bar):
    assert ddpm.alphas_cumprod[t].item() == pytest.approx(alpha_bar, abs=1e-5)


def test_one_step_an_image_equals_one_image_at_a_time(ddpm):
    x, t = torch.rand(3, 1, 12, 12), torch.tensor([10, 200, 900])
    together = dissolve(ddpm, x, t)
    alone = torch.cat([dissolve(ddpm, x[i : i + 1], int(t[i])) for i in range(3)])
    assert together.shape == x.shape and torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (1000, r"t=1000 outside \[0, 1000\)"),
        (-1, "t=-1 outside"),
        (5.0, "is a float"),
        (True, "is a bool"),
        (None, "NoneType"),
        (torch.tensor([1.0, 2.0]), "dtype torch.float32"),
        (torch.tensor([1, 2, 3]), r"shape \(3,\)"),
        (torch.tensor(5), r"shape \(\)"),
        (torch.tensor([5, 2000]), "t=2000"),
    ],
)
def test_refuses_a_step_it_was_not_trained_on(t, message):
    with pytest.raises(UsageError, match=message):
        check_t(t, 1000, 2)


def test_small_integer_types_are_steps_too():
    assert check_t(torch.tensor([1, 2], dtype=torch.int32), 10, 2).tolist() == [1, 2]


@pytest.mark.parametrize(("bridge", "size"), [("pad", 12), ("pad", 16), ("none", 16)])
def test_bridge_and_back_is_exact(bridge, size):
    x = torch.rand(2, 1, size, size)
    assert torch.equal(from_model(to_model(x, 16, bridge), x, bridge), x)


def test_pad_surrounds_with_zero_and_resize_takes_antialias():
    assert to_model(torch.ones(1, 1, 12, 12), 16, "pad").sum() == 144
    x = torch.rand(1, 1, 64, 64)
    plain, smooth = (to_model(x, 16, "resize", antialias=a) for a in (False, True))
    assert smooth.std() < plain.std()


def test_bridge_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="64×64 px to the model's 16×16"):
        to_model(torch.rand(1, 1, 64, 64), 16, "pad")


def test_colour_and_grey_models_take_each_others_images():
    x = torch.rand(1, 3, 16, 16)
    assert from_model(to_model(x, 16, "none", channels=1), x, "none").shape == x.shape
    assert to_model(x[:, :1], 16, "none", channels=3).shape == x.shape


def test_steps_are_uniform_over_the_integers_of_the_range(ddpm):
    dissolver = Dissolver(ddpm, DissolveConfig(t_range=(3, 6)))
    counts = dissolver.sample_t(8000, generator(0)).bincount()
    assert counts[:3].sum() == 0 and len(counts) == 7 and counts[3:].min() > 1850


def test_one_step_a_batch_when_asked(ddpm):
    dissolver = Dissolver(ddpm, DissolveConfig(t_range=(3, 600), t_per="batch"))
    assert len(dissolver.sample_t(50, generator(0)).unique()) == 1


def test_stack_is_every_image_at_every_step(ddpm):
    x, dissolver = torch.rand(2, 1, 12, 12), Dissolver(ddpm)
    stack = dissolver.stack(x, [5, 300, 900], batch=4)
    assert stack.shape == (3, 2, 1, 12, 12)
    assert torch.allclose(stack[1], dissolver.at(x, 300), atol=1e-5)


def test_range_beyond_the_schedule_is_refused(ddpm):
    with pytest.raises(UsageError, match="t=1500 outside"):
        Dissolver(ddpm, DissolveConfig(t_range=(30, 1500)))


def test_dissolving_draws_nothing_from_the_global_generators(ddpm):
    before = torch.get_rng_state()
    Dissolver(ddpm)(torch.rand(0, 1, 12, 12), image=torch.arange(0), flip=torch.zeros(0), generator=generator(0))
    dissolve(ddpm, torch.zeros(1, 1, 12, 12), 50)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("operator", [GaussianBlur(5), MedianBlur(7), ResizeOnly(6), AddNoise(0.2), Identity()])
def test_alternatives_have_the_same_face(operator):
    x = torch.rand(2, 1, 12, 12)
    x_hat, t = operator(x, image=torch.arange(2), flip=torch.zeros(2, dtype=torch.bool), generator=generator(0))
    assert x_hat.shape == x.shape and x_hat.min() >= 0 and x_hat.max() <= 1 and t.tolist() == [-1, -1]


@pytest.mark.parametrize("operator", [GaussianBlur(5), MedianBlur(7), ResizeOnly(6)])
def test_smoothers_keep_a_flat_image_and_calm_a_busy_one(operator):
    flat, busy = torch.full((1, 1, 12, 12), 0.4), torch.rand(1, 1, 12, 12)
    assert torch.allclose(operator.apply(flat, generator(0)), flat, atol=1e-5)
    assert operator.apply(busy, generator(0)).std() < 0.8 * busy.std()


def test_median_takes_the_median():
    x = torch.rand(1, 1, 9, 9)
    assert MedianBlur(3).apply(x, generator(0))[0, 0, 4, 4] == x[0, 0, 3:6, 3:6].median()


def test_noise_has_the_asked_strength():
    x = torch.full((50, 1, 16, 16), 0.5)
    assert (AddNoise(0.1).apply(x, generator(0)) - x).std().item() == pytest.approx(0.1, rel=0.05)


def test_the_config_names_its_operator(ddpm):
    assert isinstance(build_operator(DissolveConfig(operator="median_blur")), MedianBlur)
    assert isinstance(build_operator(DissolveConfig(), ddpm), Dissolver)
    with pytest.raises(UsageError, match="needs a pretrained model"):
        build_operator(DissolveConfig())
    with pytest.raises(UsageError, match=r"'gausian_blur' is not a operator.*gaussian_blur"):
        build_operator(DissolveConfig(operator="gausian_blur"))


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_label_a_title_and_a_build_of_its_config(name, ddpm):
    kind, cfg = OPERATORS[name], DissolveConfig(operator=name, kernel_size=5, noise_sd=0.3, resize_to=6, model="m")
    assert kind.title.format(**vars(cfg)) and (kind.label(cfg) or name == "ddpm")
    assert kind.color.startswith("#") != kind.diffusion
    if name != "diffusers":
        operator = build_operator(cfg, ddpm)
        assert isinstance(operator, kind)
        assert all(getattr(operator, knob) == getattr(cfg, knob) for knob in ("kernel_size", "noise_sd", "resize_to")
                   if hasattr(operator, knob))  # fmt: skip


@dataclass(frozen=True)
class Darken(Heuristic):
    """Takes ``noise_sd`` from every pixel."""

    name, title, color = "darken", "darker by {noise_sd:g}", "#123456"
    limits: ClassVar = {"kernel_size": lambda side: side // 2}
    dial = "noise_sd", 0.01, 0.5
    noise_sd: float = 0.1

    def apply(self, x, generator):
        return (x - self.noise_sd).clamp(0, 1)


def test_one_class_in_the_list_is_all_that_an_operator_needs(monkeypatch):
    monkeypatch.setitem(OPERATORS, "darken", Darken)
    cfg = ExperimentConfig().override({"dissolve.operator": "darken", "dissolve.noise_sd": 0.25})
    assert label_of(cfg) == "darken in the slot"
    assert DIA(None, cfg, compute=Compute()).dissolve == Darken(0.25)
    assert not resolve(cfg, load_manifest("phantom")).needs_ddpm
    with pytest.raises(
        UsageError, match=r"dissolve.kernel_size: 17 px do not fit images of 32×32 px. Allowed: up to 16"
    ):
        resolve(cfg.override({"dissolve.kernel_size": 17}), load_manifest("phantom"))
    grey = torch.full((4, 1, 8, 8), 0.9)
    found = matched(cfg.dissolve, Darken(0.2), grey)
    assert found["settings"] == {"noise_sd": pytest.approx(0.2, rel=1e-3)}


def test_eq_4_takes_what_pretraining_returns_and_a_selection_of_images(ddpm):
    images = load("phantom").test.take([0, 3])
    pretrained = DDPM(build_ddpm(TINY.model_copy(update={"seed": 5})), ddpm, TINY, {"bridge": "resize"})
    wanted = dissolve(ddpm, images.images, 100, bridge="resize")
    assert torch.equal(dissolve(pretrained, images, 100), wanted)
    averaged, raw = (Dissolver(pretrained, DissolveConfig(weights=which)) for which in ("ema", "raw"))
    assert torch.allclose(averaged.at(images.images, 100), wanted, atol=1e-5)
    assert not torch.allclose(raw.at(images.images, 100), wanted, atol=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
def test_eq_4_is_the_librarys_to_the_last_bit(schedule):
    ddpm = build_ddpm(TINY.model_copy(update={"beta_schedule": schedule})).eval()
    x, t = torch.rand(6, 1, 16, 16), torch.tensor([0, 1, 40, 400, 900, 999])
    with torch.no_grad():
        start = ddpm.predict_start_from_noise(x * 2 - 1, t, ddpm.model(x * 2 - 1, t))
    assert torch.equal(dissolve(ddpm, x, t), (start.clamp(-1, 1) + 1) / 2)
