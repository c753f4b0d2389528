"""UNet in training: the library's numbers and gradients to rounding, its weights, and back again."""

import copy

import pytest
import torch

from diawork.base.config import DiffusionConfig
from diawork.method.ddpm import build_ddpm
from diawork.method.unet import TRAINED, release, restate


@pytest.fixture(scope="module")
def unet():
    """A UNet in double precision whose gains are not all one, as training leaves them."""
    unet = build_ddpm(DiffusionConfig(dim=8, dim_mults=(1, 2, 2), image_size=16)).model
    torch.manual_seed(0)
    for name, parameter in unet.named_parameters():
        if name.endswith(".g"):
            parameter.data += 0.2 * torch.randn_like(parameter)
    return unet.double()


def gradients(unet, x, memory_format=torch.contiguous_format):
    """Return the output, and the gradients of a curved loss for the input and every weight."""
    unet = unet.to(memory_format=memory_format)
    unet.zero_grad()
    x = x.clone().requires_grad_()
    y = unet(x, torch.tensor([0.0, 80.0, 999.0], dtype=x.dtype))
    (y * y.sin()).mean().backward()
    return {"output": y, "input": x.grad} | {name: p.grad for name, p in unet.named_parameters()}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_every_gradient_are_the_librarys(unet, memory_format):
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    ours = gradients(restate(copy.deepcopy(unet)), x, memory_format)
    for name, wanted in gradients(copy.deepcopy(unet), x).items():
        assert (ours[name] - wanted).abs().max() <= 1e-10 * wanted.abs().max(), name


def test_an_image_without_contrast_has_the_librarys_gradients(unet):
    x = torch.zeros(3, 1, 16, 16, dtype=torch.float64)
    ours, wanted = (gradients(form(copy.deepcopy(unet)), x) for form in (restate, release))
    assert all(torch.allclose(ours[name], value) for name, value in wanted.items())


def test_every_block_changes_its_class_and_no_weight(unet):
    restated = restate(copy.deepcopy(unet))
    kinds = {type(module) for module in restated.modules()}
    assert set(TRAINED.values()) <= kinds and not {*TRAINED} & kinds - {torch.nn.Conv2d}
    weights = unet.state_dict()
    assert weights.keys() == restated.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in restated.state_dict().items())
    assert [type(m) for m in release(restated).modules()] == [type(m) for m in unet.modules()]


def test_huge_keys_overflow_neither_output_nor_gradients(unet):
    unet = copy.deepcopy(unet).float()
    for name, parameter in unet.named_parameters():
        parameter.data *= 300 if "to_qkv" in name else 1
    assert all(value.isfinite().all() for value in gradients(restate(unet), torch.randn(3, 1, 16, 16)).values())


def test_low_precision_stays_close_and_gradients_are_full(unet):
    x, t = torch.randn(3, 1, 16, 16), torch.tensor([0, 80, 999])
    library, ours = copy.deepcopy(unet).float(), restate(copy.deepcopy(unet).float())
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x, t)
    y.float().square().mean().backward()
    library(x, t).square().mean().backward()
    for wanted, parameter in zip(library.parameters(), ours.parameters(), strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - wanted.grad).norm() < 0.1 * wanted.grad.norm() + 1e-3
