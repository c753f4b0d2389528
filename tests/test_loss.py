"""Loss: golden values, a slow reference, closed forms, invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diawork.base.config import LossConfig
from diawork.base.errors import UsageError
from diawork.method.encoder import Embedding
from diawork.method.loss import dia_loss, nt_xent, pair_roles, shift_cross_entropy
from diawork.method.views import BranchBuilder, Views

GOLDEN = {  # spec of the method, §6: constant "repo", τ = 0.5, float64
    (2, 2, 4): {"naive": 3.2114366144191, "shifted_removed": 3.1397817059367, "csi": 4.2946276703779},
    (3, 4, 8): {"naive": 3.5242807194519, "shifted_removed": 3.5208799240362, "csi": 4.8425861604043},
}


def indices(n: int, k: int, branches: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    branch, shift, image = torch.meshgrid(*map(torch.arange, (branches, k, n)), indexing="ij")
    return image.reshape(-1), shift.reshape(-1), branch.reshape(-1)


def golden_z(rows: int, d: int) -> Tensor:
    i, j = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(d, dtype=torch.float64)[None]
    return torch.sin(0.7 * i + 1.3 * j) + 0.1 * torch.cos(i * j)


def slow_reference(z: Tensor, image: Tensor, shift: Tensor, branch: Tensor, cfg: LossConfig) -> float:
    z = torch.nn.functional.normalize(z.double(), dim=1)
    same = [(int(a), int(b)) for a, b in zip(image, shift, strict=True)]
    total, anchors = 0.0, 0
    for i in range(len(z)):
        if branch[i] == 2:
            continue
        terms, positive = [], None
        for j in range(len(z)):
            mixed = (branch[i] == 2) != (branch[j] == 2)
            if i == j or (cfg.mask == "shifted_removed" and mixed and same[i] == same[j]):
                continue
            logit = float(z[i] @ z[j]) / cfg.temperature
            terms.append(logit)
            if same[i] == same[j] and branch[j] == 1 - branch[i]:
                positive = logit
        top = max(terms)
        total += top + math.log(sum(math.exp(v - top) for v in terms)) - positive
        anchors += 1
    return total / {"mean": anchors, "repo": len(z), "paper": anchors * len(z)}[cfg.constant]


@pytest.mark.parametrize("mask", ["naive", "shifted_removed"])
@pytest.mark.parametrize("size", GOLDEN)
def test_agrees_with_the_golden_values(size, mask):
    b, k, d = size
    value = nt_xent(golden_z(3 * b * k, d), *indices(b, k), cfg=LossConfig(mask=mask))
    assert abs(value.item() - GOLDEN[size][mask]) < 1e-9


@pytest.mark.parametrize("size", GOLDEN)
def test_csi_is_the_same_loss_without_the_dissolved_rows(size):
    b, k, d = size
    value = nt_xent(golden_z(3 * b * k, d)[: 2 * b * k], *indices(b, k, branches=2))
    assert abs(value.item() - GOLDEN[size]["csi"]) < 1e-9


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 5), k=st.integers(1, 4), d=st.integers(2, 32), tau=st.floats(0.01, 1), seed=st.integers(0, 10**6),
    mask=st.sampled_from(["naive", "shifted_removed"]), constant=st.sampled_from(["mean", "repo", "paper"]),
)  # fmt: skip
def test_agrees_with_a_slow_reference(n, k, d, tau, seed, mask, constant):
    cfg = LossConfig(temperature=tau, mask=mask, constant=constant)
    z = torch.randn(3 * n * k, d, generator=torch.Generator().manual_seed(seed))
    value = nt_xent(z, *indices(n, k), cfg=cfg)
    assert math.isfinite(value)
    assert value.item() == pytest.approx(slow_reference(z, *indices(n, k), cfg), rel=1e-5, abs=1e-5)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(
    n=st.integers(1, 16), d=st.integers(2, 128), tau=st.floats(0.01, 1), seed=st.integers(0, 10**6),
    mask=st.sampled_from(["naive", "shifted_removed"]),
)  # fmt: skip
def test_agrees_with_float64_over_the_whole_range(n, d, tau, seed, mask):
    cfg = LossConfig(temperature=tau, mask=mask)
    z = torch.randn(3 * n, d, generator=torch.Generator().manual_seed(seed))
    double = nt_xent(z.double(), *indices(n, 1), cfg=cfg).item()
    assert nt_xent(z, *indices(n, 1), cfg=cfg).item() == pytest.approx(double, rel=1e-5, abs=1e-5)
    assert double == pytest.approx(slow_reference(z, *indices(n, 1), cfg), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("mask", ["naive", "shifted_removed"])
def test_equal_features_give_the_log_of_the_number_of_terms(mask):
    z, rows = torch.ones(24, 5), indices(2, 4)
    terms = 23 - (mask == "shifted_removed")
    assert nt_xent(z, *rows, cfg=LossConfig(mask=mask, constant="mean")).item() == pytest.approx(math.log(terms))


def test_blocks_change_neither_value_nor_gradient():
    z = torch.randn(36, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole, blocked = (nt_xent(z, *indices(3, 4), block=block) for block in (1000, 5))
    grads = [torch.autograd.grad(value, z)[0] for value in (whole, blocked)]
    assert whole.item() == pytest.approx(blocked.item(), rel=1e-12)
    assert torch.allclose(*grads, atol=1e-12)


def test_permuting_rows_with_their_indices_changes_nothing():
    z, rows = torch.randn(24, 6, dtype=torch.float64), indices(2, 4)
    order = torch.randperm(24)
    permuted = nt_xent(z[order], *(value[order] for value in rows))
    assert permuted.item() == pytest.approx(nt_xent(z, *rows).item(), rel=1e-12)


def test_gradient_is_right():
    z = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: nt_xent(v, *indices(2, 2), cfg=LossConfig(mask="shifted_removed")), z)


def test_removing_pairs_never_raises_the_loss():
    z, rows = torch.randn(24, 6), indices(2, 4)
    removed, naive = (nt_xent(z, *rows, cfg=LossConfig(mask=m)) for m in ("shifted_removed", "naive"))
    assert removed < naive


def test_mask_leaves_out_exactly_the_same_view_pairs():
    naive, removed = (pair_roles(*indices(2, 2), mask=mask) for mask in ("naive", "shifted_removed"))
    assert (naive > 0).sum() == 8 * 11  # every anchor with all others
    assert ((naive > 0) & (removed == 0)).sum() == 2 * 2 * 2  # (O, A) and (O′, A) of each image and shift
    assert not removed[0, 8] and removed[0, 9] == 2 and removed[0, 4] == 1


def test_target_matrix_has_one_positive_an_anchor_and_no_dissolved_anchor():
    image, shift, branch = indices(2, 2)
    roles = pair_roles(image, shift, branch, mask="shifted_removed")
    assert (roles == 1).sum(1).tolist() == [1] * 8 + [0] * 4
    assert roles[0, 4] == 1 and roles[0, 0] == 0 and roles[0, 8] == 0 and roles[0, 9] == 2
    assert (roles[8:] == 0).all()


def test_refuses_a_view_without_its_partner():
    with pytest.raises(UsageError, match="exactly one view"):
        nt_xent(torch.randn(3, 2), torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 0]))


def test_views_are_labelled_branch_by_branch_and_shift_by_shift():
    views = BranchBuilder(dissolve=lambda x, **_: (x, torch.zeros(len(x))))(torch.rand(3, 1, 8, 8))
    assert all(map(torch.equal, indices(3, 4), (views.image, views.shift, views.branch)))


def parts_of(z, logits, **fields):
    image, shift, branch = indices(2, 4)
    views = Views(z, image, shift, branch, t=branch)
    return dia_loss(Embedding(z, z, logits), views, LossConfig(**fields))


def test_weights_scale_the_parts():
    parts = parts_of(torch.randn(24, 4), torch.randn(24, 4), contrastive_weight=0.5, shift_weight=2.0)
    assert parts.total.item() == pytest.approx(0.5 * parts.contrastive.item() + 2 * parts.shift.item(), rel=1e-5)


@pytest.mark.parametrize(("classifier", "classes"), [("shift", 4), ("shift_dissolved", 8)])
def test_a_dissolved_view_has_its_shifts_class_or_one_of_its_own(classifier, classes):
    wanted = torch.tensor([(k + 4 * (b == 2)) % classes for b in range(3) for k in range(4) for _ in range(2)])
    sure = 50 * torch.eye(classes)[wanted]
    losses = [parts_of(torch.randn(24, 4), x, classifier=classifier).shift.item() for x in (sure, 0 * sure)]
    assert losses == pytest.approx([0, math.log(classes)], abs=1e-6)
    _, shift, branch = indices(2, 4)
    assert shift_cross_entropy(sure, shift, branch, cfg=LossConfig(classifier=classifier)).item() == losses[0]
