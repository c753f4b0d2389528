"""Toys for the tests that kill: a tiny model, detector and data set, and processes to end early."""

import contextlib
import faulthandler
import hashlib
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as serialize
from threadpoolctl import threadpool_limits
from torch import nn

from diawork.base.checkpoints import Checkpointer, load_checkpoint
from diawork.base.config import DiffusionConfig
from diawork.base.seeding import isolated_rng
from diawork.detectors.dia import DIA
from diawork.method.ddpm import pretrain_ddpm
from diawork.method.encoder import Embedding
from diawork.runs.presets import preset
from tests.conftest import make_images

TINY = DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=8, steps=5, batch_size=4, lr=1e-3, ema_every=1)
IMAGES, TEST = make_images(size=8), make_images(6, 8, split="test", anomalous=3, seed=1)
CFG = preset("smoke").override({"dissolve.operator": "gaussian_blur", "train.batch_size": 4})

LONGEST = 120  # seconds for a child; none takes more than a few, on an idle machine

TOY = """
name: toy
title: A toy phantom
kind: phantom
licence: Apache-2.0
citation: none
classes: {0: healthy, 1: lesion}
roles: {healthy: normal, lesion: anomalous}
counts:
  train: {healthy: 24, lesion: 0}
  val: {healthy: 8, lesion: 8}
  test: {healthy: 12, lesion: 12}
image: {size: 16, channels: 1}
t_range: [30, 130]
bridge: pad
phantom: {kind: lung, lesion: spot, lesion_size: 4.0, lesion_contrast: 0.3, seed: 0}
"""
SETTINGS = {"diffusion.steps": 15, "diffusion.image_size": 16, "diffusion.batch_size": 4, "train.epochs": 6,
            "train.batch_size": 4, "train.select": "val", "score.samples": 8}  # fmt: skip


class Small(nn.Module):
    """An encoder of a few hundred weights, with BatchNorm."""

    def __init__(self, cfg, shifts):
        super().__init__()
        self.cfg = cfg
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.projection, self.shift = nn.Linear(8, cfg.projection_dim), nn.Linear(8, shifts)

    def forward(self, x):
        h = self.body(x).mean((2, 3))
        return Embedding(h, self.projection(h), self.shift(h))

    def early(self, x):
        return self.body(x)


def small_encoder(cfg, *, seed=0, shifts=4):
    with isolated_rng(seed, "encoder", "init"):
        return Small(cfg, shifts)


def as_format_1(path, data=None, **changes):
    """Write the checkpoint at ``path`` as versions up to 0.1 did, or ``data`` in its place: tensors, and a record."""
    found = load_checkpoint(path)
    tensors, state = dict(found.tensors), dict(found.state)
    if tensors.pop("history", None) is not None:
        state |= json.loads(found.tensors["history"].numpy().tobytes())
    data = serialize(tensors) if data is None else data
    path.with_suffix(".safetensors").write_bytes(data)
    record = {"format": 1, "bytes": len(data), "spec": found.spec, "state": state, "versions": found.versions}
    record |= {"sha256": hashlib.sha256(data).hexdigest()} | changes
    seal = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(record | {"seal": seal}))


class Eager(Checkpointer):
    """Saves after every step, whatever it costs."""

    def after_step(self, step, snapshot):
        self._last, self._cost, self.every_seconds = 0.0, 0.0, 0.0
        super().after_step(step, snapshot)


def _stack(pid):
    """Where a child writes where it stands, once it is aborted."""
    return Path(tempfile.gettempdir()) / f"diawork-child-{pid}.txt"


def child(work):
    """Do ``work`` in a forked process of a group of its own, on one thread; return its id.

    OpenMP's threads do not survive a fork: the first parallel region of a child would wait for them for ever.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        with open(_stack(os.getpid()), "w") as stack:
            faulthandler.disable()  # enabled already, it would not take SIGABRT back from a library that took it
            faulthandler.enable(stack)  # not to pytest's stderr, where it looks like a crash
            threadpool_limits(1)
            code = work() or 0
    finally:
        os._exit(code)


def ended(pid, within=LONGEST):
    """Wait for a child; return its exit code, negative for the signal that killed it. Nothing of it is left.

    One that does not end is killed, with its group, and fails the test.
    """
    late = time.monotonic() + within
    while (state := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > late:
            os.kill(pid, signal.SIGABRT)  # its fault handler writes where it stands, then it ends
            patience = time.monotonic() + 10
            while (gone := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < patience:
                time.sleep(0.05)
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
            if gone == (0, 0):
                os.waitpid(pid, 0)
            stood = _stack(pid).read_text()
            _stack(pid).unlink()
            pytest.fail(f"a child did not end within {within} s and was killed; it stood here:\n{stood}")
        time.sleep(0.005)
    _stack(pid).unlink(missing_ok=True)
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    return os.waitstatus_to_exitcode(state[1])


def disturbed(work, number, rng, longest):
    """Run ``work`` and send it a signal within ``longest`` seconds; return the exit code and how long it lived on."""
    while True:
        pid = child(work)
        time.sleep(rng.uniform(0, longest))
        sent = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        code = ended(pid)
        if code != 0:
            return code, time.monotonic() - sent
        longest *= 0.8  # it had finished


def duration(work):
    start = time.monotonic()
    assert ended(child(work)) == 0
    return time.monotonic() - start


def equal(found, wanted):
    """Compare all tensors; a training that was killed after its end is loaded, without an optimiser."""
    missing = wanted.keys() - found.keys()
    loaded = missing == {name for name in wanted if name.startswith("optimizer.")}
    return (loaded or not missing) and all(torch.equal(value, wanted[name]) for name, value in found.items())


@contextlib.contextmanager
def before_each_save(act):
    """Call ``act(checkpointer, step, snapshot)`` after each step of a training, before it may save or stop."""
    after_step = Checkpointer.after_step

    def acting(self, step, snapshot):
        act(self, step, snapshot)
        after_step(self, step, snapshot)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "after_step", acting)
        yield


@contextlib.contextmanager
def keeping(kept):
    """Put the optimiser's state at a training's end into ``kept``."""
    save = Checkpointer.save

    def saving(self, step, snapshot):
        kept.update({k: v.clone() for k, v in snapshot()[0].items() if k.startswith("optimizer.")})
        save(self, step, snapshot)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "save", saving)
        yield


def pretrained(folder):
    """Pretrain to the end; return raw, average and optimiser as tensors."""
    kept = {}
    with keeping(kept):
        ddpm = pretrain_ddpm(IMAGES, TINY, folder=folder, progress=False)
    losses = {"losses": torch.tensor(ddpm.losses)}
    return {f"{w}.{k}": v for w in ("raw", "ema") for k, v in ddpm.weights(w).state_dict().items()} | kept | losses


def trained(folder):
    """Train a detector to the end; return encoder, optimiser and scores as tensors."""
    kept = {}
    with keeping(kept):
        detector = DIA(None, CFG).fit(IMAGES, folder=folder, progress=False)
    scores = {"scores": torch.from_numpy(detector.anomaly_scores(TEST)), "bank": detector.bank.axes}
    return {**detector.encoder.state_dict(), **kept, **scores}
