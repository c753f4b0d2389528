"""Records edited, torn or of another version: one sentence and no traceback, and other runs are read all the same."""

import io
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diawork.cli.main import main
from diawork.runs.experiment import run_experiment
from diawork.runs.presets import preset
from diawork.runs.run import Run
from diawork.sweeps import launch
from diawork.sweeps.cell import CellFolder, run_in_cell
from diawork.sweeps.sweep import Sweep
from tests.builders import make_run, write_evidence
from tests.toys import SETTINGS, TOY, small_encoder

ODD = (
    None, True, -1, 0, 3.5, 10**40, "", "x", "é\x1b[31m\n", [], [1], ["a"], [[]], {}, {"a": 1}, {"auroc": "high"},
    {"test": []}, float("nan"), float("-inf"), "1" * 400,
)  # fmt: skip
SWEEP = """
name: small
fixed: {dataset: toy.yaml}
axes:
  - list:
      - {label: statistics, method: stats_knn}
      - {label: pixels, method: pixel_knn}
sizes:
  smoke: {preset: smoke}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of runs and a sweep, an image, and the manifest that they are of."""
    root = tmp_path_factory.mktemp("records")
    (root / "toy.yaml").write_text(TOY)
    (root / "small.yaml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diawork.detectors.dia.build_encoder", small_encoder)
        patch.chdir(root)
        cfg = preset("smoke", dataset="toy.yaml").override(SETTINGS | {"train.epochs": 1})
        tracked = cfg.override({"detector": "csi", "train.track_test": True})
        write_evidence(run_experiment(tracked, out="runs", progress=False).folder)
        sweep = Sweep.load("small.yaml", "smoke")
        folder = launch.prepare(sweep, out="runs", device="cpu")
        for cell in sweep.cells:
            place = CellFolder.of(cell, folder)
            run_in_cell(place.path, cell.config, out="runs", progress=False)
            place.finish(1.0)
            place.note("done")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)).save(root / "new.png")
    return root


def places(value, here=()):
    """Yield the path to every value inside a JSON value."""
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*here, key))


def edited_json(text, rng):
    """Return JSON with one value, or all of it, replaced, removed or renamed."""
    value = json.loads(text)
    *outer, last = rng.choice(list(places(value))) or (None,)
    if last is None:
        return json.dumps(rng.choice(ODD))
    at = value
    for key in outer:
        at = at[key]
    if (how := rng.random()) < 0.6:
        at[last] = rng.choice(ODD)
    elif how < 0.8 or isinstance(at, list):
        del at[last]
    else:
        at[f"{last}_"] = at.pop(last)
    return json.dumps(value)


def edited_arrays(data, rng):
    """Return an archive of arrays with one that is of another shape or type, misnamed or missing."""
    with np.load(io.BytesIO(data)) as found:
        arrays = dict(found)
    name = rng.choice(list(arrays))
    array = np.atleast_1d(arrays.pop(name))
    others = [
        array[..., :0], array[:1], array.astype(str), np.array(3), array[None], np.full(array.shape, np.nan),
        np.zeros(5, bool), array.ravel()[::-1], np.zeros(array.shape, complex), np.full(array.shape, 10**9),
    ]  # fmt: skip
    arrays |= rng.choice([{}, {f"{name}_": array}, {name: rng.choice(others)}])
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def edit(path, rng):
    """Change a record as a hand, a torn write, or another version does."""
    data = path.read_bytes()
    if (how := rng.random()) < 0.3:
        i = rng.randrange(len(data) + 1)
        flipped = data[:i] + bytes([rng.randrange(256)]) + data[i + 1 :]
        path.write_bytes(rng.choice([data[:i], flipped, data + data, b"", b"\xff\xfe", b"[" * 9000]))
    elif how < 0.4:
        path.unlink()
        if how < 0.33:
            path.mkdir()
    elif path.suffix == ".json":
        path.write_text(edited_json(data, rng))
    elif path.suffix == ".npz":
        path.write_bytes(edited_arrays(data, rng))
    else:
        lines = data.decode().splitlines(keepends=True) or [""]
        at = rng.randrange(len(lines))
        line = lines[at]
        lines[at] = rng.choice(["", line.replace(",", ";"), "x\n", line.replace("1", "nan"), line * 2, "é,\n"])
        path.write_text("".join(lines))


class Gone:
    """A worker that ends at once."""

    poll = staticmethod(lambda: 7)
    terminate = kill = lambda self: None


VERBS = {
    "report": "report runs --html page.html",
    "score": "score {csi} new.png --csv new.csv",
    "run": "run --dataset toy.yaml --preset smoke --methods stats_knn --out runs --report page.html",
    "sweep": "sweep small.yaml --size smoke --out runs",
}


def of_a_run(root, name):
    return sorted(p for p in (root / "runs").glob(f"{name}/*") if p.suffix in (".json", ".npz", ".csv", ".jsonl"))


def of_a_sweep(root):
    cells = [p for p in (root / "runs" / "sweeps").rglob("*") if p.is_file() and p.name not in ("lock", "log.txt")]
    return sorted(cells + list((root / "runs" / "data-checks").glob("*.json")))


def tried(made, folder, verb, seed):
    """Edit one record of a copy and run a verb on it; return the exit code."""
    rng = random.Random(seed)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    os.chdir(folder)
    run = {"score": "toy-csi-*", "run": "toy-5-nn-on-st*"}.get(verb, "toy-*")
    records = of_a_sweep(folder) if verb == "sweep" else of_a_run(folder, run)
    path = rng.choice(records)
    edit(path, rng)
    (csi,) = Path("runs").glob("toy-csi-*")
    return main(VERBS[verb].format(csi=csi).split()), path


@pytest.fixture
def idle(monkeypatch):
    """No kernel is started, and the encoder is tiny."""
    monkeypatch.setattr(launch, "start_worker", lambda *_: Gone())
    monkeypatch.setattr(launch, "POLL", 0.0)
    monkeypatch.setattr("diawork.detectors.dia.build_encoder", small_encoder)


def survives(made, tmp_path, verb, seed):
    """Hold that a verb ends with a code of its own and leaves no traceback behind."""
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    code, path = tried(made, tmp_path / "copy", verb, seed)
    assert code in {0, 2, 3, 4, 5, 7}, f"{path} edited by seed {seed}: exit code {code}"
    assert not list((tmp_path / "copy").glob("crash-*.txt"))
    assert code == 0 or verb != "report", "one bad run keeps a report of others from being written"


FAST = settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", VERBS)
@FAST
@given(seed=st.integers(0, 2**32))
def test_an_edited_record_ends_no_verb_with_a_traceback(made, tmp_path, idle, small, verb, seed):
    survives(made, tmp_path, verb, seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", VERBS)
def test_300_edited_records_end_no_verb_with_a_traceback(made, tmp_path, idle, verb):
    for seed in range(300):
        survives(made, tmp_path, verb, seed)


def test_a_report_says_which_picture_is_damaged(tmp_path):
    folder = make_run(tmp_path / "runs", evidence=True)
    arrays = Run(folder).evidence()
    del arrays["errors_nearest"]
    Run(folder).write_evidence(arrays)
    assert main(["report", str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")]) == 0
    assert "A picture is missing" in (tmp_path / "page.html").read_text("utf-8")
