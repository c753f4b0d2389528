"""A manifest guessed from folders of twelve shapes: the right one, or one question."""

import json

import numpy as np
import pytest

from diawork.base.errors import UsageError
from diawork.cli.main import main
from diawork.data.datasets import load
from diawork.data.scan import PATIENTS, guess_manifest
from tests.test_folders import picture, save

BY_SPLIT = {"train/normal": 10, "train/ill": 4, "test/normal": 4, "test/ill": 4}


def make(root, counts, *, suffix=".png", name="{i}", **how):
    seed = 0
    for place, n in counts.items():
        for i in range(n):
            seed += 1
            save(root / "set" / place / f"{name.format(i=i, n=seed)}{suffix}", picture(seed, **how))
    return root / "set"


def scanned(folder, *argv):
    """Scan by the command line and open what was written."""
    assert main(["data", "scan", str(folder), *argv]) == 0
    return load(folder.parent / "set.yaml")


def counts_of(splits):
    return [(int((~s.anomalous).sum()), int(s.anomalous.sum())) for s in splits.all()]


def test_by_split_and_class(tmp_path, capsys):
    splits = scanned(make(tmp_path, BY_SPLIT))
    assert counts_of(splits) == [(9, 2), (1, 2), (4, 4)] and splits.manifest.layout == ("split", "class")
    out = capsys.readouterr().out
    assert "healthy: normal; anomalous: ill" in out and "train  normal" in out and "grey, 16×16 px" in out
    assert (tmp_path / "set.png").read_bytes().startswith(b"\x89PNG")


def test_by_class_alone_gets_a_recipe(tmp_path):
    splits = scanned(make(tmp_path, {"healthy": 20, "tumour": 10}))
    assert counts_of(splits) == [(14, 1), (2, 3), (4, 6)]


def test_nested_by_patient(tmp_path):
    counts = {f"{c}/P{c[0]}{i}": 3 for c in ("normal", "ill") for i in range(8)}
    splits = scanned(make(tmp_path, counts))
    assert splits.manifest.layout == ("class", "patient")
    assert not set(splits.train.patients) & set(splits.test.patients)


def test_mixed_case_and_suffixes(tmp_path):
    make(tmp_path, {"Training/NORMAL": 10, "Training/ill": 4}, suffix=".PNG")
    splits = scanned(make(tmp_path, {"Test/Normal": 4, "Test/Ill": 4}, suffix=".TIF"))
    assert counts_of(splits)[2] == (4, 4) and splits.manifest.aliases["Training"] == "train"


def test_unicode(tmp_path):
    splits = scanned(make(tmp_path, {"gesund ä": 20, "krank 病": 10}), "--normal", "gesund ä")
    assert set(splits.manifest.classes.values()) == {"gesund ä", "krank 病"} and len(splits.train) == 15


def test_a_stray_table_and_hidden_files_are_passed_over(tmp_path):
    folder = make(tmp_path, BY_SPLIT)
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    (folder / "train/normal/.x.png").write_bytes(b"x")
    assert counts_of(scanned(folder))[2] == (4, 4)


def test_a_flat_folder_with_its_table(tmp_path):
    folder = make(tmp_path, {"": 30})
    lines = [f"{i}.png,{'ok' if i < 20 else 'bad'},p{i // 2}" for i in range(30)]
    (folder / "labels.csv").write_text("\n".join(["file,class,patient", *lines]))
    splits = scanned(folder)
    assert splits.manifest.kind == "table" and splits.train.patients[0].startswith("p")
    assert sum(map(len, splits.all())) == 30 and counts_of(splits)[2] == (4, 6)


def test_a_flat_folder_whose_names_say_the_class(tmp_path):
    make(tmp_path, {"": 20}, name="normal_{i}")
    folder = make(tmp_path, {"": 10}, name="lesion-{i}")
    assert counts_of(scanned(folder))[2] == (4, 6) and (tmp_path / "set.csv").exists()


