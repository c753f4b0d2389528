"""Checkpoints: round trip, refusal of damage and of foreign content, pruning, fallback."""

import itertools
import random
import warnings

import pytest
import torch
from torch import nn

from diawork.base import checkpoints
from diawork.base.checkpoints import (
    Checkpointer,
    has_checkpoint,
    load_checkpoint,
    load_optimizer,
    load_weights,
    optimizer_state,
    save_checkpoint,
)
from diawork.base.errors import CheckpointError, Interrupted
from diawork.base.stopping import _asked
from tests.toys import as_format_1

SPEC = {"kind": "toy", "size": 3}


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(tmp_path / "a", {"w": torch.arange(64.0)}, spec=SPEC, state={"step": 7})
    return tmp_path / "a"


def test_round_trip(saved):
    checkpoint = load_checkpoint(saved, spec=SPEC)
    assert torch.equal(checkpoint.tensors["w"], torch.arange(64.0)) and checkpoint.state == {"step": 7}


def test_refuses_foreign_content_with_a_table(saved):
    with pytest.raises(CheckpointError, match=r"(?s)size: in file 3, wanted 4.*train anew"):
        load_checkpoint(saved, spec=SPEC | {"size": 4})


def damage(data: bytes, rng: random.Random) -> bytes:
    kind, at = rng.choice(["flip", "zero", "cut"]), rng.randrange(len(data))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    block = data[at : at + 512]
    return data[:at] + bytes(len(block)) + data[at + 512 :]


def refused(path, suffix, n):
    """Damage a file n times; return how often it was refused. What is accepted says the same (white space is gone)."""
    rng, file, wanted = random.Random(0), path.with_suffix(suffix), load_checkpoint(path, spec=SPEC)
    whole, bad = file.read_bytes(), 0
    for _ in range(n):
        broken = damage(whole, rng)
        if broken == whole:
            continue
        file.write_bytes(broken)
        try:
            found = load_checkpoint(path, spec=SPEC)
        except CheckpointError as error:
            bad += path.name in str(error)
        else:
            assert torch.equal(found.tensors["w"], wanted.tensors["w"]) and found.state == wanted.state
    return bad


@pytest.fixture
def old(saved):
    as_format_1(saved)
    return saved


def test_refuses_every_damaged_file(saved):
    assert refused(saved, ".safetensors", 300) > 250


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_refuses_every_damaged_file_of_format_1(old, suffix):
    assert refused(old, suffix, 150) > 100


@pytest.mark.slow
def test_refuses_three_thousand_damaged_files(saved):
    assert refused(saved, ".safetensors", 3000) > 2500


def test_a_pair_of_format_1_is_read_and_replaced(old):
    assert has_checkpoint(old) and old.with_suffix(".json").exists()
    checkpoint = load_checkpoint(old, spec=SPEC)
    assert torch.equal(checkpoint.tensors["w"], torch.arange(64.0)) and checkpoint.state == {"step": 7}
    save_checkpoint(old, {"w": torch.ones(2)}, spec=SPEC, state={})
    assert [p.name for p in old.parent.iterdir()] == ["a.safetensors"]
    assert torch.equal(load_checkpoint(old).tensors["w"], torch.ones(2))


@pytest.mark.parametrize("missing", [".safetensors", ".json"])
def test_half_a_pair_is_no_checkpoint(old, missing):
    old.with_suffix(missing).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read|holds no record of ours"):
        load_checkpoint(old)


def test_saving_the_same_twice_gives_the_same_bytes(saved):
    before = saved.with_suffix(".safetensors").read_bytes()
    save_checkpoint(saved, {"w": torch.arange(64.0)}, spec=SPEC, state={"step": 7})
    assert saved.with_suffix(".safetensors").read_bytes() == before


def test_refuses_values_that_are_not_finite(tmp_path):
    save_checkpoint(tmp_path / "a", {"w": torch.tensor([1.0, torch.nan])}, spec=SPEC, state={})
    with pytest.raises(CheckpointError, match="'w' holds values that are not finite"):
        load_checkpoint(tmp_path / "a")


def test_refuses_a_pickle_under_our_name(saved):
    saved.with_suffix(".safetensors").write_bytes(b"\x80\x04\x95.posix\x94\x8c\x06system")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(saved)


def test_weights_of_another_shape_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"weight: in file 'float32 \(2, 3\)', wanted 'float32 \(2, 4\)'"):
        load_weights(nn.Linear(4, 2), nn.Linear(3, 2).state_dict(), path=tmp_path)


