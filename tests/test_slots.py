"""Occupants of the slot as the explorer sees them: one face, batches that change nothing, refusals."""

import numpy as np
import pytest

from diawork.base.config import DissolveConfig
from diawork.base.errors import UsageError
from diawork.method.ddpm import DDPM, build_ddpm, save_ddpm
from diawork.method.dissolve import dissolve
from diawork.widgets.slots import checkpoint_slot, dissolving_slots, fit_to
from tests.toys import TINY

X = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
TS = list(range(0, 200, 5))


@pytest.fixture(scope="module")
def ddpm():
    other = TINY.model_copy(update={"seed": 1})
    return DDPM(build_ddpm(TINY).eval(), build_ddpm(other).eval(), TINY)


def test_every_occupant_returns_every_step(ddpm):
    slots = dissolving_slots(ddpm, others={"wrong domain": ddpm})
    names = ["DDPM", "DDPM,", "DDPM,", "wrong", "Gaussian", "median,", "resize", "noise,"]
    assert [name.split(" ")[0] for name in slots] == names
    assert all(slot(X, TS[:3]).shape == (3, *X.shape) for slot in slots.values())


def test_passes_agree_with_one_at_a_time_and_tell_how_far_they_are(ddpm):
    import torch

    shares = []
    found = dissolving_slots(ddpm)["DDPM"](X, TS, shares.append)
    one = dissolve(ddpm.ema, torch.from_numpy(X), TS[17]).numpy()
    np.testing.assert_allclose(found[17], one, atol=1e-5)
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 2


def test_weights_and_range_differ(ddpm):
    slots = dissolving_slots(ddpm)
    found = [slots[name](X, [50]) for name in list(slots)[:3]]
    assert not np.allclose(found[0], found[1]) and not np.allclose(found[0], found[2])


def test_a_saved_model_is_loaded_and_another_resolution_refused(ddpm, tmp_path):
    save_ddpm(tmp_path / "same", ddpm)
    found = checkpoint_slot(tmp_path / "same", ddpm)(X, [50])
    np.testing.assert_allclose(found, dissolving_slots(ddpm, DissolveConfig())["DDPM"](X, [50]))
    larger = TINY.model_copy(update={"image_size": 16})
    save_ddpm(tmp_path / "larger", DDPM(build_ddpm(larger), build_ddpm(larger), larger))
    with pytest.raises(UsageError, match="image_size=16; the explorer's model has 8 px"):
        checkpoint_slot(tmp_path / "larger", ddpm)


def test_an_own_image_is_squared_and_resized():
    image = np.ones((3, 10, 20), np.float32)
    fitted = fit_to(8)(image)
    assert fitted.shape == (3, 8, 8) and fitted[:, 4].min() > 0.999 and fitted[:, 0].max() < 0.2
