"""Data checks: planted duplicates are found, innocent sets are left in peace, leaks stop a run."""

import functools
import io
import json
import os
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diawork.base.errors import CheckpointError, DataError
from diawork.cli.main import main
from diawork.data import checks
from diawork.data.checks import DataReport, check_source, check_splits, contact_sheet, pair_images
from diawork.data.datasets import load
from diawork.data.images import ImageSet, Splits
from diawork.data.manifests import Manifest, load_manifest
from diawork.data.phantom import KINDS
from diawork.runs.experiment import run_experiment
from diawork.runs.presets import preset

REAL = Path(os.environ.get("DIAWORK_DATA", "/nowhere")) / "pneumoniamnist.npz"


@functools.cache
def clean(kind="oct"):
    """A phantom of 300 training images, 20 and 120 to evaluate on."""
    values = load_manifest("phantom").model_dump()
    values["phantom"]["kind"] = kind
    values["counts"] = {"train": {"healthy": 200, "lesion": 100}, "val": {"healthy": 10, "lesion": 10},
                        "test": {"healthy": 110, "lesion": 10}}  # fmt: skip
    return load(Manifest.model_validate(values))


def with_images(images, rows, pixels):
    """Return an ImageSet in which ``rows`` show ``pixels``."""
    changed = images.images.clone()
    changed[rows] = torch.as_tensor(pixels, dtype=torch.float32)
    return replace(images, images=changed)


def planted(splits, source, rows, *, split="test", change=lambda x, rng: x):
    """Return the splits in which images ``rows`` of ``split`` are altered copies of train images ``source``."""
    rng = np.random.default_rng(0)
    copies = np.stack([change(splits.train.images[i, 0].numpy(), rng) for i in source])[:, None]
    changed = with_images(getattr(splits, split), rows, copies)
    return replace(splits, **{split: changed})


def jpeg(x, rng):
    buffer = io.BytesIO()
    Image.fromarray(np.rint(x * 255).astype(np.uint8)).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer), np.float32) / 255


def shift(x, rng):
    dy, dx = [(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1)][rng.integers(6)]
    return np.pad(x, 1, mode="edge")[1 - dy : 1 - dy + len(x), 1 - dx : 1 - dx + len(x)]


def gain(x, rng):
    return np.rint(np.clip(x * rng.choice([0.95, 1.05]), 0, 1) * 255) / 255


def any_of_them(x, rng):
    return (jpeg, shift, gain)[rng.integers(3)](x, rng)


def found(report, kind, rows):
    return len({p.second_index for p in report.pairs if p.kind == kind and p.across} & set(rows))


# --- what is found -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["oct", "fundus", "lung"])
def test_images_of_one_anatomy_raise_no_alarm(kind):
    report = check_splits(clean(kind))
    assert (report.pairs, report.problems, report.digest, report.ok) == ((), (), "", True)


@pytest.mark.parametrize("change", [jpeg, shift, gain, any_of_them])
def test_planted_near_duplicates_are_found(change):
    report = check_splits(planted(clean(), range(100), range(100), change=change))
    assert found(report, "near", range(100)) + found(report, "exact", range(100)) >= 95
    assert len(report.pairs) <= 101


def test_planted_exact_duplicates_are_all_found():
    report = check_splits(planted(clean(), range(150, 250), range(100)))
    assert found(report, "exact", range(100)) == 100 and found(report, "near", range(100)) == 0
    assert sum(p.fitted for p in report.pairs) == 50


def test_duplicates_within_a_split_and_between_val_and_test_are_warnings():
    splits = clean()
    train = with_images(splits.train, [5, 6], splits.train.images[[4, 4]])
    test = with_images(splits.test, [3], splits.val.images[[2]])
    report = check_splits(replace(splits, train=train, test=test))
    assert report.ok and {p.severity for p in report.problems} == {"warning"}
    assert {(p.first_split, p.first_index, p.second_split, p.second_index) for p in report.pairs} == {
        ("train", 4, "train", 5), ("train", 4, "train", 6), ("val", 2, "test", 3)}  # fmt: skip
    assert report.duplicates == "1 exact between val and test, 2 exact within train"


def test_without_duplicates_the_check_says_what_was_sought(monkeypatch):
    assert check_splits(clean()).duplicates.startswith("none: exact ones were sought within and across splits")
    monkeypatch.setattr("diawork.data.checks.MOST_PAIRS", 1)
    assert check_splits(leaky()).duplicates.endswith("(of the first 1 pairs)")


def test_a_fitted_twin_is_told_even_behind_an_anomalous_one():
    splits = clean()
    train = splits.train.take(range(299, -1, -1))  # lesions first
    train = with_images(train, [299], train.images[[49]])
    report = check_splits(planted(replace(splits, train=train), [49], [7]))
    assert {(p.kind, p.first_index, p.fitted) for p in report.pairs if p.across} == {
        ("exact", 0, True), ("exact", 250, False)}  # fmt: skip


