"""Encoder: shapes of both stems, seeds, normalisation."""

import pytest
import torch
from torch import nn

from diawork.base.config import EncoderConfig
from diawork.method.encoder import SmallMapConv2d, build_encoder


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_shapes(stem, channels, size):
    embedding = build_encoder(EncoderConfig(stem=stem, channels=channels)).eval()(torch.rand(2, channels, size, size))
    assert [tuple(v.shape) for v in embedding] == [(2, 512), (2, 128), (2, 4)]


def test_size_is_the_published_one():
    encoder = build_encoder(EncoderConfig(stem="cifar", channels=3))
    assert sum(p.numel() for p in encoder.backbone.parameters()) == pytest.approx(11.17e6, rel=0.002)
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(11.51e6, rel=0.002)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_small_maps_are_convolved_exactly(size, stride):
    layer = nn.Conv2d(3, 5, 3, stride, 1, bias=False).double()
    x = torch.rand(4, 3, size, size, dtype=torch.float64, requires_grad=True)
    expected = layer(x)
    wanted = torch.autograd.grad(expected.square().sum(), [x, layer.weight])
    layer.__class__ = SmallMapConv2d
    got = layer(x)
    assert torch.allclose(got, expected, atol=1e-12)
    for a, b in zip(torch.autograd.grad(got.square().sum(), [x, layer.weight]), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_weights_depend_on_the_seed_alone():
    torch.rand(7)
    a, b, c = (build_encoder(seed=s).projection[0].weight for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_middle_grey_enters_as_zero():
    encoder, seen = build_encoder(), []
    encoder.backbone.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    encoder.eval()(torch.full((1, 1, 28, 28), 0.5))
    assert seen[0].abs().max() == 0
