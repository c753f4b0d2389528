"""Sets of image files: folders of every layout, tables, splits by patient, the store, and what is left out."""

import csv
import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diawork.base.config import ExperimentConfig
from diawork.base.errors import DataError, UsageError
from diawork.data import store as storing
from diawork.data.datasets import contaminated, load
from diawork.data.images import describe
from diawork.data.manifests import Manifest, Recipe, check_manifest
from diawork.data.preprocess import resized
from diawork.data.splits import Item, shared_patients, split_items

FACTS = {
    "name": "own", "title": "Own", "licence": "CC0", "citation": "nobody", "t_range": [30, 130], "bridge": "resize",
    "image": {"size": 16, "channels": 1}, "classes": {0: "well", 1: "ill"},
    "roles": {"well": "normal", "ill": "anomalous"},
}  # fmt: skip
FOLDER = FACTS | {"kind": "folder", "folder": "set", "layout": ["split", "class"]}
TABLE = FACTS | {"kind": "table", "file": "set/table.csv"}
COUNTS = {("train", "well"): 12, ("train", "ill"): 4, ("test", "well"): 4, ("test", "ill"): 4}


def picture(seed, size=(16, 16), dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)


def save(path, values, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **how)


def make_set(root, place="{split}/{name}/{patient}_{i}.png", counts=COUNTS, **how):
    """Write a set; a patient has two images, and none stands in two splits."""
    seed = 0
    for (split, name), n in counts.items():
        for i in range(n):
            path = place.format(split=split, name=name, patient=f"{split}{name}p{i // 2}", i=i)
            save(root / "set" / path, picture(seed := seed + 1, **how))
    return root


def opened(root, facts=FOLDER, **changes):
    return load(Manifest.model_validate(facts | changes), root)