def test_constant_images_are_counted():
    splits = clean()
    blank = replace(splits, train=with_images(splits.train, [8, 9], torch.full((2, 1, 32, 32), 0.5)))
    assert any("2 of 300 images (0.7%) are constant, first 8" in p.text for p in check_splits(blank).problems)


def test_roles_and_a_missing_val_are_reported():
    splits = clean()
    gone = replace(splits, val=splits.val.take([]), test=splits.test.normal())
    texts = {p.text: p.severity for p in check_splits(gone).problems}
    assert texts["test holds 110 normal and 0 anomalous images."] == "error"
    assert any("no val split" in text and severity == "warning" for text, severity in texts.items())
    ill = replace(splits, train=splits.train.take(splits.train.anomalous))
    assert "train holds no normal image." in {p.text for p in check_splits(ill).problems}


def test_large_and_coloured_images_are_compared_at_a_small_size():
    x = torch.rand(6, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(x, (70, 70), mode="bilinear").clamp(0, 1)
    columns = np.array(["a", "b"] * 3), np.array([False, True] * 3), np.arange(6)
    train, val = (ImageSet(x[rows], *(c[rows] for c in columns), split, "x")
                  for rows, split in ((slice(0, 4), "train"), (slice(4, 6), "val")))  # fmt: skip
    test = ImageSet((x[[0, 5]] * 0.95).contiguous(), *(c[[0, 5]] for c in columns), "test", "x")
    report = check_splits(Splits(train, val, test, load_manifest("phantom")))
    assert {(p.first_split, p.first_index, p.second_index) for p in report.pairs} == {("train", 0, 0), ("val", 5, 5)}


# --- what follows ------------------------------------------------------------------------------------


def leaky():
    return planted(clean(), [3], [4])


def test_a_leak_stops_a_run_unless_its_digest_is_acknowledged():
    report = check_splits(leaky())
    with pytest.raises(
        DataError, match=rf"1 exact duplicate between train and test.*--acknowledge-leak {report.digest}"
    ):
        report.require()
    known = check_splits(leaky(), acknowledged=report.digest)
    assert known.require() is known and "train 3 (healthy) and test 4 (healthy)" in known.banner
    assert report.banner == "" and not check_splits(leaky(), acknowledged="other").ok


def test_the_set_of_a_diffusion_model_is_checked_against_the_images_to_be_scored():
    splits, another = clean("oct"), clean("lung").train
    report = check_splits(splits)
    assert check_source(report, splits, another) == report
    larger = torch.nn.functional.interpolate(splits.test.images[:5], scale_factor=2, mode="bilinear")
    images = torch.nn.functional.interpolate(another.images, scale_factor=2, mode="bilinear")
    images[:5] = larger
    found = check_source(report, splits, replace(another, images=images, masks=None))
    with pytest.raises(DataError, match=r"The diffusion model's data set .* shows 5 of this set's val and test images"):
        found.require()
    assert found.digest != report.digest and "5 of this set's" in found.acknowledge(found.digest).require().banner


def test_an_acknowledged_digest_does_not_cover_other_leaks():
    digest = check_splits(leaky()).digest
    other = check_splits(planted(clean(), [3, 5], [4, 6]), acknowledged=digest)
    assert not other.ok and any("is not that of this data's leaks" in p.text for p in other.problems)


def test_report_reads_as_lines():
    assert str(check_splits(clean())).endswith("ok           nothing found")
    report = check_splits(leaky())
    assert f"digest       {report.digest}" in str(report) and f"error        {report.errors[0]}" in str(report)


def test_report_survives_json():
    report = check_splits(leaky())
    assert DataReport.from_dict(json.loads(json.dumps(asdict(report)))) == report


@pytest.mark.parametrize("damage", [{"schema": 0}, {"pairs": [[1]]}, {"pairs": 5}, {"problems": None}])
def test_other_json_is_refused(damage):
    with pytest.raises(CheckpointError):
        DataReport.from_dict(asdict(check_splits(leaky())) | damage)


def test_a_check_is_made_once_for_the_same_data(tmp_path, monkeypatch):
    first = check_splits(leaky(), cache=tmp_path)
    monkeypatch.setattr(checks, "_checked", lambda _: pytest.fail("checked again"))
    assert check_splits(leaky(), cache=tmp_path) == first
    assert check_splits(leaky(), cache=tmp_path, acknowledged=first.digest).ok
    with pytest.raises(pytest.fail.Exception):
        check_splits(clean(), cache=tmp_path)


def test_a_damaged_cache_is_made_anew(tmp_path):
    first = check_splits(leaky(), cache=tmp_path)
    next(tmp_path.iterdir()).write_text("{}")
    with pytest.warns(UserWarning, match="checked anew"):
        assert check_splits(leaky(), cache=tmp_path) == first


OWN = """
name: own
title: Own images
kind: npz
file: own.npz
licence: none
citation: none
classes: {0: healthy, 1: lesion}
roles: {healthy: normal, lesion: anomalous}
counts: {train: {healthy: 30, lesion: 5}, val: {healthy: 9, lesion: 9}, test: {healthy: 9, lesion: 9}}
image: {size: 16, channels: 1}
t_range: [30, 130]
bridge: pad
"""


@pytest.fixture
def own(tmp_path):
    """The command for a user's data, a test image of which is a healthy training image."""
    rng, arrays = np.random.default_rng(0), {}
    for split, healthy, ill in (("train", 30, 5), ("val", 9, 9), ("test", 9, 9)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (healthy + ill, 16, 16), np.uint8)
        arrays[f"{split}_labels"] = np.repeat([0, 1], [healthy, ill])
    arrays["test_images"][2] = arrays["train_images"][4]
    np.savez(tmp_path / "own.npz", **arrays)
    (tmp_path / "own.yaml").write_text(OWN)
    argv = ["--dataset", str(tmp_path / "own.yaml"), "--data-root", str(tmp_path), "--out", "runs", "--device", "cpu"]
    return ["run", "--preset", "smoke", "--methods", "pixel_knn", *argv]


def test_a_leak_stops_the_command_and_an_acknowledged_one_is_told_in_the_report(own, capsys):
    assert main(own) == 3
    said = capsys.readouterr().err
    digest = re.search(r"--acknowledge-leak (\w{12})", said)[1]
    assert "1 exact duplicate between train and test" in said and not list(Path("runs").glob("own-*"))
    assert main([*own, "--acknowledge-leak", "0" * 12]) == 3
    assert main([*own, "--acknowledge-leak", digest]) == 0
    data = json.loads(next(Path("runs").glob("own-*/config.json")).read_text())["data"]
    assert data["acknowledged"] == digest and data["notes"][0].startswith(f"Leak, acknowledged as {digest}: 1 exact")
    page = Path("runs/report-own-smoke.html").read_text()
    assert f"Leak, acknowledged as {digest}" in page
    assert "<dt>duplicates</dt><dd>1 exact between train and test</dd>" in page


def test_pairs_are_shown_side_by_side():
    report = check_splits(leaky())
    images, titles = pair_images(report, leaky())
    assert torch.equal(images[0], images[1]) and titles == ["exact · train 3", "exact · test 4"]
    assert pair_images(check_splits(clean()), clean()) == ([], [])


def test_a_contact_sheet_shows_every_split_from_end_to_end():
    images, titles = contact_sheet(clean(), each=4)
    assert len(images) == 12 and titles[0] == "train · healthy" and titles[3] == "train · lesion"
    assert torch.equal(images[7], clean().val.images[-1])


@pytest.mark.skipif(not REAL.is_file(), reason="needs DIAWORK_DATA")
@pytest.mark.filterwarnings("ignore:pneumoniamnist.npz is not")
def test_pneumoniamnist_runs_without_acknowledgement_and_says_what_it_found(tmp_path):
    cfg = preset("cpu", dataset="pneumoniamnist").override({"detector": "stats_knn"})
    notes = run_experiment(cfg, out=tmp_path, data_root=REAL.parent, progress=False).config()["data"]["notes"]
    assert notes[0].startswith("8 exact duplicates between train and val; no fitted image is concerned")
    assert any("18 exact duplicates within train" in note for note in notes) and "not the published file" in notes[-1]


@pytest.mark.skipif(not REAL.is_file(), reason="needs DIAWORK_DATA")
@pytest.mark.filterwarnings("ignore:pneumoniamnist.npz is not")
def test_pneumoniamnist_has_eight_known_leaks_and_no_false_alarm():
    splits, start = load("pneumoniamnist", REAL.parent), time.process_time()
    report = check_splits(splits)
    assert time.process_time() - start < 40
    across = [p for p in report.pairs if p.across]
    assert len(across) == 8 and {(p.kind, p.first_split, p.second_split) for p in across} == {("exact", "train", "val")}
    assert {p.first_class for p in across} == {"pneumonia"} and report.ok
    assert sum(p.first_split == p.second_split == "train" for p in report.pairs) == 18
    spread = np.random.default_rng(1).choice(len(splits.train), 100, replace=False)
    report = check_splits(planted(splits, spread, range(100), change=any_of_them))
    assert found(report, "near", range(100)) + found(report, "exact", range(100)) >= 95


@pytest.mark.parametrize("anatomy", KINDS)
def test_no_phantom_shows_an_image_twice(anatomy):
    assert not check_splits(load(f"phantom_{anatomy}_ring")).problems
