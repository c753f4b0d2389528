"""Randomness by name: equal names equal draws, and nobody else's state is touched."""

import torch

from diawork.base.seeding import generator, isolated_rng, key


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
