"""SimSID: patches and back, k items active, places apart, gradients that stop, a critic that does not drift."""

import numpy as np
import pytest
import torch

from diawork.base.compute import Compute
from diawork.base.errors import UsageError
from diawork.detectors.simsid import (
    InPainting,
    Memory,
    Networks,
    SimSID,
    critic,
    cut,
    distilled,
    jittered,
    joined,
    neighbours,
    shrunk,
)
from diawork.runs.methods import method_config
from tests.test_detectors import SMOKE, TEST, TRAIN, build, made

SMALL = {"image_size": 32, "channels": (4, 8, 16), "items": 6, "heads": 4}  # 4 × 4 patches of 8 px, deepest 2 px


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def networks(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Networks(SimSID.Section(**SMALL | changes), 1)


def test_an_image_is_cut_and_joined_again():
    x = random(2, 3, 8, 8)
    patches = cut(x, 4)
    assert torch.equal(joined(patches, 4), x)
    assert torch.equal(patches[16 + 6], x[1, :, 2:4, 4:6])  # second image, second row, third column


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_k_items_are_active_for_every_k(k):
    s = random(3, 4, 8)
    exact, official = (shrunk(s, k, mode) for mode in ("exact", "official"))
    assert ((exact > 1e-7).sum(-1) == k).all() and torch.allclose(exact.sum(-1), torch.ones(3, 4))
    assert ((official > 1e-7).sum(-1) == k - 1).all()  # the released slip
    top = s.topk(k, -1)
    assert torch.allclose(exact.gather(-1, top.indices), top.values.softmax(-1), atol=1e-6)


def test_equal_items_do_not_make_more_of_them_active():
    assert ((shrunk(torch.zeros(2, 10), 3) > 1e-7).sum(-1) == 3).all()


def test_the_gradient_of_a_shrunk_weight_is_that_of_a_softmax():
    s, direction = random(5).requires_grad_(), random(5, seed=1)
    gradients = [torch.autograd.grad((shrunk(s, 2, m) * direction).sum(), s)[0] for m in ("exact", "none")]
    assert torch.allclose(*gradients) and (gradients[0] != 0).all()


@pytest.mark.parametrize("space_aware", [True, False])
def test_a_queue_holds_the_latest_tokens_of_training_and_takes_no_gradient(space_aware):
    memory = Memory(3, SimSID.Section(**SMALL | {"memory": "queue", "space_aware": space_aware}))
    before, x = memory.items.clone(), random(2 * 16, 3, 1, 1).requires_grad_()
    recalled = memory.train()(x)
    recalled.sum().backward()  # what it was recalled from is still there
    tokens = x.detach().flatten(1).unflatten(0, (2, 16))
    if space_aware:
        assert torch.equal(memory.items[:, :2], tokens.transpose(0, 1)) and torch.equal(
            memory.items[:, 2:], before[:, :-2]
        )
    else:
        assert torch.equal(memory.items[0], tokens.flatten(0, 1)[: SMALL["items"]])
    assert memory.items.grad is None and not torch.allclose(recalled, memory(x.detach()))
    held = memory.items.clone()
    memory.eval()(random(16, 3, 1, 1, seed=2))
    assert torch.equal(memory.items, held)


def test_a_memory_recalls_its_own_places_items_alone():
    memory, x = Memory(3, SimSID.Section(**SMALL)), random(2 * 16, 3, 1, 1)
    recalled = memory(x)
    weights = shrunk(x[21, :, 0, 0] @ memory.items[5].T, 5)
    assert torch.allclose(recalled[21, :, 0, 0], weights @ memory.items[5], atol=1e-6)
    with torch.no_grad():
        memory.items[7] += 1
    moved = (memory(x) != recalled).flatten(1).any(1)
    assert moved.nonzero().flatten().tolist() == [7, 23]


def test_without_space_awareness_all_places_share_one_memory():
    shared = Memory(3, SimSID.Section(**SMALL, space_aware=False))
    assert shared.items.shape == (1, 6, 3)
    x = random(1, 3, 1, 1).expand(16, -1, -1, -1)
    assert torch.allclose(shared(x), shared(x)[:1].expand_as(x))


def test_neighbours_are_the_up_to_eight_around():
    assert neighbours(4).sum(1).reshape(4, 4).tolist() == [[3, 5, 5, 3], [5, 8, 8, 5], [5, 8, 8, 5], [3, 5, 5, 3]]
    assert not neighbours(3).diagonal().any()


def test_a_patch_is_told_from_its_neighbours_and_from_no_patch_further_off():
    inpainting = InPainting(16, 2, SimSID.Section(**SMALL)).eval()
    x = random(16, 16, 2, 2)
    changed = x.clone()
    changed[0] += 1  # the corner
    moved = ((inpainting(changed) - inpainting(x)).abs().amax((1, 2, 3)) > 1e-6).reshape(4, 4)
    assert moved.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    "changes",
    [{}, {"space_aware": False}, {"hierarchical": False}, {"skips": False}, {"inpaint": "convolution"},
     {"inpaint": "none"}, {"inpaint": "pixels"}, {"shrinkage": "none"}, {"memory": "random"}, {"memory": "queue"},
     {"memories": 1}, {"patches": 2}, {"patches": 1}, {"teacher_skips": False}, {"centre": "recalled"}],
)  # fmt: skip
def test_every_switch_keeps_the_shapes(changes):
    net, x = networks(**changes), torch.rand(2, 1, 32, 32)
    features = net.encoded(x)
    (student, s), (teacher, t) = net.rebuilt(features), net.taught(features)
    assert student.shape == teacher.shape == x.shape and [f.shape for f in s] == [f.shape for f in t]
    assert student.min() >= 0 and student.max() <= 1 and net.critic(x).shape == (2, 1)
    assert all(f.isfinite().all() for f in (student, teacher, *s, *t))


