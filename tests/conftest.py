"""Shared fixtures: a quiet machine, a tiny data set, tiny settings."""

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny tensors: a second thread only waits, for long where cores are shared
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import pytest
import torch

from diawork.data.images import ImageSet

LONGEST = "test_notebooks.py"  # with -n 2 a long file that starts last is waited for


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name != LONGEST)  # stable: the others keep their order
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(autouse=True)
def _away_from_the_users_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DIAWORK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("diawork.runs.evidence.MAPPED", 6)  # images whose anomaly maps every run measures
    monkeypatch.chdir(tmp_path)


def make_images(n=12, size=16, *, split="train", anomalous=0, seed=0):
    """An ImageSet of seeded noise; the last ``anomalous`` images are anomalous."""
    images = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))
    labels = np.arange(n) >= n - anomalous
    names = np.where(labels, "lesion", "healthy")
    return ImageSet(images, names, labels, np.arange(n), split, "noise")


@pytest.fixture
def images():
    return make_images()


@pytest.fixture
def small(monkeypatch):
    """A tiny encoder in the detectors' place, reports without pictures, and one thread."""
    from diawork.report.pictures import Pictures
    from tests.toys import small_encoder

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    monkeypatch.setattr("diawork.detectors.dia.build_encoder", small_encoder)
    monkeypatch.setattr("diawork.report.sections.draw_pictures", lambda *_: Pictures())
    monkeypatch.setattr("diawork.detectors.maps.MEASURED", ("residual",))  # a map that asks no encoder
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def eager(monkeypatch):
    """Save after every step."""
    from tests.toys import Eager

    monkeypatch.setattr("diawork.base.loop.Checkpointer", Eager)


@pytest.fixture
def toy(tmp_path):
    """The manifest of a tiny phantom."""
    from tests.toys import TOY

    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path / "toy.yaml"
