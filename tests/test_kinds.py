"""The kinds of data sets beside folders and tables: CIFAR batches, split lists, large npz; leaks and labels."""

import json
import shutil

import numpy as np
import pytest
import torch

from diawork.base.compute import Compute
from diawork.base.config import ExperimentConfig
from diawork.base.errors import DataError, UsageError
from diawork.cli.main import main
from diawork.data.checks import check_splits, without_leaks
from diawork.data.datasets import contaminated, load
from diawork.data.manifests import list_manifests, load_manifest
from diawork.data.store import StoredImages
from diawork.runs.experiment import run_experiment
from diawork.runs.presets import preset
from diawork.sweeps.file import list_sweeps, read_sweep_file
from tests.test_folders import COUNTS, FACTS, counts_of, make_set, opened, picture, save, written

CIFAR = FACTS | {
    "kind": "cifar", "folder": "batches", "image": {"size": 32, "channels": 3}, "bridge": "none",
    "counts": {"train": {"well": 25, "ill": 25}, "test": {"well": 5, "ill": 5}},
}  # fmt: skip


def cifar(folder, n=10, labels=1):
    """Write batches of n rows; the label is the parity of the row, the picture a known ramp."""
    folder.mkdir(parents=True)
    names = (
        [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"] if labels == 1 else ["train.bin", "test.bin"]
    )
    for seed, name in enumerate(names):
        rows = np.random.default_rng(seed).integers(0, 256, (n, labels + 3072), np.uint8)
        rows[:, 0] = np.arange(n) % 2
        rows.tofile(folder / name)
    return np.fromfile(folder / names[0], np.uint8).reshape(n, -1)


def test_cifar_10_in_its_binary_form(tmp_path):
    rows = cifar(tmp_path / "batches")
    train = opened(tmp_path, CIFAR).train
    assert train.images.shape == (50, 3, 32, 32) and train.anomalous.sum() == 25
    assert torch.equal(train.images[3] * 255, torch.from_numpy(rows[3, 1:].reshape(3, 32, 32)).float())


def test_cifar_100_takes_the_superclass_and_a_recipe(tmp_path):
    cifar(tmp_path / "batches", 40, labels=2)
    changes = {"recipe": {"val": 0.1}, "counts": {"train": {"well": 18, "ill": 18}, "val": {"well": 2, "ill": 2},
               "test": {"well": 20, "ill": 20}}}  # fmt: skip
    assert counts_of(opened(tmp_path, CIFAR, **changes)) == [(18, 18), (2, 2), (20, 20)]


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [("data_batch_1", 100, "pickled form, and nothing is unpickled.*binary version"), ("x", 9, "no binary batches"),
     ("data_batch_1.bin", 3072, "no rows of 3,073"), ("data_batch_1.bin", 0, "no rows"),
     ("train.bin", 3074, "No such file")],
)  # fmt: skip
def test_other_forms_of_cifar_are_refused(name, size, says, tmp_path):
    (tmp_path / "batches").mkdir()
    (tmp_path / "batches" / name).write_bytes(bytes(size))
    with pytest.raises(DataError, match=says):
        opened(tmp_path, CIFAR)


def test_a_label_beyond_the_classes_is_refused(tmp_path):
    rows = cifar(tmp_path / "batches")
    rows[0, 0] = 7
    rows.tofile(tmp_path / "batches/data_batch_1.bin")
    with pytest.raises(DataError, match="the label 7"):
        opened(tmp_path, CIFAR)


# --- split lists -------------------------------------------------------------------------------------

LISTED = FACTS | {"kind": "splitlist", "file": "RSNA/data.json", "folder": "RSNA/images"}
LISTS = {"train": {"0": ["a0.png", "a1.png", "a2.png"], "unlabeled": {"0": ["u.png"]}},
         "test": {"0": ["b0.png"], "1": ["c0.png"]}}  # fmt: skip


def make_list(root, lists=LISTS):
    for seed, name in enumerate(["a0", "a1", "a2", "b0", "c0", "u"]):
        save(root / f"RSNA/images/{name}.png", picture(seed))
    (root / "RSNA/data.json").write_text(json.dumps(lists))
    return root


def test_a_split_list_names_train_and_test(tmp_path):
    splits = opened(make_list(tmp_path), LISTED)
    assert counts_of(splits) == [(3, 0), (0, 0), (1, 1)] and splits.test.files.tolist() == ["b0.png", "c0.png"]