def test_switches_remove_what_they_name():
    whole = networks()
    count = lambda net: sum(1 for m in net.modules() if isinstance(m, Memory))  # noqa: E731
    assert (count(whole), count(networks(hierarchical=False)), count(whole.teacher)) == (3, 1, 0)
    assert len(networks(memory="random").generating()) == len(whole.generating()) - 3
    assert not hasattr(networks(inpaint="none").inpainting, "attention")


@pytest.mark.parametrize("stop", [True, False])
def test_the_teachers_gradient_reaches_the_encoder_only_without_the_stop(stop):
    net = networks(stop_gradient=stop)
    net.taught(net.encoded(torch.rand(2, 1, 32, 32)))[0].sum().backward()
    assert all((p.grad is None) == stop for p in net.encoder.parameters())


def test_whatever_the_student_is_shown_passes_a_memory():
    net = networks().eval()
    with torch.no_grad():
        for memory in net.student.memories:
            memory.items.zero_()
        first, second = (net.rebuilt(net.encoded(torch.rand(1, 1, 32, 32)))[0] for _ in range(2))
    assert torch.allclose(first, second)


@pytest.mark.parametrize("skips", [True, False])
def test_the_teacher_is_the_student_without_memories_unless_its_skips_are_switched_off(skips):
    net = networks(teacher_skips=skips)
    shapes = [[p.shape for p in part.levels.parameters()] for part in (net.teacher, net.student)]
    features = net.encoded(torch.rand(2, 1, 32, 32))
    first, (second, _) = net.taught(features)[0], net.taught([f + (i < 2) for i, f in enumerate(features)])
    assert (shapes[0] == shapes[1]) == skips and torch.equal(first, second) != skips


def test_what_a_patch_recalls_itself_is_masked_in_its_in_painting():
    for centre in ("masked", "recalled"):
        inpainting, x = networks(centre=centre).inpainting.eval(), random(16, 16, 2, 2)
        before = inpainting(x)
        with torch.no_grad():
            inpainting.memory.items[5] = 3 * random(*inpainting.memory.items[5].shape)
        moved = ((inpainting(x) - before).abs().amax((1, 2, 3)) > 1e-6).nonzero().flatten().tolist()
        assert moved == [p for p in (0, 1, 2, 4, 5, 6, 8, 9, 10) if p != 5 or centre == "recalled"]


def test_distillation_is_the_mean_square_of_each_level_and_moves_whom_it_may():
    student, teacher = [random(2, 3).requires_grad_()], [random(2, 3, seed=1).requires_grad_()]
    loss = distilled(student, teacher)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float((student[0] - teacher[0]).square().mean().detach()))
    assert student[0].grad is not None and teacher[0].grad is not None

    def moves_the_teacher(distilled):
        detector = prepared(simsid__distilled=distilled, simsid__teacher_weight=0.0, simsid__adversaries="student")
        before = [p.clone() for p in detector.net.teacher.levels.parameters()]
        step(detector, generate=True)
        return any(not torch.equal(a, b) for a, b in zip(before, detector.net.teacher.levels.parameters(), strict=True))

    assert moves_the_teacher("both") and not moves_the_teacher("student")


def prepared(**changes):
    detector = build("simsid", **changes)
    detector.shape = [1, 16, 16]
    detector._prepare()
    return detector


def step(detector, *, generate, blank=None):
    parts = {"generator": detector.net.generating(), "critic": list(detector.net.critic.parameters())}
    optimizers = {name: torch.optim.SGD(some, lr=0.1) for name, some in parts.items()}
    blank = torch.zeros(len(TRAIN) * 16, dtype=torch.bool) if blank is None else blank
    return detector._step(TRAIN.images, optimizers, blank=blank, generate=generate)


@pytest.mark.parametrize("adversaries", ["both", "student"])
def test_the_critic_steps_alone_in_between(adversaries):
    detector = prepared(simsid__adversaries=adversaries)
    parts = {"generator": detector.net.generating(), "critic": list(detector.net.critic.parameters())}
    for generate in (False, True):
        before = {name: [p.clone() for p in some] for name, some in parts.items()}
        step(detector, generate=generate)
        moved = {n: any(not torch.equal(a, b) for a, b in zip(before[n], parts[n], strict=True)) for n in parts}
        assert moved == {"critic": True, "generator": generate}


