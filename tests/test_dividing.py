"""A split written down as a list of files, and a set on disk held against its manifest."""

import csv

import numpy as np
import pytest

from diawork.base.errors import DataError, UsageError
from diawork.cli.main import main
from diawork.data.checks import verify
from diawork.data.datasets import load
from diawork.data.manifests import Recipe, load_manifest
from diawork.data.readers.listing import list_items
from diawork.data.splits import write_split
from tests.test_folders import FOLDER, TABLE, make_set, picture, save, written
from tests.test_images import arrays, toy
from tests.test_intensity import one_sentence

RECIPE = Recipe(seed=3, val=0.25, test=0.25)
ALL_TRAIN = {("train", "well"): 16, ("train", "ill"): 8}
LAYOUT = FOLDER | {"patient": r"^(\w+p\d+)_"}


@pytest.fixture
def own(tmp_path):
    make_set(tmp_path, counts=ALL_TRAIN)
    return load_manifest(written(tmp_path / "own.yaml", LAYOUT))


def rows_of(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def test_a_written_split_opens_as_the_recipe_would(own, tmp_path):
    divided = load(write_split(own, list_items(own), RECIPE))
    wanted = load(own.model_copy(update={"recipe": RECIPE}), tmp_path)
    for one, other in zip(divided.all(), wanted.all(), strict=True):
        assert sorted(one.files) == sorted(other.files) and len(one) > 0
    assert divided.manifest.counts["val"] == {"well": 4, "ill": 2}


def test_no_patient_is_divided_and_the_same_seed_divides_alike(own, tmp_path):
    first, again = write_split(own, list_items(own), RECIPE), write_split(own, list_items(own), RECIPE, name="again")
    rows = rows_of(first.with_suffix(".csv"))
    assert rows == rows_of(again.with_suffix(".csv"))
    assert len({(row["patient_id"], row["split"]) for row in rows}) == len({row["patient_id"] for row in rows}) == 12
    other = write_split(own, list_items(own), Recipe(seed=4, val=0.25, test=0.25), name="other")
    assert rows != rows_of(other.with_suffix(".csv"))


def test_masks_and_dropped_images_of_a_table_are_kept_so(tmp_path):
    for i in range(12):
        save(tmp_path / f"set/{i}.png", picture(i))
        save(tmp_path / f"set/m{i}.png", np.full((16, 16), 255, np.uint8))
    lines = ["image_path,label,mask", *(f"{i}.png,{'ill' if i % 2 else 'well'},m{i}.png" for i in range(12))]
    (tmp_path / "set/table.csv").write_text("\n".join(lines))
    manifest = load_manifest(written(tmp_path / "own.yaml", TABLE, drop=["3.png"]))
    divided = load(write_split(manifest, list_items(manifest), RECIPE))
    assert sum(map(len, divided.all())) == 11 and bool(divided.test.masks[:1].any())


def test_what_cannot_be_divided_is_refused(own):
    with pytest.raises(UsageError, match="no files that a list could name"):
        list_items(load_manifest("pneumoniamnist"))
    with pytest.raises(UsageError, match="'wel' is no class"):
        write_split(own, list_items(own), Recipe(val={"wel": 0.1}))
    write_split(own, list_items(own), RECIPE)
    with pytest.raises(UsageError, match="exists"):
        write_split(own, list_items(own), RECIPE)


def test_the_command_divides_and_verifies(own, tmp_path, capsys):
    assert main(["data", "split", str(tmp_path / "own.yaml"), "--val", "0.25", "--test", "0.25", "--name", "mine"]) == 0
    assert "mine.csv" in capsys.readouterr().out
    assert main(["data", "verify", str(tmp_path / "mine.yaml")]) == 0
    assert "24 images of mine, every one readable; counts as in the manifest" in capsys.readouterr().out
    next((tmp_path / "set/train/well").glob("*.png")).write_bytes(b"torn")
    assert main(["data", "verify", str(tmp_path / "mine.yaml")]) == 3
    assert "1 of 24 images cannot be used" in capsys.readouterr().err


def test_another_checksum_is_a_difference(tmp_path):
    np.savez(tmp_path / "toy.npz", **arrays())
    with pytest.warns(UserWarning, match="not the published file"):
        same, checksum = verify(load(toy(md5="0" * 32), tmp_path))
    assert same.good and not checksum.good and f"published {'0' * 32}" in checksum.text


def test_an_image_of_several_rows_is_one_image_unless_they_disagree(tmp_path):
    manifest = load_manifest(written(tmp_path / "own.yaml", TABLE))
    (tmp_path / "set").mkdir()

    def listed(*rows):
        (tmp_path / "set/table.csv").write_text("\n".join(["image_path,label,split", *rows]))
        return [item.path for item in list_items(manifest, tmp_path).items]

    assert listed("a.png,ill,test", "b.png,well,train", "a.png,ill,test") == ["a.png", "b.png"]
    for other, words in (("a.png,well,test", "labels, ill and well"), ("a.png,ill,train", "splits, test and train")):
        with pytest.raises(DataError, match=f"row 3: a.png stands under two {words}"):
            listed("a.png,ill,test", other)


# --- damaged tables -------------------------------------------------------------------------------------


def damaged(data, rng):
    """Return a table with a few bytes changed, cut out or doubled."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at, how = int(rng.integers(len(data))), rng.integers(3)
        if how == 0:
            data[at] = rng.integers(256)
        elif how == 1:
            del data[at : at + int(rng.integers(1, 20))]
        else:
            data[at:at] = data[at : at + int(rng.integers(1, 20))]
    return bytes(data)


def read_damaged(root, n, seed):
    """Read n damaged tables; return how many were refused, each in one sentence."""
    rng, refused, manifest = np.random.default_rng(seed), 0, load_manifest(written(root / "own.yaml", TABLE))
    rows = [f"w{i}/a_{i}.png,{'ill' if i % 3 == 0 else 'well'},{'test' if i % 2 else 'train'}" for i in range(20)]
    whole = "\n".join(["image_path,label,split", *rows]).encode()
    (root / "set").mkdir()
    for _ in range(n):
        (root / "set/table.csv").write_bytes(damaged(whole, rng))
        try:
            items = list_items(manifest, root).items
        except DataError as error:
            one_sentence(error)
            refused += 1
        else:
            assert all(item.class_name in ("well", "ill") and item.split in ("train", "test") for item in items)
            assert len({item.path for item in items}) == len(items)
    return refused


def test_damaged_tables_are_refused_or_hold_classes_and_splits_of_the_set(tmp_path):
    assert read_damaged(tmp_path, 200, 0) > 100


@pytest.mark.slow
def test_many_damaged_tables(tmp_path):
    assert read_damaged(tmp_path, 3000, 1) > 1500