@pytest.mark.parametrize(
    ("lists", "says"),
    [([1], "holds list where a mapping of splits"), ({"train": ["a"]}, "holds list where a mapping of labels"),
     (LISTS | {"dev": {"0": []}}, "'dev' is not a split"), ({"train": {"9": ["a0.png"]}}, "'9' is not a class"),
     ({"train": {"0": ["../a.png"]}}, "plain path inside"), ({"train": {"0": [3]}}, "names 3 where a file"),
     ({"train": {"0": ["a0.png"], "1": ["a0.png"]}}, "stands under two labels")],
)  # fmt: skip
def test_split_lists_that_cannot_be_right(lists, says, tmp_path):
    with pytest.raises(DataError, match=says):
        opened(make_list(tmp_path, lists), LISTED)


def test_a_split_list_that_is_no_json(tmp_path):
    (make_list(tmp_path) / "RSNA/data.json").write_text("{")
    with pytest.raises(DataError, match="this split list is damaged"):
        opened(tmp_path, LISTED)


# --- npz ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "channels"), [(64, 1), (128, 3), (224, 1)])
def test_larger_forms_of_medmnist_stay_bytes(size, channels, tmp_path):
    counts = {"train": {"well": 4, "ill": 2}, "test": {"well": 2, "ill": 1}}
    facts = FACTS | {"kind": "npz", "file": "x.npz", "image": {"size": size, "channels": channels}, "counts": counts}
    arrays, shape = {}, (size, size, 3)[: 2 + (channels == 3)]
    for split, n in (("train", (4, 2)), ("test", (2, 1))):
        arrays[f"{split}_images"] = picture(sum(n), (sum(n), *shape))
        arrays[f"{split}_labels"] = np.repeat([0, 1], n)[:, None]
    np.savez(tmp_path / "x.npz", **arrays)
    splits = opened(tmp_path, facts)
    stored = arrays["train_images"].reshape(6, size, size, channels)
    wanted = torch.from_numpy(np.moveaxis(stored, -1, 1).copy())
    assert torch.equal(splits.train.images[:] * 255, wanted.float())
    assert isinstance(splits.train.images, StoredImages) == (size > 64)
    fewer = {"train": {"well": 3, "ill": 2}, "test": {"well": 2, "ill": 1}}
    assert opened(tmp_path, facts, drop=["train/1"], counts=fewer).train.images[1].equal(splits.train.images[2])
    for bad in ("train/6", "dev/1", "x"):
        with pytest.raises(DataError, match="drop"):
            opened(tmp_path, facts, drop=[bad])


# --- leaks and labels --------------------------------------------------------------------------------


def leaking(root):
    """A set of which two healthy training images stand in test, too."""
    make_set(root)
    for i in (0, 1):
        shutil.copy(root / f"set/train/well/trainwellp0_{i}.png", root / f"set/test/well/copy{i}.png")
    return root


def test_leaks_stop_a_run_and_are_dropped_on_demand(tmp_path):
    splits = opened(leaking(tmp_path))
    with pytest.raises(DataError, match=r"2 exact duplicates between train and test.*--drop-leaks"):
        check_splits(splits).require()
    rest = without_leaks(splits)
    assert counts_of(rest) == [(10, 4), (0, 0), (6, 4)] and check_splits(rest).ok
    assert "2 of 12 healthy training images" in rest.notes[-1] and "train/well/trainwellp0_0.png" in rest.notes[-1]
    assert rest.identity != splits.identity and without_leaks(rest) is rest


def test_a_set_without_leaks_is_left_as_it_is():
    plain, dropped = (load(ExperimentConfig().override({"data.drop_leaks": drop})) for drop in (False, True))
    assert plain.identity == dropped.identity and plain.notes == dropped.notes


def test_the_command_line_drops_leaks(tmp_path, monkeypatch):
    written(leaking(tmp_path) / "own.yaml", bridge="resize")
    command = ["run", "--dataset", str(tmp_path / "own.yaml"), "--preset", "smoke", "--methods", "stats_knn"]
    assert main(command) == 3
    assert main([*command, "--drop-leaks"]) == 0
    (config,) = (tmp_path / "home").glob("own-*/config.json")
    assert "Left out with data.drop_leaks" in config.read_text()


def test_a_healthy_patient_in_two_splits_is_a_leak(tmp_path):
    make_set(tmp_path)
    save(tmp_path / "set/test/well/trainwellp0_9.png", picture(77))
    splits = opened(tmp_path, patient="^([a-z]+p[0-9]+)_")
    report = check_splits(splits)
    assert any("1 patient of 2 healthy training images stand in val or test" in error for error in report.errors)
    assert report.acknowledge(report.digest).ok
    rest = without_leaks(splits)
    assert counts_of(rest)[0] == (10, 4) and check_splits(rest).ok


def test_an_image_under_two_labels_is_an_error_of_its_own(tmp_path):
    make_set(tmp_path)
    shutil.copy(tmp_path / "set/train/well/trainwellp0_0.png", tmp_path / "set/train/ill/again.png")
    report = check_splits(opened(tmp_path))
    assert report.errors and "1 image stands under two labels" in report.errors[0] and not report.digest
    assert check_splits(opened(tmp_path, drop=["train/ill/again.png"])).ok


