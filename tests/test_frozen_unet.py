"""Frozen UNet: the library's numbers with fewer passes, in place, and nothing else touched."""

import copy

import pytest
import torch
from torch import nn

from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig
from diawork.method.ddpm import build_ddpm
from diawork.method.unet import FrozenAttention, frozen_unet

X, T = torch.rand(3, 1, 16, 16) * 2 - 1, torch.tensor([0, 80, 999])


@pytest.fixture(scope="module")
def unet():
    """A UNet whose gains are not all one, as training leaves them."""
    unet = build_ddpm(DiffusionConfig(dim=16, dim_mults=(1, 2, 4), image_size=16)).model.eval()
    torch.manual_seed(0)
    for name, parameter in unet.named_parameters():
        if name.endswith(".g"):
            parameter.data += 0.2 * torch.randn_like(parameter)
    return unet.requires_grad_(False)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_agrees_with_the_library(unet, memory_format):
    frozen = frozen_unet(copy.deepcopy(unet))
    expected = unet(X, T)
    assert (frozen(X.to(memory_format=memory_format), T) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_is_another_network_inside(unet):
    kinds = {type(m) for m in frozen_unet(copy.deepcopy(unet)).modules()}
    assert FrozenAttention in kinds
    assert not {k.__name__ for k in kinds} & {"LinearAttention", "Block", "Rearrange"}


def test_huge_keys_do_not_overflow(unet):
    attention = copy.deepcopy(next(m for m in unet.modules() if type(m).__name__ == "LinearAttention"))
    attention.to_qkv.weight.data *= 300
    x = torch.randn(2, attention.to_qkv.in_channels, 8, 8)
    y = FrozenAttention(attention)(x)
    assert y.isfinite().all() and torch.allclose(y, attention(x), rtol=1e-3, atol=1e-3)


def test_an_image_does_not_depend_on_its_neighbours(unet):
    frozen = frozen_unet(copy.deepcopy(unet))
    assert torch.allclose(frozen(X, T)[1:2], frozen(X[1:2], T[1:2]), atol=1e-5)


def test_low_precision_needs_no_autocast_and_stays_close(unet):
    frozen = Compute(precision="bf16", channels_last=True).freeze(frozen_unet(copy.deepcopy(unet)))
    y = frozen(X.bfloat16(), T)
    assert y.dtype == torch.bfloat16
    assert (y.float() - unet(X, T)).abs().mean() < 0.05 * unet(X, T).abs().mean()


def test_another_module_is_left_alone():
    module = nn.Conv2d(1, 1, 3)
    assert frozen_unet(module) is module and module.weight.requires_grad
