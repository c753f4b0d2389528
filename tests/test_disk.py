"""Disks: full, read-only or broken at any write, nothing written suffers and one error tells."""

import builtins
import hashlib
import os

import pytest
import torch

from diawork.base import checkpoints, files
from diawork.base.checkpoints import load_checkpoint
from diawork.base.errors import ResourceError
from diawork.method import ddpm as diffusion
from diawork.method.ddpm import load_ddpm, pretrain_ddpm
from diawork.runs.experiment import run_experiment
from diawork.runs.presets import preset
from tests.toys import IMAGES, SETTINGS, TINY, Eager

pytestmark = pytest.mark.usefixtures("small")


class Full:
    """A file on a full disk: half of what is written arrives."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise self.error


def failing_from(n, number, patch, root):
    """Let every durable write from the n-th on fail; return the artefacts as they were at that moment."""
    error, before, count = OSError(number, os.strerror(number)), {}, iter(range(1, 10_000))

    def opening(path, mode="r", *args):
        if mode != "wb" or next(count) < n:
            return builtins.open(path, mode, *args)
        if not before:
            before.update(artefacts(root))
        if number == 13:
            raise error
        return Full(builtins.open(path, mode, *args), error)

    patch.setattr(files, "open", opening, raising=False)
    return before


def artefacts(root):
    found = (p for p in root.rglob("*") if p.is_file() and p.name != "lock")
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def write_failures(numbers, toy, folder):
    """Fail from each of these writes on, with each error in turn; nothing written may suffer."""
    cfg = preset("smoke", dataset=str(toy)).override(SETTINGS | {"diffusion.steps": 8, "train.epochs": 4})
    wanted = run_experiment(cfg, out=folder / "undisturbed", progress=False).folder
    for n in numbers:
        root, number = folder / str(n), (28, 13, 5)[n % 3]  # no space, no permission, input/output
        (root / "old").mkdir(parents=True)
        (root / "old" / "artefact").write_bytes(b"of another run")
        with pytest.MonkeyPatch.context() as patch:
            before = failing_from(n, number, patch, root)
            with pytest.raises(ResourceError, match=rf"cannot write [\d,]+ bytes \({os.strerror(number)}\)"):
                run_experiment(cfg, out=root, progress=False)
        assert before and artefacts(root) == before
        again = run_experiment(cfg, out=root, progress=False).folder
        assert (again / "scores.csv").read_bytes() == (wanted / "scores.csv").read_bytes()
    print(f"{len(numbers)} failing writes: one error each, every artefact byte-identical, the same command goes on")


def test_failing_writes_harm_nothing(tmp_path, eager, toy):
    write_failures((6, 20), toy, tmp_path)


@pytest.mark.slow
def test_each_of_the_first_twenty_writes_may_fail(tmp_path, eager, toy):
    write_failures(range(1, 21), toy, tmp_path)


def test_a_full_disk_is_told_before_the_first_step(tmp_path, monkeypatch):
    usage = checkpoints.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    monkeypatch.setattr(diffusion, "denoising_loss", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(ResourceError, match=r"1 MB are free; three checkpoints take \d+ MB.*free some space"):
        pretrain_ddpm(IMAGES, TINY, folder=tmp_path / "ddpm", progress=False)


def test_the_foreseen_size_is_the_true_one(tmp_path, monkeypatch, eager):
    asked = []
    monkeypatch.setattr(
        Eager, "require_space", lambda self, t, o: asked.append((t, *map(checkpoints.expected_state, o)))
    )
    monkeypatch.setattr(Eager, "clear", lambda self: None)
    pretrain_ddpm(IMAGES, TINY, folder=tmp_path, progress=False)
    foreseen = sum(value.nbytes for part in asked[0] for value in part.values())
    assert max(p.stat().st_size for p in tmp_path.glob("step-*.safetensors")) == pytest.approx(foreseen, rel=0.1)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ResourceError, match="cannot write"):
        pretrain_ddpm(IMAGES, TINY, folder=tmp_path, progress=False)


def test_the_record_tells_where_a_checkpoint_comes_from(tmp_path, eager, monkeypatch):
    monkeypatch.setattr(Eager, "clear", lambda self: None)
    pretrain_ddpm(IMAGES, TINY, folder=tmp_path, progress=False)
    found = load_checkpoint(max(tmp_path.glob("step-*.safetensors")).with_suffix(""))
    assert found.spec["data"]["identity"] == IMAGES.identity and found.spec["value_range"] == [-1, 1]
    assert found.versions["torch"] == torch.__version__
    assert load_ddpm(tmp_path, TINY).config == TINY
