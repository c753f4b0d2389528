"""Compute: choices, refusals, equal numbers in bf16, the cost of the published UNet."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diawork.base.compute import Compute, count_macs, has_bf16, has_compiler, layer_macs
from diawork.base.config import DiffusionConfig, EncoderConfig, LossConfig, ViewsConfig
from diawork.base.errors import ResourceError, UsageError
from diawork.method.ddpm import build_ddpm
from diawork.method.dissolve import Dissolver
from diawork.method.encoder import build_encoder
from diawork.method.operators import GaussianBlur
from diawork.method.training import train_step
from diawork.method.views import BranchBuilder

BF16 = pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this processor has no bf16 arithmetic")


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


def test_on_a_cpu_channels_lie_last_and_the_gradients_are_the_same():
    gradients = []
    for compute in (Compute(), Compute.auto("cpu", "fp32")):
        encoder = compute.prepare(build_encoder().double())
        x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        encoder(compute.to(x)).z.square().sum().backward()
        gradients.append(encoder.backbone.layer3[0].conv1.weight.grad)
    assert gradients[1].is_contiguous(memory_format=torch.channels_last) and not gradients[1].is_contiguous()
    torch.testing.assert_close(gradients[1], gradients[0])


@BF16
def test_bf16_agrees_within_its_precision():
    compute, layer = Compute.auto("cpu", "bf16"), nn.Conv2d(3, 8, 3)
    x = torch.rand(2, 3, 8, 8)
    exact = layer(x)
    with compute.autocast():
        rough = compute.prepare(layer)(compute.to(x))
    assert rough.dtype == torch.bfloat16 and torch.allclose(rough.float(), exact, atol=0.02)


@BF16
def test_dissolving_in_bf16_agrees_within_two_grey_levels():
    ddpm = build_ddpm(DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=16))
    x, t = torch.rand(4, 1, 16, 16), torch.tensor([30, 80, 130, 200])
    exact, rough = (Dissolver(ddpm, compute=Compute.auto("cpu", p)).at(x, t) for p in ("fp32", "bf16"))
    error = 255 * (exact - rough).abs()
    assert error.mean() < 0.3 and error.max() < 2
    assert next(ddpm.model.parameters()).dtype == torch.float32  # the caller's model is left alone


@BF16
def test_the_loss_of_a_step_is_the_same_in_bf16_within_tolerance():
    views = BranchBuilder(ViewsConfig(), GaussianBlur())(
        torch.rand(8, 1, 28, 28), index=torch.arange(8), seed=0, step=0
    )
    losses = []
    for precision in ("fp32", "bf16"):
        compute = Compute.auto("cpu", precision)
        encoder = compute.prepare(build_encoder(EncoderConfig())).train()
        losses.append(float(train_step(encoder, views, LossConfig(), compute=compute).total))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


class OneConvolution(nn.Conv2d):
    """Takes the place of a UNet and is compiled in seconds."""

    def forward(self, x, t):
        return super().forward(x) + t[:, None, None, None] / 1000


def small_dissolver(**compute):
    ddpm = build_ddpm(DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=16))
    torch.manual_seed(0)
    ddpm.model = OneConvolution(1, 1, 3, padding=1)
    return Dissolver(ddpm, compute=Compute(**compute))


def test_little_work_is_not_compiled(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: pytest.fail("compiled"))
    small_dissolver().expect(10_000, 4)
    small_dissolver(compile=False).expect(10**15, 4)


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
def test_a_compiled_dissolver_gives_the_same_views_for_any_number_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    eager, compiled = small_dissolver(), small_dissolver()
    compiled.expect(10**12, 4)
    assert compiled.ddpm.model._compiled_call_impl is not None and any(tmp_path.iterdir())
    x, t = torch.rand(6, 1, 16, 16), torch.tensor([30, 50, 80, 100, 130, 200])
    assert compiled.at(x, t).shape == x.shape
    assert torch.allclose(compiled.at(x, t), eager.at(x, t), atol=1e-4)
    assert compiled.at(x[:0], t[:0]).shape == (0, 1, 16, 16)


def test_where_no_compiler_is_found_the_dissolver_stays_as_it_is_and_nothing_is_counted(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("diawork.base.compute.count_macs", lambda *_: pytest.fail("counted"))
    dissolver = small_dissolver()
    dissolver.expect(10**15, 4)
    assert dissolver.ddpm.model._compiled_call_impl is None


def test_layers_are_counted_as_often_as_they_run():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), shared, nn.ReLU(), shared)
    counts = layer_macs(net, torch.rand(1, 2, 8, 8))
    assert list(counts.values()) == [2 * 4 * 9 * 64, 2 * 16] and not shared._forward_hooks


def test_macs_of_a_convolution_by_hand():
    assert count_macs(nn.Conv2d(2, 5, 3, padding=1), torch.rand(1, 2, 8, 8)) == 2 * 5 * 9 * 64


def test_macs_are_counted_by_shapes_and_nothing_is_computed():
    net, seen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), []
    net.register_forward_hook(lambda *_: seen.append(_[2].device.type))
    assert count_macs(net, torch.rand(1, 1, 4, 4)) == 2 * 9 * 4
    assert seen == ["meta"] and net[1].num_batches_tracked == 0 and net[0].weight.device.type == "cpu"


@pytest.mark.parametrize("frozen", [False, True])
def test_a_count_by_shapes_is_that_of_a_pass(frozen):
    ddpm = build_ddpm(DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=16))
    net = Dissolver(ddpm, compute=Compute()).ddpm.model if frozen else ddpm.model.eval()
    inputs = torch.rand(2, 1, 16, 16), torch.zeros(2, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*inputs)
    assert 2 * count_macs(net, *inputs) == counter.get_total_flops() > 0


def test_true_cost_of_the_published_unet():
    ddpm = build_ddpm(DiffusionConfig(channels=3))
    macs = count_macs(ddpm.model, torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    assert macs / 1e9 == pytest.approx(1.83, abs=0.03)
    assert sum(p.numel() for p in ddpm.model.parameters()) / 1e6 == pytest.approx(36.25, abs=0.6)
