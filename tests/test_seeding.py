"""Randomness by name: equal names equal draws, and nobody else's state is touched."""

import numpy as np
import torch

from diawork.base.seeding import KeyedDraws, generator, image_keys, isolated_rng, key, rand


def test_equal_names_draw_equally_and_others_differ():
    a, b, c = (torch.rand(4, generator=generator(0, "x", step)) for step in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_names_do_not_run_into_each_other():
    assert len({key(1, "a", 12), key(1, "a1", 2), key(11, "a", 2), key(1, "a", 1, 2)}) == 4
    assert 0 <= key(0) < 2**63


def test_isolation_puts_the_global_state_back():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with isolated_rng(0, "init"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with isolated_rng(0, "init"):
        assert torch.equal(torch.rand(3), first)


def test_keyed_draws_are_uniform_and_independent():
    keys = np.arange(400, dtype=np.uint64)
    u = KeyedDraws(keys, 0, "x").rand(400, 500).numpy()
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.001
    counts = np.histogram(u, 64, (0, 1))[0]
    assert ((counts - u.size / 64) ** 2 / (u.size / 64)).sum() < 120  # χ² with 63 degrees of freedom
    assert np.abs(np.corrcoef(u)[np.triu_indices(400, 1)]).max() < 0.25
    assert np.abs(np.corrcoef(u.T)[np.triu_indices(500, 1)]).max() < 0.28


def test_a_row_of_keyed_draws_does_not_see_the_others():
    keys = np.array([7, 8, 9], np.uint64)
    together, alone = KeyedDraws(keys, 0, "x"), KeyedDraws(keys[2:], 0, "x")
    for shape in ((), (10,), (2, 5)):
        assert torch.equal(together.rand(3, *shape)[2:], alone.rand(1, *shape))
    assert not torch.equal(KeyedDraws(keys, 0, "y").rand(3), KeyedDraws(keys, 0, "x").rand(3))
    assert torch.equal(rand(generator(0), 3), torch.rand(3, generator=generator(0)))


def test_the_key_of_an_image_is_its_pixels():
    x = torch.rand(3, 1, 8, 8)
    keys = image_keys(x)
    assert keys.tolist() == image_keys(x.flip(0)).tolist()[::-1] and len(set(keys.tolist())) == 3
    grey = torch.arange(256).reshape(1, 1, 16, 16)
    assert image_keys(grey / 255) == image_keys((grey.double() / 255).float())
    assert image_keys(grey / 255) != image_keys(grey.roll(1, -1) / 255)
