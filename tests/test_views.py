"""Views: patterns of the shifts, order and indices of the branches, augmentation."""

import pytest
import torch

from diawork.base.config import ViewsConfig
from diawork.base.seeding import generator
from diawork.method.operators import GaussianBlur
from diawork.method.views import BranchBuilder, all_shifts, augment, cutperm, draw_augmentation, rotate

ARANGE = torch.arange(16.0).reshape(1, 1, 4, 4)
STILL = ViewsConfig(crop_scale=(1, 1), crop_ratio=(1, 1), jitter_probability=0, grey_probability=0, hflip=False)


@pytest.mark.parametrize(("k", "first_row"), [(1, [2, 3, 0, 1]), (2, [8, 9, 10, 11]), (3, [10, 11, 8, 9])])
def test_cutperm_swaps_halves(k, first_row):
    assert cutperm(ARANGE, k)[0, 0, 0].tolist() == first_row


def test_rotation_is_counter_clockwise():
    assert rotate(ARANGE, 1)[0, 0, 0].tolist() == [3, 7, 11, 15]
    assert torch.equal(rotate(rotate(ARANGE, 1), 3), ARANGE)


def test_shift_zero_is_the_image_itself():
    x = torch.rand(2, 1, 6, 6)
    assert torch.equal(all_shifts(x, "rotation")[:2], x) and torch.equal(all_shifts(x, "cutperm")[:2], x)


class Halve:
    """A dissolver that leaves a trace: it halves the image, and its step is the image's index."""

    calls = 0

    def __call__(self, x, *, image, flip, generator):
        self.calls += 1
        return x / 2, image


def test_csi_has_two_branches_and_dia_three():
    x, index = torch.rand(3, 1, 8, 8), torch.tensor([5, 6, 7])
    csi, dia = (BranchBuilder(ViewsConfig(), d)(x, index=index, seed=0, step=0) for d in (None, Halve()))
    assert csi.images.shape == (24, 1, 8, 8) and dia.images.shape == (36, 1, 8, 8)
    assert csi.branch.unique().tolist() == [0, 1] and dia.branch.unique().tolist() == [0, 1, 2]
    assert (dia.t[dia.branch != 2] == -1).all()
    assert dia.t[dia.branch == 2].tolist() == [5, 6, 7] * 4


def test_every_row_is_the_view_its_indices_name():
    x, index = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    views = BranchBuilder(STILL, Halve())(x, index=index, seed=0, step=0)
    for row in range(len(views.images)):
        i, k, branch = (int(v[row]) for v in (views.image, views.shift, views.branch))
        expected = rotate(x[i : i + 1], k) / (2 if branch == 2 else 1)
        assert torch.allclose(views.images[row : row + 1], expected, atol=1e-5)


@pytest.mark.parametrize(("per", "calls"), [("image", 1), ("shift", 4)])
def test_dissolves_once_an_image_or_once_a_shift(per, calls):
    halve = Halve()
    BranchBuilder(ViewsConfig(dissolve_per=per), halve)(torch.rand(2, 1, 8, 8), index=torch.arange(2), seed=0, step=0)
    assert halve.calls == calls


def test_all_branches_can_be_replaced_as_in_the_released_control():
    cfg = STILL.model_copy(update={"dissolve_branches": "all"})
    x = torch.rand(2, 1, 8, 8)
    views = BranchBuilder(cfg, Halve())(x, index=torch.arange(2), seed=0, step=0)
    assert torch.allclose(views.images[:2], x / 2, atol=1e-5) and (views.t >= 0).all()


def test_second_view_shares_its_flip_with_the_dissolved_branch():
    cfg = STILL.model_copy(update={"hflip": True, "third_source": "second_view"})
    x = torch.rand(8, 1, 8, 8)
    views = BranchBuilder(cfg, Halve())(x, index=torch.arange(8), seed=0, step=3)
    second, third = (views.images[(views.branch == b) & (views.shift == 0)] for b in (1, 2))
    assert torch.allclose(second / 2, third, atol=1e-5)


def test_a_dissolved_image_has_flips_of_its_own_one_a_shift():
    cfg = STILL.model_copy(update={"hflip": True, "dissolve_per": "shift"})
    x = torch.rand(16, 1, 8, 8)
    views = BranchBuilder(cfg, Halve())(x, index=torch.arange(16), seed=0, step=3)
    unshifted = [torch.rot90(views.images[(views.branch == 2) & (views.shift == k)], -k, (2, 3)) for k in range(4)]
    mirrored = [(2 * rows - x).abs().amax((1, 2, 3)) > 1e-3 for rows in unshifted]
    assert len({tuple(m.tolist()) for m in mirrored}) == 4


def test_views_depend_on_seed_and_step_alone():
    builder = BranchBuilder(ViewsConfig(), GaussianBlur(3))
    x, index = torch.rand(2, 1, 8, 8), torch.arange(2)
    first = builder(x, index=index, seed=1, step=2).images
    torch.rand(100)
    assert torch.equal(builder(x, index=index, seed=1, step=2).images, first)
    assert not torch.equal(builder(x, index=index, seed=1, step=3).images, first)


def test_full_crop_without_jitter_is_the_identity():
    x = torch.rand(4, 1, 9, 9)
    drawn = draw_augmentation(4, STILL, generator(0))
    assert torch.allclose(augment(x, drawn), x, atol=1e-5)


def test_crop_boxes_lie_in_the_image_and_have_the_asked_area():
    drawn = draw_augmentation(2000, ViewsConfig(crop_scale=(0.54, 0.54)), generator(0))
    cx, cy, w, h = drawn.box.T
    assert (cx - w / 2).min() >= -1e-6 and (cy + h / 2).max() <= 1 + 1e-6
    assert torch.allclose(w * h, torch.tensor(0.54), atol=1e-5)
    assert (w / h).min() >= 0.749 and (w / h).max() <= 1.334


def test_a_crop_shows_what_the_box_holds():
    x = torch.zeros(1, 1, 8, 8)
    x[..., :4, 4:] = 1
    drawn = draw_augmentation(1, STILL, generator(0))
    drawn.box[0] = torch.tensor([0.75, 0.25, 0.5, 0.5])
    assert augment(x, drawn)[0, 0, 1:-1, 1:-1].min() > 0.99


def test_jitter_keeps_the_range_and_leaves_a_fifth_untouched():
    x = torch.rand(1000, 1, 4, 4)
    cfg = STILL.model_copy(update={"jitter_probability": 0.8})
    y = augment(x, draw_augmentation(1000, cfg, generator(0)))
    untouched = ((x - y).abs().amax((1, 2, 3)) < 1e-4).float().mean()
    assert y.min() >= 0 and y.max() <= 1 and 0.15 < untouched < 0.25


def test_grey_image_as_three_channels_stays_grey_under_colour_jitter():
    x = torch.rand(16, 1, 6, 6).expand(-1, 3, -1, -1)
    y = augment(x, draw_augmentation(16, ViewsConfig(), generator(0)))
    assert (y - y.mean(1, keepdim=True)).abs().max() < 1e-3


def test_colour_augmentation_changes_hue_and_some_lose_colour():
    x = torch.tensor([0.8, 0.3, 0.2])[None, :, None, None].expand(500, -1, 4, 4)
    y = augment(x, draw_augmentation(500, ViewsConfig(), generator(0)))
    grey = ((y - y.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-3).float().mean()
    assert 0.12 < grey < 0.28 and y[:, 2].std() > 0.01