def test_contamination_and_data_fraction_work_on_a_folder(tmp_path):
    splits = opened(make_set(tmp_path))
    made = contaminated(splits, 0.2)
    assert len(made.train.normal()) == 15 and made.identity != splits.identity
    with pytest.raises(DataError, match="there are 4"):
        contaminated(splits, 0.5)


# --- manifests of the papers' sets -------------------------------------------------------------------

PAPERS = ["aptos2019", "braintumor", "breastmnist", "chestmnist", "chexpert", "cifar10", "cifar100", "covidx",
          "isic2018", "kvasir_polyp", "octmnist", "pneumoniamnist", "retinal_oct", "retinamnist", "rsna",
          "sars_cov_2_ct", "zhanglab"]  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_every_set_of_the_papers_has_a_manifest_and_a_way_to_get_it(name):
    manifest = load_manifest(name)
    assert manifest.name == name in list_manifests() and (manifest.url or manifest.source)
    known = manifest.counts or manifest.images
    assert known or manifest.uncertain, "counts are known, or what is believed is marked"
    with pytest.raises(DataError, match=r"was not found.*([Gg]et|press Download)"):
        load(manifest, "nowhere")


@pytest.mark.parametrize(
    ("name", "clicks"),
    [
        ("aptos2019", "sign in, press Join, accept the rules, open Data, press Download, unzip"),
        ("sars_cov_2_ct", "sign in, press Download, unzip"),
    ],
)
def test_get_names_the_clicks_of_a_set_that_no_program_may_fetch(name, clicks, tmp_path):
    with pytest.raises(DataError, match=rf"On https://www\.kaggle\.com/[^ ]+: {clicks} .*data verify {name}"):
        load(name, tmp_path, download=True)


def test_sets_that_sweeps_and_published_tables_name_have_manifests():
    for name in list_sweeps():
        sweep, _ = read_sweep_file(name)
        assert not {word for word in sweep.needs if word.islower()} - set(list_manifests())


def test_the_totals_of_the_cifar_recipes_are_the_published_ones():
    for name, per_class in (("cifar10", 5000), ("cifar100", 2500)):
        counts = load_manifest(name).counts
        assert {counts["train"][c] + counts["val"][c] for c in counts["train"]} == {per_class}


def test_many_findings_are_one_label(tmp_path):
    facts = FACTS | {"kind": "npz", "file": "x.npz", "multilabel": True, "image": {"size": 8, "channels": 1},
                     "images": {"train": 4, "test": 2}}  # fmt: skip
    arrays = {f"{split}_images": picture(n, (n, 8, 8)) for split, n in (("train", 4), ("test", 2))}
    found = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]], np.uint8)
    np.savez(tmp_path / "x.npz", train_labels=found, test_labels=found[:2], **arrays)
    assert counts_of(opened(tmp_path, facts)) == [(2, 2), (0, 0), (1, 1)]
    with pytest.raises(DataError, match="4 images in the file, 5 in the manifest"):
        opened(tmp_path, facts, images={"train": 5, "test": 2})
    with pytest.raises(DataError, match="train_labels: is uint8"):
        opened(tmp_path, facts, multilabel=False)


def test_one_class_against_the_rest(tmp_path):
    written(make_set(tmp_path) / "own.yaml")
    cfg = ExperimentConfig(dataset=str(tmp_path / "own.yaml"))
    assert counts_of(load(cfg.override({"data.normal_class": "ill"}))) == [(4, 12), (0, 0), (4, 4)]
    with pytest.raises(UsageError, match="'sick' is not a class of 'own'"):
        load(cfg.override({"data.normal_class": "sick"}))


def test_contamination_has_a_set_of_our_own():
    splits = load(ExperimentConfig(dataset="phantom_mixed").override({"data.contamination": 0.5}))
    assert len(splits.train.normal()) == 240 and (splits.train.normal().class_names == "lesion").sum() == 120


def test_a_colour_folder_runs_in_colour(tmp_path):
    make_set(tmp_path, counts=COUNTS | {("train", "well"): 20}, size=(16, 16, 3))
    path = written(tmp_path / "own.yaml", image={"size": 16, "channels": 3})
    cfg = preset("smoke", dataset=str(path)).override({"diffusion.image_size": 16, "train.batch_size": 4})
    run = run_experiment(cfg, out=tmp_path / "runs", compute=Compute.auto("cpu", "fp32"), progress=False)
    settings = run.config()["config"]
    assert settings["encoder"]["channels"] == settings["diffusion"]["channels"] == 3
    strip = run.evidence()["strip"]
    grey = load(cfg).test.take([0]).images[0].mean(0).numpy()
    assert min(np.abs(first - grey).max() for first in strip[:, 0]) < 0.01