def test_scores_rise_as_the_critic_doubts_and_scoring_changes_no_statistic():
    detector = build("simsid").fit(TRAIN, progress=False)
    before = {k: v.clone() for k, v in detector.net.state_dict().items()}
    scores, (logits, _) = detector.anomaly_scores(TEST), detector._judged(TEST.images)
    z = (logits - detector.kept["mean"]) / detector.kept["sd"]
    assert scores == pytest.approx(1 - z.sigmoid().numpy())
    assert (np.diff(scores[(-z).argsort().numpy()]) >= 0).all() and scores.min() < scores.max()
    assert all(torch.equal(v, before[k]) for k, v in detector.net.state_dict().items())
    train = detector._judged(TRAIN.images)[0]
    assert float(train.mean()) == pytest.approx(float(detector.kept["mean"]), abs=1e-6)


def test_where_pixels_are_in_painted_the_generators_do_not_see_the_blank_patches(monkeypatch):
    detector, seen = prepared(simsid__inpaint="pixels"), []
    encoded = Networks.encoded
    monkeypatch.setattr(Networks, "encoded", lambda net, x: seen.append(x) or encoded(net, x))
    blank = torch.arange(len(TRAIN) * 16) % 16 == 5
    step(detector, generate=False, blank=blank)
    patches = cut(seen[0], 4)
    assert (patches[blank] == 0).all() and torch.equal(patches[~blank], cut(TRAIN.images, 4)[~blank])
    detector.fit(TRAIN, progress=False)
    assert 0.15 < float((cut(seen[1], 4) == 0).flatten(1).all(1).float().mean()) < 0.35


def test_the_critic_judges_an_image_by_its_own_statistics_as_a_training_step_of_one_image_would():
    net, x = networks(), torch.rand(4, 1, 32, 32)
    for layer in net.critic:
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.weight, 1, 0.3)
    found = net.eval().judged(x)[0]
    assert torch.allclose(found[:1], net.judged(x[:1])[0], atol=1e-5)
    running = networks(critic_statistics="running")
    running.load_state_dict(net.state_dict())
    assert torch.allclose(running.eval().judged(x)[0], net.critic(x)[:, 0]) and not torch.allclose(
        found, net.critic(x)[:, 0], atol=1e-3
    )
    net.critic.train()
    assert torch.allclose(found, torch.cat([net.critic(row[None])[:, 0] for row in x]), atol=1e-5)


def test_the_map_is_grad_cam_of_the_critic():
    net, x = networks(critic_statistics="running").eval(), torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        net.critic[-1].weight -= 0.01  # so that some place speaks for the rebuilding
    activation = net.critic[:-2](x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(-net.critic[-2:](activation).sum(), activation)
    wanted = (gradient.mean((2, 3), keepdim=True) * activation).sum(1).clamp_min(0)
    found = net.judged(x)[1]
    assert torch.allclose(found, wanted, atol=1e-6) and found.max() > 0


@pytest.mark.parametrize(("side", "layers"), [(16, 3), (28, 4), (64, 5), (128, 5)])
def test_no_layer_of_the_critic_has_a_single_position(side, layers):
    made_of = [m for m in critic(side, 1) if isinstance(m, torch.nn.Conv2d)]
    assert len(made_of) == layers and critic(side, 1)(torch.rand(2, 1, side, side)).shape == (2, 1)


def test_training_stays_finite_in_low_precision():
    cfg = method_config(SMOKE, "simsid").override({"simsid.epochs": 4})
    detector = SimSID(cfg, compute=Compute(precision="bf16")).fit(TRAIN, progress=False)
    assert all(p.isfinite().all() for p in detector.net.parameters()) and len(detector.steps) == 4


def test_a_random_memory_stays_as_it_is_and_a_learned_one_does_not():
    for kind in ("random", "learned"):
        detector = build("simsid", simsid__memory=kind).fit(TRAIN, progress=False)
        fresh = build("simsid", simsid__memory=kind)
        fresh.shape = [1, 16, 16]
        fresh._prepare()
        pairs = zip(detector.net.student.memories, fresh.net.student.memories, strict=True)
        assert all(torch.equal(a.items, b.items) == (kind == "random") for a, b in pairs)


def test_images_are_moved_and_zoomed_by_at_most_five_percent():
    y, x = torch.meshgrid(torch.arange(100.0), torch.arange(100.0), indexing="ij")
    places = torch.stack([y, x]).expand(50, 2, 100, 100)
    moved = jittered(places, torch.Generator().manual_seed(0))
    by = (moved - places).abs()[:, :, 50, 50]
    assert by.amax() < 5.2 and by.amax() > 3
    assert (moved - places).abs()[:, :, 10:90, 10:90].amax() < 7.6  # 5 px, and 5 % of the way to the border


def test_refuses_sizes_that_do_not_divide_and_odd_channels():
    with pytest.raises(UsageError, match=r"image_size=40 must be a multiple of 16"):
        build("simsid", simsid__image_size=40)
    with pytest.raises(UsageError, match="heads=3 must divide the 4 values of a token"):
        build("simsid", simsid__heads=3)
    with pytest.raises(Exception, match="1 or 3 channels, not 2"):
        build("simsid").fit(made(8, channels=2), progress=False)