@pytest.mark.parametrize("kind", [torch.optim.Adam, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_optimiser_goes_on_exactly(kind):
    def steps(layer, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            layer(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = nn.Linear(3, 2)
    start, optimizer = {k: v.clone() for k, v in whole.state_dict().items()}, kind(whole.parameters())
    steps(whole, optimizer, 5)
    part = nn.Linear(3, 2)
    part.load_state_dict(start)
    first = kind(part.parameters())
    steps(part, first, 2)
    second = kind(part.parameters())
    load_optimizer(second, {f"o.{k}": v.clone() for k, v in optimizer_state(first).items()}, prefix="o.")
    steps(part, second, 3)
    assert torch.equal(part.weight, whole.weight)


def test_a_fused_optimiser_goes_on_to_the_bit_on_weights_in_channels_last():
    def made():
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return layer, torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)

    def steps(layer, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            layer(torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5).sin()).square().sum().backward()
            optimizer.step()

    (whole, first), (part, second) = made(), made()
    steps(whole, first, 2)
    part.load_state_dict(whole.state_dict())
    saved = {f"o.{k}": v.clone(memory_format=torch.contiguous_format) for k, v in optimizer_state(first).items()}
    load_optimizer(second, saved, prefix="o.")
    steps(whole, first, 3)
    steps(part, second, 3)
    assert torch.equal(part.weight, whole.weight)


def snapshot(step):
    return lambda: ({"w": torch.full((3,), float(step))}, {})


def test_checkpointer_keeps_two_and_restores_the_newest(tmp_path):
    checkpointer = Checkpointer(tmp_path, spec=SPEC, every_seconds=0)
    for step in range(5):
        checkpointer.save(step, snapshot(step))
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["step-000000003", "step-000000004"]
    assert checkpointer.restore().state["step"] == 4
    checkpointer.clear()
    assert checkpointer.restore() is None and not list(tmp_path.iterdir())


def test_checkpointer_falls_back_past_a_damaged_one_and_says_so(tmp_path):
    checkpointer = Checkpointer(tmp_path, spec=SPEC)
    for step in (1, 2):
        checkpointer.save(step, snapshot(step))
    (tmp_path / "step-000000002.safetensors").write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match=r"step-000000002.*Falling back"):
        assert checkpointer.restore().state["step"] == 1


def test_checkpointer_refuses_another_runs_checkpoints(tmp_path):
    Checkpointer(tmp_path, spec=SPEC).save(1, snapshot(1))
    with pytest.raises(CheckpointError, match="belongs to something else"):
        Checkpointer(tmp_path, spec=SPEC | {"size": 9}).restore()


def test_checkpointer_saves_before_it_stops(tmp_path):
    checkpointer = Checkpointer(tmp_path, spec=SPEC)
    _asked.set()
    try:
        with pytest.raises(Interrupted, match="everything is saved"):
            checkpointer.after_step(3, snapshot(3))
    finally:
        _asked.clear()
    assert checkpointer.restore().state["step"] == 3


@pytest.mark.parametrize(("cost", "after"), [(0.0, 300), (2.0, 300), (10.0, 500)])
def test_checkpointer_saves_by_wall_clock_and_spends_two_percent_at_most(tmp_path, monkeypatch, cost, after):
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    checkpointer, saves = Checkpointer(tmp_path, spec=SPEC), []

    def slow():
        saves.append(clock[0])
        clock[0] += cost
        return {"w": torch.zeros(1)}, {}

    checkpointer.save(0, slow)
    while len(saves) < 3:
        clock[0] += 1
        checkpointer.after_step(int(clock[0]), slow)
    assert [b - a - cost for a, b in itertools.pairwise(saves)] == [after, after]


def test_checkpointer_says_that_other_versions_made_the_checkpoint(tmp_path, monkeypatch):
    Checkpointer(tmp_path, spec=SPEC).save(1, snapshot(1))
    monkeypatch.setattr(checkpoints, "_versions", lambda: {"torch": "99"})
    with pytest.warns(UserWarning, match=r"torch .* → 99.*goes on, but not bit for bit"):
        assert Checkpointer(tmp_path, spec=SPEC).restore().state["step"] == 1


def test_checkpointer_removes_what_a_killed_save_left(tmp_path):
    Checkpointer(tmp_path, spec=SPEC).save(1, snapshot(1))
    (tmp_path / f".step-000000002.safetensors.{2**22 + 1}.tmp").write_bytes(b"half")  # of a process that is gone
    (tmp_path / "mine.safetensors").write_bytes(b"not a checkpoint of its")
    Checkpointer(tmp_path, spec=SPEC)
    assert {p.name for p in tmp_path.iterdir()} == {"step-000000001.safetensors", "mine.safetensors"}


def test_checkpointer_goes_on_from_a_checkpoint_of_format_1_and_clears_it(tmp_path):
    checkpointer = Checkpointer(tmp_path, spec=SPEC)
    checkpointer.save(1, snapshot(1))
    as_format_1(tmp_path / "step-000000001")
    assert checkpointer.restore().state["step"] == 1
    checkpointer.clear()
    assert not list(tmp_path.iterdir())


def test_checkpointer_without_a_folder_saves_nothing(tmp_path):
    checkpointer = Checkpointer(None, spec=SPEC, every_seconds=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpointer.after_step(1, snapshot(1))
    assert checkpointer.restore() is None
