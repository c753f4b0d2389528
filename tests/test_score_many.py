"""Two thousand loose files of every kind, some broken, scored by a command that is killed and run again."""

import csv
import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import diawork
from diawork.base.compute import Compute
from diawork.runs.experiment import run_experiment
from diawork.runs.predict import score_files
from diawork.runs.presets import preset
from tests.test_folders import make_set, picture, written

SCORE = """
import json, resource, sys
from diawork.cli.main import main
code = main(sys.argv[1:])
print(json.dumps({"code": code, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""
KINDS = ("png", "jpg", "tif", "npy")


def encoded(values, kind):
    """Return an image (H, W) as a file's bytes."""
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, values)
    else:
        Image.fromarray(values).save(buffer, {"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[kind])
    return buffer.getvalue()


def loose_files(folder, n, seed=10_000):
    """Write n files of every kind and size, none of the run's."""
    folder.mkdir()
    for i in range(n):
        kind, values = KINDS[i % 4], picture(seed + i, (16 + i % 9, 16 + i % 5))
        (folder / f"{i:04d}.{kind}").write_bytes(encoded(values, kind))


def broken_files(folder, n):
    """Write n files that end early, hold nothing, or are no image."""
    folder.mkdir()
    whole = encoded(picture(1, (64, 64)), "png")
    for i, data in zip(range(n), [whole[: len(whole) // 2], b"", b"no image", whole[:40]] * n, strict=False):
        (folder / f"{i:02d}.png").write_bytes(data)


def start(*argv):
    return subprocess.Popen([sys.executable, "-c", SCORE, *map(str, argv)], stdout=subprocess.PIPE, text=True)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_and_continued(tmp_path, tested, loose, broken):
    """Return the rows, the files left out, the run's own scores by file, and the peak in GiB."""
    counts = {("train", "well"): 12, ("val", "well"): 6, ("val", "ill"): 6}
    counts |= {("test", "well"): tested // 2, ("test", "ill"): tested - tested // 2}
    make_set(tmp_path, counts=counts)
    manifest = written(tmp_path / "own.yaml")
    cfg = preset("smoke", dataset=str(manifest)).override({"detector": "csi", "train.batch_size": 4})
    # fp32: in bf16 a score moves in its fourth digit with the images that share its batch
    run = run_experiment(cfg, out=tmp_path / "runs", compute=Compute.auto("cpu", "fp32"), progress=False)
    loose_files(tmp_path / "loose", loose)
    broken_files(tmp_path / "broken", broken)
    out = tmp_path / "scores.csv"
    argv = ["score", run.folder, tmp_path / "set/test", tmp_path / "loose", tmp_path / "broken", "--csv", out]
    argv += ["--precision", "fp32"]
    first = start(*argv)
    while first.poll() is None and lines(out) < 2:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL and lines(out) < tested + loose
    said = json.loads(start(*argv).communicate()[0].splitlines()[-1])
    assert said["code"] == 0
    with open(out, newline="") as f, open(tmp_path / "scores-left-out.csv", newline="") as g:
        rows, left_out = list(csv.DictReader(f)), list(csv.DictReader(g))
    return rows, left_out, own_scores(tmp_path, run), said["gib"]


def own_scores(root, run):
    """Return file → score of the run's own test images."""
    files = diawork.load(root / "own.yaml").test.files
    return {str(root / "set" / file): score for file, score in zip(files, run.scores("test")["score"], strict=True)}


def check(rows, left_out, own, tested, loose, broken):
    assert len(rows) == len({row["image"] for row in rows}) == tested + loose
    assert len(left_out) == broken and all(row["reason"] for row in left_out)
    scored = {row["image"]: float(row["score"]) for row in rows}
    np.testing.assert_allclose([scored[image] for image in own], list(own.values()), rtol=2e-5)


def test_forty_files_of_every_kind(tmp_path, small):
    make_set(tmp_path, counts=dict.fromkeys(((s, c) for s in ("train", "val", "test") for c in ("well", "ill")), 6))
    cfg = preset("smoke", dataset=str(written(tmp_path / "own.yaml"))).override({"detector": "csi"})
    run = run_experiment(cfg, out=tmp_path / "runs", progress=False)
    loose_files(tmp_path / "loose", 24)
    broken_files(tmp_path / "broken", 4)
    out, sources = tmp_path / "scores.csv", [tmp_path / name for name in ("set/test", "loose", "broken")]
    left_out = score_files(diawork.load_detector(run), sources, out, progress=False).left_out
    with open(out, newline="") as f:
        rows = list(csv.DictReader(f))
    check(rows, [{"reason": reason} for reason in left_out.values()], own_scores(tmp_path, run), 12, 24, 4)


@pytest.mark.slow
def test_two_thousand_files_of_every_kind(tmp_path, capsys):
    rows, left_out, own, gib = killed_and_continued(tmp_path, tested=1000, loose=980, broken=20)
    check(rows, left_out, own, 1000, 980, 20)
    with capsys.disabled():
        print(f"\n{len(rows):,} rows, {len(left_out)} reasons, peak {gib:.2f} GiB")
    assert gib < 1.5