def written(path, facts=FOLDER, **changes):
    """Write a manifest and return its path."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts | changes).replace('"0"', "0").replace('"1"', "1"))
    return path


def counts_of(splits):
    return [(int((~s.anomalous).sum()), int(s.anomalous.sum())) for s in splits.all()]


# --- layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("{split}/{name}/{patient}_{i}.png", {}),
        ("{name}/{split}/{patient}_{i}.png", {"layout": ["class", "split"]}),
        ("{split}/{name}/{patient}/{i}.png", {"layout": ["split", "class", "patient"]}),
        ("v1/{split}/{name}/{i}.PNG", {"layout": ["any", "split", "class"]}),
        ("{split}ing/{name}/{i}.png", {"aliases": {"training": "train", "testing": "test"}}),
    ],
)
def test_folders_of_every_layout(place, changes, tmp_path):
    splits = opened(make_set(tmp_path, place), **changes)
    assert counts_of(splits) == [(12, 4), (0, 0), (4, 4)]
    assert splits.train.images[:].dtype == torch.float32 and splits.train.images.shape == (16, 1, 16, 16)
    if "patient" in changes.get("layout", []):
        assert set(splits.test.patients) == {f"test{name}p{i}" for name in ("well", "ill") for i in (0, 1)}


def test_a_folder_reads_the_same_twice_and_from_anywhere(tmp_path, monkeypatch):
    first = opened(make_set(tmp_path))
    monkeypatch.chdir(tmp_path)
    again = opened(".")
    assert again.identity == first.identity and torch.equal(again.train.images[:], first.train.images[:])
    path = tmp_path / "set" / first.test.files[3]
    np.testing.assert_array_equal(first.test.images[3][0], np.asarray(Image.open(path)) / np.float32(255))


def test_by_class_alone_the_recipe_makes_the_splits(tmp_path):
    make_set(tmp_path, "{name}/{patient}_{i}.png", {("", "well"): 40, ("", "ill"): 20})
    changes = {"layout": ["class"], "patient": "^([a-z]+p[0-9]+)_", "recipe": {"test": 0.2, "val": 0.1}}
    splits = opened(tmp_path, **changes)
    assert counts_of(splits) == [(28, 14), (4, 2), (8, 4)]
    groups = [set(images.patients) for images in splits.all()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert opened(tmp_path, **changes).identity == splits.identity
    with pytest.raises(DataError, match="no test split"):
        opened(tmp_path, layout=["class"])


def test_hidden_files_and_other_suffixes_are_passed_over(tmp_path):
    make_set(tmp_path)
    for name in (".DS_Store", "._x.png", "notes.csv", "Thumbs.db"):
        (tmp_path / "set/train/well" / name).write_bytes(b"x")
    assert counts_of(opened(tmp_path)) == [(12, 4), (0, 0), (4, 4)]


@pytest.mark.parametrize(
    ("path", "says"),
    [("train/odd/x.png", "'odd' is not a class"), ("dev/well/x.png", "'dev' is not a split"),
     ("train/x.png", "lies 1 folders deep; the layout is <split>/<class>/<file>")],
)  # fmt: skip
def test_what_does_not_fit_the_layout_is_named(path, says, tmp_path):
    save(make_set(tmp_path) / "set" / path, picture(99))
    with pytest.raises(DataError, match=says):
        opened(tmp_path)


def test_an_unused_class_is_left_out(tmp_path):
    save(make_set(tmp_path) / "set/train/odd/x.png", picture(99))
    facts = {"classes": FACTS["classes"] | {2: "odd"}, "roles": FACTS["roles"] | {"odd": "unused"}}
    assert counts_of(opened(tmp_path, **facts)) == [(12, 4), (0, 0), (4, 4)]


def test_a_folder_that_is_missing_or_empty(tmp_path):
    with pytest.raises(DataError, match="set was not found; looked in"):
        opened(tmp_path)
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="no image of a known class"):
        opened(tmp_path)


def test_a_manifest_finds_the_set_beside_it(tmp_path):
    make_set(tmp_path)
    assert len(load(written(tmp_path / "own.yaml")).train) == 16
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    other = written(tmp_path / "other/own.yaml", root="..", folder="elsewhere")
    assert len(load(other).train) == 16


# --- tables ------------------------------------------------------------------------------------------

ROWS = [("train", "well", i) for i in range(6)] + [
    (s, c, i) for s in ("val", "test") for c in FACTS["roles"] for i in (0, 1)
]


def make_table(root, *, delimiter=",", names=("image_path", "label", "split", "patient_id"), label=str, masks=False):
    text = io.StringIO()
    rows = csv.writer(text, delimiter=delimiter)
    rows.writerow([*names, "mask"] if masks else names)
    for n, (split, name, i) in enumerate(ROWS):
        path = f"{split}_{name}_{i}.png"
        save(root / "set" / path, picture(n))
        mask = f"masks/{n}.png" if masks and name == "ill" else ""
        if mask:
            save(root / "set" / mask, np.eye(16, dtype=np.uint8))
        rows.writerow([path, label(name), split, f"p{n}", *([mask] if masks else [])])
    (root / "set/table.csv").write_text(text.getvalue(), "utf-8-sig")
    return root


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_says_label_split_and_patient(delimiter, tmp_path):
    splits = opened(make_table(tmp_path, delimiter=delimiter), TABLE)
    assert counts_of(splits) == [(6, 0), (2, 2), (2, 2)] and splits.val.patients[0].startswith("p")


def test_labels_may_be_numbers_or_aliases_and_columns_have_other_names(tmp_path):
    make_table(tmp_path, names=("file", "y", "fold", "who"), label=lambda name: {"well": "0", "ill": "sick"}[name])
    columns = {"image": "file", "label": "y", "split": "fold", "patient": "who"}
    splits = opened(tmp_path, TABLE, columns=columns, aliases={"sick": "ill"})
    assert counts_of(splits) == [(6, 0), (2, 2), (2, 2)]


def test_a_table_in_parquet_reads_as_in_csv(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    make_table(tmp_path)
    pd.read_csv(tmp_path / "set/table.csv").to_parquet(tmp_path / "set/table.parquet")
    one, two = opened(tmp_path, TABLE), opened(tmp_path, TABLE, file="set/table.parquet")
    assert one.identity == two.identity


def test_masks_of_a_table_are_kept_and_an_image_without_one_has_none(tmp_path):
    test = opened(make_table(tmp_path, masks=True), TABLE).test
    assert test.masks.shape == (4, 1, 16, 16) and test.masks[:].dtype == torch.bool
    assert test.masks[:].flatten(1).sum(1).tolist() == [16 * a for a in test.anomalous]
    assert test.masks[int(np.flatnonzero(test.anomalous)[0]), 0].equal(torch.eye(16, dtype=torch.bool))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [("label", "lable", "column 'label' is missing; .*Did you mean 'lable'"),
     ("train_well_0.png,well", "../x.png,well", "plain path inside"),
     ("train_well_0.png,well", "train_well_1.png,ill", "stands under two labels, ill and well"),
     ("train_well_0.png,well", "train_well_0.png,odd", "'odd' is not a class"),
     (",train,", ",dev,", "'dev' is not a split"),
     ("train_well_0.png,well", "gone.png,well", "No such file"),
     ("_0.png,well,train", "_0.png,well", "row 2 has 3 cells, the first row 4"),
     ("image_path", "\0", "no CSV file has")],
)  # fmt: skip
def test_tables_that_cannot_be_right_are_refused(old, new, says, tmp_path):
    path = make_table(tmp_path) / "set/table.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=says):
        opened(tmp_path, TABLE)


# --- splits by patient -------------------------------------------------------------------------------


def test_the_recipe_is_stratified_and_does_not_move_others():
    items = [Item(f"{c}{i}.png", c, "train", f"{c}{i // 3}") for c in ("a", "b") for i in range(60)]
    recipe = Recipe(seed=1, val={"a": 0.1, "b": 0.5}, test=0.2)
    first = split_items(items, recipe)
    count = {
        (s, c): sum(x.split == s and x.class_name == c for x in first) for s in ("train", "val", "test") for c in "ab"
    }
    assert count == {
        ("train", "a"): 42,
        ("val", "a"): 6,
        ("test", "a"): 12,
        ("train", "b"): 18,
        ("val", "b"): 30,
        ("test", "b"): 12,
    }
    assert split_items(items[::-1], recipe)[::-1] == first
    assert split_items(items, Recipe(seed=2, val=0.1)) != split_items(items, Recipe(seed=1, val=0.1))


def test_a_patient_of_the_given_test_stays_out_of_validation():
    items = [Item(f"{i}.png", "a", "train", f"p{i}") for i in range(10)] + [Item("x.png", "a", "test", "p3")]
    after = split_items(items, Recipe(val=0.9))
    assert after[3].split == "train" and sum(item.split == "val" for item in after) == 9
    assert shared_patients(items) == (["p3"], 1, 1)


def test_the_recipe_makes_no_second_split():
    with pytest.raises(DataError, match="a test split of its own"):
        split_items([Item("a", "a"), Item("b", "a", "test")], Recipe(test=0.1))


def test_shared_patients_are_told_and_not_mixed_in(tmp_path):
    make_set(tmp_path)
    for i in (0, 1):
        shutil.copy(tmp_path / f"set/train/ill/trainillp0_{i}.png", tmp_path / f"set/test/ill/trainillp0_{i + 7}.png")
    splits = opened(tmp_path, patient="^([a-z]+p[0-9]+)_")
    assert any(
        "1 patient stands in train and in val or test (2 and 2 images; trainillp0)" in note for note in splits.notes
    )
    with pytest.raises(DataError, match="there are 2, and none is taken"):
        contaminated(splits, 0.4)
    assert (contaminated(splits, 0.1).train.patients[:4] == "trainillp0").sum() == 2


def test_a_name_without_a_patient_is_refused(tmp_path):
    with pytest.raises(DataError, match="names no patient"):
        opened(make_set(tmp_path), patient="^(IM-[0-9]+)")


# --- size and colour ---------------------------------------------------------------------------------


def test_resize_rules():
    wide = np.zeros((1, 8, 16), np.float32)
    wide[:, :, 4:12] = 1
    assert resized(wide, 8, "crop").min() == 1 and resized(wide, 8, "pad")[0, 0].max() == 0
    assert resized(wide, 8, "squash").mean() == pytest.approx(0.5) and resized(wide, 32, "squash").shape == (1, 32, 32)


def test_antialiasing_averages_what_it_skips():
    stripes = np.tile(np.array([0, 1], np.float32), (1, 64, 32))
    np.testing.assert_allclose(resized(stripes, 8, "squash")[:, 1:-1, 1:-1], 0.5, atol=0.02)


def test_a_few_colour_pictures_of_a_grey_set_are_brought_to_grey_and_more_are_refused(tmp_path):
    make_set(tmp_path)
    tinted = np.dstack([np.full((16, 16), v, np.uint8) for v in (100, 105, 100)])
    save(tmp_path / "set/train/well/tinted.png", tinted)
    red = np.dstack([picture(1), np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)])
    save(tmp_path / "set/train/well/red.png", red)
    splits = opened(tmp_path)
    assert "1 of 26: in colour, brought to grey." in splits.notes
    row = list(splits.train.files).index("train/well/red.png")
    np.testing.assert_allclose(splits.train.images[row][0], red.mean(-1) / 255, atol=1 / 255)
    save(tmp_path / "set/train/well/blue.png", red[..., ::-1])
    with pytest.raises(DataError, match="2 of 27 images are in colour, and the set is grey"):
        opened(tmp_path)
    assert opened(tmp_path, image={"size": 16, "channels": 3}).train.images.shape[1] == 3


def test_data_size_decodes_anew_at_that_size(tmp_path):
    make_set(tmp_path, size=(40, 30))
    cfg = ExperimentConfig(dataset=str(tmp_path / "own.yaml"))
    written(tmp_path / "own.yaml")
    assert load(cfg).train.images.shape[2:] == (16, 16)
    wide = load(cfg.override({"data.size": 24}))
    assert wide.train.images.shape[2:] == (24, 24) and wide.manifest.image.size == 24
    assert cfg.override({"data.size": 24}).identity() != cfg.identity() and "size" not in cfg.identity()["data"]


def test_data_size_resizes_what_lies_in_memory():
    splits = load(ExperimentConfig().override({"data.size": 16}))
    assert splits.test.images.shape[1:] == (1, 16, 16) == splits.test.masks.shape[1:]
    assert splits.test.masks.dtype == torch.bool and "Resized from 32 to 16 px" in splits.notes[-1]


# --- the store ---------------------------------------------------------------------------------------


def test_the_store_is_made_once_and_again_where_a_file_changed(tmp_path, monkeypatch):
    first = opened(make_set(tmp_path))
    monkeypatch.setattr("diawork.data.readers.picture.read_image", lambda *_, **__: pytest.fail("decoded again"))
    assert opened(tmp_path).identity == first.identity
    monkeypatch.undo()
    monkeypatch.setenv("DIAWORK_HOME", str(tmp_path / "home"))
    save(tmp_path / "set" / first.train.files[0], picture(500))
    assert opened(tmp_path).train.identity != first.train.identity
    assert len(list((tmp_path / "home/store").glob("*/*-images.bin"))) == 1


def test_an_interrupted_first_pass_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(storing, "CHUNK", 4)
    make_set(tmp_path)
    seen, read = [], storing._decoded

    def stopping(*args):
        for row in read(*args):
            seen.append(row[0])
            yield row
            if len(seen) == 10:
                raise KeyboardInterrupt

    monkeypatch.setattr(storing, "_decoded", stopping)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path)
    splits = opened(tmp_path)
    assert len(seen) == 24 and len(set(seen)) == 24
    shutil.rmtree(tmp_path / "home")
    assert opened(tmp_path).identity == splits.identity


def test_a_store_that_lost_bytes_is_refused(tmp_path):
    opened(make_set(tmp_path))
    path = next((tmp_path / "home/store").glob("*/*-images.bin"))
    os.truncate(path, 100)
    with pytest.raises(Exception, match="store of decoded images is damaged"):
        opened(tmp_path)


def test_stored_images_are_indexed_as_tensors_are(tmp_path):
    images = opened(make_set(tmp_path)).train.images
    whole = images[:]
    for at in (3, -1, slice(2, 9, 3), [4, 1], np.array([0, 5]), torch.tensor([7, 7]), whole[:, 0, 0, 0] > 0.5,
               np.arange(16) % 2 == 0, np.int64(2), torch.tensor(4), (slice(0, 3), 0), (2, 0)):  # fmt: skip
        assert torch.equal(images[at], whole[at]), at
    assert torch.equal(torch.cat(list(images.split(5))), whole) and images.repeated(3)[:2].shape == (2, 3, 16, 16)


def test_taking_rows_reads_nothing_and_names_them(tmp_path):
    train = opened(make_set(tmp_path)).train
    some = train.take([3, 1])
    assert some.files.tolist() == [train.files[3], train.files[1]] and torch.equal(some.images[:], train.images[[3, 1]])
    assert some.identity != train.identity and train.take(range(16)).identity == train.identity


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_window_keeps_sixteen_bits(dtype, tmp_path):
    save(make_set(tmp_path) / "set/train/well/deep.png", np.full((16, 16), 5, dtype))
    splits = opened(tmp_path, intensity=[0, 10], cut=1)
    assert splits.train.images[splits.train.files.tolist().index("train/well/deep.png")].mean() == pytest.approx(
        0.5, abs=1e-4
    )


# --- what is bad or left out -------------------------------------------------------------------------


def test_broken_files_are_counted_and_may_be_dropped(tmp_path):
    make_set(tmp_path)
    for name in ("b.png", "a.png"):
        (tmp_path / "set/train/well" / name).write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=r"2 of 26 images cannot be used, first train/well/a.png: this is no PNG"
    ) as caught:
        opened(tmp_path)
    assert "drop in the manifest" in str(caught.value)
    splits = opened(tmp_path, drop=["train/well/a.png", "train/well/b.png"])
    assert counts_of(splits)[0] == (12, 4) and "Left out by the manifest: 2 images" in describe(splits)
    with pytest.raises(DataError, match=r"'train/well/c.png' is not an image of the set"):
        opened(tmp_path, drop=["train/well/c.png"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"layout": ["split"]}, "no level of the folders says the class"), ({"layout": ["fold"]}, "layout"),
     ({"patient": "IM-[0-9]+"}, "needs a group"), ({"patient": "(a+)+b"}, "repeat no group"),
     ({"patient": "(a"}, "no regular expression"), ({"recipe": {"val": 1.5}}, "recipe.val"),
     ({"recipe": {"val": {"well": 0.1}}}, "the class 'ill' is missing"), ({"folder": "../set"}, "inside the data root"),
     ({"file": "x.npz"}, "no meaning with kind: folder"), ({"kind": "npz"}, "is missing; kind: npz needs it")],
)  # fmt: skip
def test_manifests_of_folders_are_checked(changes, says):
    text = json.dumps(FOLDER | changes).replace('"0"', "0").replace('"1"', "1")
    with pytest.raises(UsageError, match=says):
        check_manifest(text)