def test_16_bits_get_a_window(tmp_path, capsys):
    folder = make(tmp_path, BY_SPLIT, dtype=np.uint16)
    for i, path in enumerate(folder.rglob("*.png")):
        save(path, picture(i, dtype=np.uint16) // 16)
    assert scanned(folder).manifest.intensity == (0, 4095) and "12 bits" in capsys.readouterr().out


def test_rgba_is_colour_where_it_has_any(tmp_path):
    folder = make(tmp_path, BY_SPLIT, size=(16, 16, 4))
    for i, path in enumerate(folder.rglob("*.png")):
        save(path, np.dstack([picture(i, (16, 16, 3)), np.full((16, 16), 255, np.uint8)]))
    assert scanned(folder).manifest.image.channels == 3


def test_sizes_that_differ_are_brought_to_one(tmp_path, capsys):
    folder = make(tmp_path, BY_SPLIT)
    save(folder / "train/normal/wide.png", picture(99, (20, 40)))
    assert scanned(folder).manifest.resize == "pad" and "brought to 16 px (pad)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("counts", "name", "says"),
    [({"normal": 4}, "{i}", "all images are of one class, normal"), ({}, "{i}", "no image in this folder"),
     ({"": 4}, "{i}", "nothing tells the classes"), ({"a": 4, "b": 4}, "{i}", "which class is healthy: a, b?"),
     ({"no tumour": 4, "normal": 4, "x": 4}, "{i}", "which class is healthy: no tumour, normal, x?"),
     ({"normal": 4, "ill/deep": 4}, "{i}", "the levels of folders differ"),
     ({"test/normal": 4, "test/ill": 4}, "{i}", "no train split")],
)  # fmt: skip
def test_what_cannot_be_known_is_one_question(counts, name, says, tmp_path):
    (tmp_path / "set").mkdir()
    make(tmp_path, counts, name=name)
    with pytest.raises(UsageError) as error:
        guess_manifest(tmp_path / "set")
    assert says in str(error.value).replace("\n", " ")


def test_the_answer_is_taken_and_another_one_refused(tmp_path):
    folder = make(tmp_path, {"a": 20, "b": 10})
    assert guess_manifest(folder, normal="A").values["roles"] == {"a": "normal", "b": "anomalous"}
    with pytest.raises(UsageError, match="which class is healthy"):
        guess_manifest(folder, normal="c")


@pytest.mark.parametrize(
    ("names", "pattern"),
    [("person1_a person1_b person2_a IM-1 IM-2", PATIENTS[0]), ("x-p01-1 x-p01-2 x-p02-1 x-p02-2 x-p02-3", PATIENTS[1]),
     ("a1_1 a1_2 a2_1 a2_2 a2_3", PATIENTS[2]), ("1 2 3 4 5", None)],
)  # fmt: skip
def test_patients_in_names(names, pattern, tmp_path):
    for c in ("normal", "ill"):
        for i, name in enumerate(names.split()):
            save(tmp_path / "set" / c / f"{name}.png", picture(i))
    assert guess_manifest(tmp_path / "set").values.get("patient") == pattern


def test_mixed_depths_are_refused(tmp_path):
    folder = make(tmp_path, BY_SPLIT)
    save(folder / "train/normal/deep.png", picture(1, dtype=np.uint16))
    with pytest.raises(UsageError, match="the others have 8 bits"):
        guess_manifest(folder)


def test_a_manifest_elsewhere_names_its_root_and_none_is_overwritten(tmp_path, capsys):
    folder, out = make(tmp_path, BY_SPLIT), tmp_path / "other/own.yaml"
    assert main(["data", "scan", str(folder), "--manifest", str(out)]) == 0
    assert counts_of(load(out))[2] == (4, 4) and json.dumps(str(tmp_path)) in out.read_text()
    assert main(["data", "scan", str(folder), "--out", str(out)]) == 0, "the same manifest is written again"
    out.write_text(out.read_text() + "# read\n")
    assert main(["data", "scan", str(folder), "--out", str(out)]) == 2
    assert "this manifest exists and says something else" in capsys.readouterr().err


def test_download_is_get():
    from diawork.cli.data import data

    assert data.commands["download"] is data.commands["get"]
