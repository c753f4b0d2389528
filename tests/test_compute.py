"""Compute: choices, refusals, equal numbers in bf16, the cost of the published UNet."""

import pytest
import torch
from torch import nn

from diawork.compute import Compute, count_macs, has_bf16
from diawork.config import DiffusionConfig
from diawork.diffusion import build_ddpm
from diawork.dissolve import Dissolver
from diawork.errors import ResourceError, UsageError


def test_fp16_is_refused_with_the_reason():
    with pytest.raises(UsageError, match="known not to converge"):
        Compute.auto("cpu", "fp16")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ResourceError, match=device):
        Compute.auto(device)


def test_auto_takes_bf16_only_where_the_hardware_has_it():
    compute = Compute.auto("cpu")
    assert compute.precision == ("bf16" if has_bf16(torch.device("cpu")) else "fp32")
    assert compute.as_dict()["threads"] >= 1


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this processor has no bf16 arithmetic")
def test_bf16_agrees_within_its_precision():
    compute, layer = Compute.auto("cpu", "bf16"), nn.Conv2d(3, 8, 3)
    x = torch.rand(2, 3, 8, 8)
    exact = layer(x)
    with compute.autocast():
        rough = compute.prepare(layer)(compute.to(x))
    assert rough.dtype == torch.bfloat16 and torch.allclose(rough.float(), exact, atol=0.02)


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this processor has no bf16 arithmetic")
def test_dissolving_in_bf16_agrees_within_two_grey_levels():
    ddpm = build_ddpm(DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=16))
    x, t = torch.rand(4, 1, 16, 16), torch.tensor([30, 80, 130, 200])
    exact, rough = (Dissolver(ddpm, compute=Compute.auto("cpu", p)).at(x, t) for p in ("fp32", "bf16"))
    error = 255 * (exact - rough).abs()
    assert error.mean() < 0.3 and error.max() < 2
    assert next(ddpm.model.parameters()).dtype == torch.float32  # the caller's model is left alone


def test_macs_of_a_convolution_by_hand():
    assert count_macs(nn.Conv2d(2, 5, 3, padding=1), torch.rand(1, 2, 8, 8)) == 2 * 5 * 9 * 64


def test_true_cost_of_the_published_unet():
    ddpm = build_ddpm(DiffusionConfig(channels=3))
    macs = count_macs(ddpm.model, torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    assert macs / 1e9 == pytest.approx(1.83, abs=0.03)
    assert sum(p.numel() for p in ddpm.model.parameters()) / 1e6 == pytest.approx(36.25, abs=0.6)
