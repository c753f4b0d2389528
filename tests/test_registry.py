"""A detector from another package: in under 40 lines it is in runs, sweeps, tables and on the page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diawork.base.registry import BUILT_IN, DETECTORS
from diawork.report.published import published_settings, trained
from diawork.report.rows import collect
from diawork.runs.methods import method_config
from diawork.runs.presets import preset
from tests.toys import TOY

DETECTOR = '''
"""How far is an image's mean brightness from that of healthy images?"""
import numpy as np

from diawork.base.files import read_json, write_json
from diawork.base.config import Frozen, Positive
from diawork.detectors.base import Detector, Scores


class Toy(Detector):
    name = "toy"
    label = "Toy NN-flow"
    uses = ("data", "toy")
    seeded = False

    class Section(Frozen):
        power: Positive = 1.0  # of the distance

    def __init__(self, power=1.0):
        self.power = power

    @classmethod
    def build(cls, cfg, **_):
        return cls(cfg.toy.power)

    def fit(self, train, **_):
        self.mean = float(train.normal().images.mean())
        return self

    def score(self, images, **_):
        return Scores(np.abs(images.images.mean((1, 2, 3)).numpy() - self.mean) ** self.power)

    def save(self, folder):
        write_json(f"{folder}/toy.json", self.mean)

    @classmethod
    def load(cls, folder, *, compute=None):
        toy = cls()
        toy.mean = read_json(f"{folder}/toy.json")
        return toy
'''
SWEEP = """
name: toys
fixed: {dataset: DATASET, preset: smoke}
axes:
  - list: [{label: ours, method: toy, toy.power: 2.0}, {label: statistics, method: stats_knn}]
baseline: statistics
seeds: [0]
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder with the toy package, as pip would install it, and the environment that sees it."""
    root = tmp_path_factory.mktemp("outside")
    (root / "toy.py").write_text(DETECTOR)
    (root / "toy-1.0.dist-info").mkdir()
    (root / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (root / "toy-1.0.dist-info" / "entry_points.txt").write_text(
        "[diawork.detectors]\ntoy = toy:Toy\ndia = toy:Toy\nbroken = nowhere:Broken\n"
    )
    (root / "small.yaml").write_text(TOY)
    (root / "toys.yaml").write_text(SWEEP.replace("DATASET", str(root / "small.yaml")))
    path = os.pathsep.join([str(root), str(Path(__file__).parent.parent)])
    return root, os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DIAWORK_HOME": str(root / "runs")}


@pytest.fixture(scope="module")
def diawork(outside):
    root, environment = outside

    def call(*argv):
        command = [sys.executable, "-m", "diawork.cli.main", *map(str, argv), "--device", "cpu"]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def fails(outside, *argv):
    root, environment = outside
    command = [sys.executable, "-m", "diawork.cli.main", *argv]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    return done.stderr


def test_a_knob_of_its_own_is_validated_at_once(outside):
    dry = ("run", "--dataset", "small.yaml", "--methods", "toy", "--print-config", "--set")
    assert "Did you mean 'toy.power'" in fails(outside, *dry, "toy.powr=2")
    assert "toy.power: Input should be greater than 0" in fails(outside, *dry, "toy.power=-1")


def test_a_broken_one_says_so_only_when_it_is_asked_for(outside):
    said = fails(outside, "run", "--dataset", "small.yaml", "--methods", "broken", "--print-config")
    assert "the detector 'broken' of another package cannot be loaded (" in said and "Traceback" not in said


def test_none_takes_the_name_of_ours_in_silence(outside):
    _, environment = outside
    code = "from diawork.base.registry import DETECTORS; print(DETECTORS['dia'].kind.__module__, *DETECTORS)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("diawork.detectors.dia ") and done.stdout.split()[-2:] == ["toy", "broken"]
    assert "the detector 'dia' of another package (toy:Toy) is passed over" in done.stderr


def test_a_plugin_is_not_imported_before_it_is_asked_for(outside):
    _, environment = outside
    code = (
        "import sys; from diawork.base.config import ExperimentConfig as C;"
        "from diawork.base.registry import DETECTORS;"
        "assert 'toy' in list(DETECTORS) and 'torch' not in sys.modules and 'toy' not in sys.modules;"
        "cfg = C().override({'toy.power': 2}); sys.exit(cfg.toy.power != 2 or cfg.digest() == C().digest())"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_detector_declares_its_name_and_a_label(name):
    entry = DETECTORS[name]
    assert (entry.kind.name == name and entry.label not in ("", name)) or name == "anomalib"
    assert entry.Section is None or name in entry.uses


def test_it_runs_and_stands_in_tables_and_on_the_page(outside, diawork):
    root, _ = outside
    said = diawork("run", "--dataset", root / "small.yaml", "--preset", "smoke", "--methods", "toy,stats_knn")
    assert "Toy NN-flow" in said and "test AUROC" in said
    controls = {row.label: row.control for row in collect(root / "runs").rows}
    assert controls == {"Toy NN-flow": False, "5-NN on statistics": True}
    page = next((root / "runs").glob("report-*.html")).read_text()
    assert '5-NN on statistics<span class="kind">control' in page
    assert page.count("Toy NN-flow") > 3 and "Toy NN-flow<span" not in page


def test_it_is_a_sweeps_row(outside, diawork):
    root, _ = outside
    assert "2 of 2 cells done" in diawork("sweep", root / "toys.yaml")
    page = (root / "runs" / "sweeps" / "toys" / "report.html").read_text()
    assert "ours" in page and "2 of 2 cells finished" in page


def test_a_rival_is_compared_with_its_own_paper():
    found = {name: published_settings(name) for name in ("scrd4ad", "kdad", "dia", "anomalib")}
    backbones = {name: (one.get("backbone.name"), one.get("backbone.image_size")) for name, one in found.items()}
    assert backbones == {
        "scrd4ad": ("wide_resnet50_2", 256), "kdad": ("vgg16", 128), "dia": (None, None), "anomalib": (None, None)
    }  # fmt: skip
    assert (found["scrd4ad"]["scrd4ad.steps"], found["kdad"]["kdad.batch_size"]) == (40_000, 64)
    assert found["dia"]["train.epochs"] == 200 and not found["anomalib"]


def test_a_run_says_how_far_of_its_papers_training_it_went():
    found = trained("scrd4ad", preset("cpu").override({"detector": "scrd4ad"}).flat())
    assert found == (450, 40_000, "steps") and found.share == pytest.approx(0.011, abs=1e-3)
    assert trained("kdad", {"kdad.epochs": 50}).share == 0.25
    assert all(trained(name, preset("cpu").flat()) is None for name in ("dia", "patchcore", "stats_knn", "elsewhere"))


@pytest.mark.parametrize(
    ("method", "size"), [("dia", 64), ("simsid", 64), ("deep_knn", None), ("anomalib_padim", None)]
)
def test_a_presets_size_is_for_what_learns_from_scratch(method, size):
    cfg = preset("cpu", dataset="chestxray224")
    assert method_config(cfg, method).data.size == size
    assert method_config(cfg.override({"data.size": 100}), method).data.size == 100


@pytest.mark.parametrize("name", ["deep_knn", "rd4ad", "scrd4ad", "simsid", "kdad", "mean_shift"])
def test_a_run_of_a_detector_that_computed_otherwise_is_other_work(name, monkeypatch):
    cfg = preset("smoke").override({"detector": name})
    today = cfg.digest("data")
    monkeypatch.setitem(vars(DETECTORS[name]), "revision", 1)
    assert cfg.digest("data") != today
