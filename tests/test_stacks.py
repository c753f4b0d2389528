"""Operators as the explorer sees them: stacks, batches that change nothing, refusals."""

import numpy as np
import pytest
import torch

from diawork.base.config import DissolveConfig
from diawork.base.errors import UsageError
from diawork.method.ddpm import DDPM, build_ddpm, save_ddpm
from diawork.method.dissolve import Dissolver, dissolve
from diawork.widgets.stacks import Stacks, saved_operator, shown_operators
from tests.toys import TINY

X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TS = list(range(0, 200, 5))
CFG = DissolveConfig()


def made(ddpm):
    """Every operator that an explorer of this model shows, made."""
    stacks = Stacks({"toy": {}}, shown_operators(ddpm, CFG), TS)
    return {name: stacks.made(name) for name in stacks.operators}


@pytest.fixture(scope="module")
def ddpm():
    other = TINY.model_copy(update={"seed": 1})
    return DDPM(build_ddpm(TINY).eval(), build_ddpm(other).eval(), TINY)


def test_every_operator_returns_every_step(ddpm):
    operators = made(ddpm)
    names = ["DDPM", "DDPM,", "DDPM,", "Gaussian", "median,", "resize", "noise,"]
    assert [name.split(" ")[0] for name in operators] == names
    assert all(operator.stack(X, TS[:3]).shape == (3, *X.shape) for operator in operators.values())


def test_a_model_is_made_when_it_is_first_asked(ddpm, monkeypatch):
    calls = []
    monkeypatch.setattr("diawork.widgets.stacks.Dissolver", lambda *a, **k: calls.append(a) or Dissolver(*a, **k))
    stacks = Stacks({"toy": {}}, shown_operators(ddpm, CFG), TS)
    assert not calls
    stacks.made("DDPM").stack(X, [1])
    stacks.made("DDPM").stack(X, [2])
    assert len(calls) == 1


def test_one_without_steps_is_made_once_and_repeated(ddpm):
    stack = made(ddpm)["noise, sd 0.1"].stack(X, TS)
    assert (stack == stack[0]).all() and not torch.equal(stack[0], X)


def test_passes_agree_with_one_at_a_time_and_tell_how_far_they_are(ddpm):
    shares = []
    stack = made(ddpm)["DDPM"].stack(X, TS, progress=shares.append)
    np.testing.assert_allclose(stack[17], dissolve(ddpm.ema, X, TS[17]), atol=1e-5)
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 2


def test_weights_and_range_differ(ddpm):
    operators = made(ddpm)
    ours, weights, range_mode = (operators[name].stack(X, [50]) for name in list(operators)[:3])
    assert not np.allclose(ours, weights) and not np.allclose(ours, range_mode)


def test_a_saved_model_is_loaded_and_another_resolution_refused(ddpm, tmp_path):
    save_ddpm(tmp_path / "same", ddpm)
    loaded = saved_operator(tmp_path / "same", ddpm, CFG).stack(X, [50])
    np.testing.assert_allclose(loaded, made(ddpm)["DDPM"].stack(X, [50]))
    larger = TINY.model_copy(update={"image_size": 16})
    save_ddpm(tmp_path / "larger", DDPM(build_ddpm(larger), build_ddpm(larger), larger))
    with pytest.raises(UsageError, match="image_size=16; the explorer's model has 8 px"):
        saved_operator(tmp_path / "larger", ddpm, CFG)
