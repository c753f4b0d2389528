"""A set too large for memory: opened at once after its first pass, trained and scored a batch at a time."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from diawork.data import store
from diawork.data.datasets import load
from tests.test_folders import FOLDER, written

SIZE = 224
PEAK = """
import json, resource, sys
from diawork.base.compute import Compute
from diawork.base.config import ExperimentConfig
from diawork.data.datasets import load
from diawork.data import store
from diawork.data.checks import _constant_images
from diawork.detectors.controls import StatsKNN
from diawork.method.ddpm import pretrain_ddpm
from diawork.method.encoder import build_encoder
from diawork.method.training import fit
from diawork.method.views import BranchBuilder
from diawork.runs.presets import preset

cfg = preset("smoke").override({"train.epochs": 1, "train.batch_size": 4, "diffusion.steps": 3})
encoder, compute = build_encoder(cfg.encoder), Compute.auto("cpu", "fp32")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
before, splits = peak(), load(sys.argv[1])
pretrain_ddpm(splits.train, cfg.diffusion, bridge="resize", compute=compute, progress=False)
x = splits.train.normal().images
fit(encoder, x, BranchBuilder(cfg.views, None), train=cfg.train, loss=cfg.loss, compute=compute, progress=False)
StatsKNN().fit(splits.train).score(splits.test)
list(_constant_images(splits))
print(json.dumps({"before": before, "peak": peak()}))
"""


def make_large(root, n):
    """Write n different pictures of a kilobyte or so; one in a hundred is anomalous."""
    ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE)) // 4
    for split, name, count in (("train", "well", n - n // 50), ("test", "well", n // 100), ("test", "ill", n // 100)):
        folder = root / "set" / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            image = ((ramp + i) % 256).astype(np.uint8)
            image[: 1 + i % SIZE, : 1 + i // SIZE % SIZE] = i % 251
            Image.fromarray(image).save(folder / f"{i:06d}.png", compress_level=1)
    return written(root / "large.yaml", FOLDER, image={"size": SIZE, "channels": 1})


def measured(root, n):
    """Return the seconds of the first and the second opening, and the GiB of a training beyond the model."""
    path, seconds = make_large(root, n), []
    for _ in range(2):
        start = time.monotonic()
        assert sum(len(images) for images in load(path).all()) == n
        seconds.append(time.monotonic() - start)
    out = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True).stdout
    memory = json.loads(out.splitlines()[-1])
    return *seconds, memory["peak"] - memory["before"]


@pytest.mark.slow
def test_a_hundred_thousand_images_open_at_once_and_train_in_two_gibibytes(tmp_path):
    first, second, gib = measured(tmp_path, 100_000)
    print(f"first pass {first:.0f} s, opened again in {second:.2f} s, {gib:.2f} GiB beyond the model")
    assert second < 2 and gib < 2


def test_reading_gives_the_pages_back(tmp_path, monkeypatch):
    images = load(make_large(tmp_path, 100)).train.images
    monkeypatch.setattr(store, "HELD_BYTES", 2**20)
    held = [images._held for rows in images.split(10) if len(rows)]
    assert max(held) <= 2**20 and 0 in held
