"""Bank: the same values as live, made once, invalidated by what matters, refused when damaged."""

import pytest
import torch

from diawork.base.config import DiffusionConfig, DissolveConfig
from diawork.base.errors import CheckpointError, UsageError
from diawork.base.seeding import generator
from diawork.method.bank import DissolvedBank
from diawork.method.ddpm import build_ddpm
from diawork.method.dissolve import Dissolver

DDPM = build_ddpm(DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=16))
X = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(0))
ORIGIN = {"ddpm": "a", "images": "b"}


def bank(folder, *, steps=3, origin=ORIGIN, x=X, **changes):
    dissolver = Dissolver(DDPM, DissolveConfig(t_range=(30, 130), **changes))
    return DissolvedBank(dissolver, x, folder, steps=steps, origin=origin, progress=False), dissolver


@pytest.mark.parametrize("range_mode", ["normalized", "released"])
def test_gives_what_the_dissolver_gives(tmp_path, range_mode):
    stored, dissolver = bank(tmp_path, range_mode=range_mode)
    image, flip = torch.tensor([4, 0, 4]), torch.tensor([True, False, False])
    x = torch.where(flip[:, None, None, None], X[image].flip(-1), X[image])
    y, t = stored(x, image=image, flip=flip, generator=generator(0))
    assert set(t.tolist()) <= {30, 80, 130}
    assert (y - dissolver.at(x, t)).abs().max() < 0.51 * (stored.scale[1] - stored.scale[0]) / 255 + 1e-4


def test_is_made_once_and_read_afterwards(tmp_path, monkeypatch):
    first = bank(tmp_path)[0]
    monkeypatch.setattr(Dissolver, "at", None)
    assert (bank(tmp_path)[0].values == first.values).all()
    assert len(list(tmp_path.glob("*.npy"))) == 1


@pytest.mark.parametrize("other", [{"steps": 2}, {"range_mode": "released"}, {"origin": {"ddpm": "z"}}, {"x": X[:4]}])
def test_anything_that_matters_makes_another(tmp_path, other):
    assert bank(tmp_path)[0].path != bank(tmp_path, **other)[0].path


def test_damage_is_refused(tmp_path):
    path = bank(tmp_path)[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        bank(tmp_path)


def test_grid_must_fit_the_range(tmp_path):
    with pytest.raises(UsageError, match=r"bank_steps=500 outside \[1, 101\]"):
        bank(tmp_path, steps=500)


def test_one_step_a_batch_and_colour_rows(tmp_path):
    stored, _ = bank(tmp_path, t_per="batch")
    rows = torch.arange(5)
    y, t = stored(X.expand(-1, 3, -1, -1), image=rows, flip=rows > 9, generator=generator(1))
    assert y.shape == (5, 3, 12, 12) and len(t.unique()) == 1
