"""Occupants of the slot as the explorer sees them: one face, batches that change nothing, refusals."""

import numpy as np
import pytest
import torch

from diawork.base.config import DissolveConfig
from diawork.base.errors import UsageError
from diawork.method.ddpm import DDPM, build_ddpm, save_ddpm
from diawork.method.dissolve import dissolve
from diawork.widgets.slots import checkpoint_slot, dissolving_slots, fit_to
from tests.toys import TINY

X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TS = list(range(0, 200, 5))


@pytest.fixture(scope="module")
def ddpm():
    other = TINY.model_copy(update={"seed": 1})
    return DDPM(build_ddpm(TINY).eval(), build_ddpm(other).eval(), TINY)


def test_every_occupant_returns_every_step(ddpm):
    slots = dissolving_slots(ddpm, others={"wrong domain": ddpm})
    names = ["DDPM", "DDPM,", "DDPM,", "wrong", "Gaussian", "median,", "resize", "noise,"]
    assert [name.split(" ")[0] for name in slots] == names
    assert all(slot.stack(X, TS[:3]).shape == (3, *X.shape) for slot in slots.values())


@pytest.mark.parametrize("name", ["DDPM", "DDPM, raw weights", "noise, sd 0.1"])
def test_every_occupant_has_the_face_that_training_uses(ddpm, name):
    slot, rows = dissolving_slots(ddpm, DissolveConfig(t_range=(3, 4)))[name], torch.arange(2)
    x_hat, t = slot(X, image=rows, flip=rows > 2, generator=torch.Generator().manual_seed(0))
    assert x_hat.shape == X.shape and set(t.tolist()) <= ({-1} if slot.timesteps == 1 else {3, 4})


def test_one_without_steps_is_made_once_and_repeated(ddpm):
    stack = dissolving_slots(ddpm)["noise, sd 0.1"].stack(X, TS)
    assert (stack == stack[0]).all() and not torch.equal(stack[0], X)


def test_passes_agree_with_one_at_a_time_and_tell_how_far_they_are(ddpm):
    shares = []
    stack = dissolving_slots(ddpm)["DDPM"].stack(X, TS, progress=shares.append)
    np.testing.assert_allclose(stack[17], dissolve(ddpm.ema, X, TS[17]), atol=1e-5)
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 2


def test_weights_and_range_differ(ddpm):
    slots = dissolving_slots(ddpm)
    ours, weights, range_mode = (slots[name].stack(X, [50]) for name in list(slots)[:3])
    assert not np.allclose(ours, weights) and not np.allclose(ours, range_mode)


def test_a_saved_model_is_loaded_and_another_resolution_refused(ddpm, tmp_path):
    save_ddpm(tmp_path / "same", ddpm)
    loaded = checkpoint_slot(tmp_path / "same", ddpm).stack(X, [50])
    np.testing.assert_allclose(loaded, dissolving_slots(ddpm)["DDPM"].stack(X, [50]))
    larger = TINY.model_copy(update={"image_size": 16})
    save_ddpm(tmp_path / "larger", DDPM(build_ddpm(larger), build_ddpm(larger), larger))
    with pytest.raises(UsageError, match="image_size=16; the explorer's model has 8 px"):
        checkpoint_slot(tmp_path / "larger", ddpm)


def test_an_own_image_is_squared_and_resized():
    image = np.ones((3, 10, 20), np.float32)
    fitted = fit_to(8)(image)
    assert fitted.shape == (3, 8, 8) and fitted[:, 4].min() > 0.999 and fitted[:, 0].max() < 0.2
