"""Durable files: whole or not there, errors in one sentence, orphans removed."""

import os
import random

import numpy as np
import pytest

from diawork.base import files
from diawork.base.errors import CheckpointError, ResourceError
from diawork.base.files import digest, read_arrays, read_json, remove_orphans, sha256_file, write_bytes, write_json


def test_returns_the_hash_of_what_it_wrote(tmp_path):
    assert write_bytes(tmp_path / "new" / "a", b"abc") == sha256_file(tmp_path / "new" / "a")


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [13, 28, 5])  # no permission, no space, input/output
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call, number):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    owner = files.os if call != "open" else files
    monkeypatch.setattr(owner, call, fail, raising=False)
    with pytest.raises(ResourceError, match=r"cannot write 3 bytes .*nothing already written"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_damaged_json_is_a_checkpoint_error(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": ')
    for name in ("a.json", "missing.json"):
        with pytest.raises(CheckpointError, match=name):
            read_json(tmp_path / name)


def test_damaged_arrays_are_a_checkpoint_error_or_unharmed(tmp_path):
    path, rng = tmp_path / "a.npz", random.Random(0)
    wanted = {"x": np.arange(300.0).reshape(10, 30), "name": np.array("µ")}
    np.savez_compressed(path, **wanted)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        at = rng.randrange(len(whole))
        flipped = bytes([whole[at] ^ (1 << rng.randrange(8))])
        path.write_bytes(rng.choice([whole[:at], whole[:at] + flipped + whole[at + 1 :]]))
        try:
            found = read_arrays(path)
        except CheckpointError:
            refused += 1
        else:
            assert all(np.array_equal(found[name], wanted[name]) for name in found)
    assert refused > 200
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        read_arrays(path)


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


def test_orphans_of_dead_writers_go_and_others_stay(tmp_path):
    for name in (".a.4194305.tmp", f".b.{os.getpid()}.tmp", "c.tmp"):
        (tmp_path / name).touch()
    assert [p.name for p in remove_orphans(tmp_path)] == [".a.4194305.tmp"]
    assert len(list(tmp_path.iterdir())) == 2


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
