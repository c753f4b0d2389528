"""A manifest guessed from folders of many shapes: the right one, or one question; never a wrong one in silence."""

import json
import os
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from diawork.base.errors import DataError, UsageError
from diawork.cli.main import main
from diawork.data.checks import check_splits
from diawork.data.datasets import load
from diawork.data.manifests import load_manifest
from diawork.data.readers.listing import list_items
from diawork.data.scan import PATIENTS, guess_manifest, write_guess
from tests.test_folders import picture, save

BY_SPLIT = {"train/normal": 10, "train/ill": 4, "test/normal": 4, "test/ill": 4}


def make(root, counts, *, suffix=".png", name="{i}", seed=0, **how):
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
    splits = scanned(make(tmp_path, {"Test/Normal": 4, "Test/Ill": 4}, suffix=".TIF", seed=100))
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
    folder = make(tmp_path, {"": 10}, name="lesion-{i}", seed=100)
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


# --- tables --------------------------------------------------------------------------------------------


def ids(n=30):
    return [f"{0x10A3B000 + 7919 * i:012x}" for i in range(n)]


def table(path, rows, *, encoding="utf-8", separator=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(separator.join(map(str, row)) for row in rows).encode(encoding))


def flat(root, inside=""):
    for i, name in enumerate(ids()):
        save(root / "set" / inside / f"{name}.png", picture(i))
    return root / "set"


SPELT = {
    "as it is": lambda name: f"{name}.png", "without ending": lambda name: name, "another ending": "{}.dcm".format,
    "upper case": lambda name: f"{name.upper()}.PNG", "with a path": "imgs/{}.png".format,
    "of another machine": "C:\\data\\imgs\\{}.png".format, "from here": "./{}.png".format,
}  # fmt: skip


@pytest.mark.parametrize("spelt", SPELT)
def test_a_table_names_files_by_any_spelling(spelt, tmp_path, capsys):
    folder = flat(tmp_path, "imgs" if "imgs" in SPELT[spelt]("") else "")
    table(folder / "labels.csv", [("Image", "Label"), *((SPELT[spelt](n), i % 3 // 2) for i, n in enumerate(ids()))])
    splits = scanned(folder)
    assert [sum(counts) for counts in zip(*counts_of(splits), strict=True)] == [20, 10]
    assert "30 of 30 images; class from 'Label'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("encoding", "separator"), [("utf-16", ","), ("utf-8-sig", ";"), ("cp1252", "\t"), ("utf-8", "|")]
)
def test_tables_of_other_programs(encoding, separator, tmp_path):
    folder = flat(tmp_path)
    rows = [(name, "gesund" if i % 3 < 2 else "Läsion") for i, name in enumerate(ids())]
    table(folder / "labels.csv", [("file name", "diagnosis"), *rows], encoding=encoding, separator=separator)
    assert scanned(folder, "--normal", "gesund").manifest.roles == {"gesund": "normal", "Läsion": "anomalous"}


def test_kaggles_layout(tmp_path, capsys):
    for i, name in enumerate(ids(40)):
        save(tmp_path / "set" / ("train_images" if i < 30 else "test_images") / f"{name}.png", picture(i))
    table(tmp_path / "set/train.csv", [("id_code", "diagnosis"), *((n, i % 2) for i, n in enumerate(ids()))])
    table(tmp_path / "set/test.csv", [("id_code",), *((n,) for n in ids(40)[30:])])
    splits = scanned(tmp_path / "set")
    assert sum(map(len, splits.all())) == 30 and set(splits.manifest.roles) == {"0", "1"}
    assert "left out: 10 × no label in any table, named in set-left-out.csv" in capsys.readouterr().out
    assert (tmp_path / "set-left-out.csv").read_text().count("test_images/") == 10


def test_a_table_above_the_images_labels_them(tmp_path):
    flat(tmp_path)
    table(tmp_path / "labels.csv", [("image", "label"), *((n, "ok" if i % 2 else "bad") for i, n in enumerate(ids()))])
    assert set(scanned(tmp_path / "set").manifest.roles) == {"ok", "bad"}


def test_one_hot_columns_are_classes(tmp_path):
    folder = flat(tmp_path)
    hot = [(n, float(i % 3 == 0), float(i % 3 == 1), float(i % 3 == 2)) for i, n in enumerate(ids())]
    table(folder / "truth.csv", [("image", "MEL", "NV", "normal"), *hot])
    assert set(scanned(folder).manifest.roles) == {"MEL", "NV", "normal"}


def test_patients_splits_and_further_columns_come_from_the_table(tmp_path):
    folder = make(tmp_path, {"images": 40})
    rows = [
        (f"images/{i}.png", "ok" if i % 4 else "ill", "training" if i < 24 else "testing", f"p{i // 2}", "AB"[i % 2])
        for i in range(40)
    ]
    table(folder / "images.csv", [("image_path", "label", "split", "patient_id", "device"), *rows])
    splits = scanned(folder)
    assert len(splits.test) == 16 and set(splits.test.patients) == {f"p{i}" for i in range(12, 20)}
    head, first, *_ = (tmp_path / "set.csv").read_text().splitlines()
    assert head == "image_path,label,split,patient_id,device" and first == "images/0.png,ill,train,p0,A"


def test_labels_missing_and_rows_without_file_are_counted(tmp_path, capsys):
    folder = flat(tmp_path)
    rows = [(n, "" if i < 3 else ("ok", "bad")[i % 2]) for i, n in enumerate(ids()) if i != 5]
    table(folder / "labels.csv", [("image", "label"), *rows, ("gone", "ok")])
    assert sum(map(len, scanned(folder).all())) == 26
    out = capsys.readouterr().out
    assert "1 row names no image here (first gone)" in out and "3 rows have no label" in out
    assert "left out: 4 × no label in any table" in out


@pytest.mark.parametrize(
    ("rows", "says"),
    [([("image", "label"), *((n, "ok") for n in ids()), (ids()[0], "bad")], "under two labels in labels.csv: 1, first"),
     ([("image", "tone", "kind"), *((n, "ab"[i % 2], "cd"[i % 2]) for i, n in enumerate(ids()))],
      "which column of a table says the class: tone, kind?"),
     ([("a", "b"), ("x", "y")], "nothing tells the classes")],
)  # fmt: skip
def test_tables_that_leave_a_question(rows, says, tmp_path):
    folder = flat(tmp_path)
    table(folder / "labels.csv", rows)
    with pytest.raises(UsageError) as error:
        guess_manifest(folder)
    assert says in str(error.value)


def test_a_table_that_is_not_used_is_named_with_the_reason(tmp_path, capsys):
    folder = make(tmp_path, BY_SPLIT)
    table(folder / "notes.csv", [("a", "b"), ("1", "2")])
    table(folder / "torn.csv", [("a", "b"), ("1",)])
    assert counts_of(scanned(folder))[2] == (4, 4)
    out = capsys.readouterr().out
    assert "notes.csv is not used: no column names the images" in out
    assert "torn.csv is not used: row 2 has 1 cells, the first row 2" in out


# --- masks ---------------------------------------------------------------------------------------------


def lesion(i, n=16):
    mask = np.zeros((n, n), np.uint8)
    mask[i % 8 : i % 8 + 4, 2:9] = 255
    return mask


MASKS = {
    "beside, by suffix": ("{c}/{i}.png", "{c}/{i}_mask.png"), "numbered": ("{c}/{i}.png", "{c}/{i}_mask_1.png"),
    "in a parallel folder": ("images/{c}/{i}.png", "masks/{c}/{i}.png"),
    "in a folder of each class": ("{c}/images/{i}.png", "{c}/masks/{i}.png"),
    "below a split": ("train/{c}/{i}.png", "ground_truth/{c}/{i}_mask.png"),
    "of another ending": ("{c}/{i}.jpg", "label/{c}/{i}.png"),
    "segmentations": ("{c}/{i}.png", "{c}/segmentation/{i}_seg.png"),
}  # fmt: skip


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("layout", MASKS)
def test_masks_are_no_ill_images_and_reach_the_pixel_metrics(layout, empty, tmp_path, capsys):
    image, mask = MASKS[layout]
    for c, n in (("normal", 20), ("ill", 10)):
        for i in range(n):
            save(tmp_path / "set" / image.format(c=c, i=i), picture(i + 100 * n))
            if c == "ill" or empty:
                save(tmp_path / "set" / mask.format(c=c, i=i), lesion(i) * (c == "ill"))
    splits = scanned(tmp_path / "set")
    assert [sum(counts) for counts in zip(*counts_of(splits), strict=True)] == [20, 10]
    assert f"{30 if empty else 10} of 30 images have a mask" in capsys.readouterr().out
    has = splits.test.masks[:].flatten(1).any(1).numpy()
    assert (has == splits.test.anomalous).all()


def test_several_masks_of_an_image_are_joined(tmp_path):
    folder = make(tmp_path, {"normal": 20, "ill": 10})
    for i in range(10):
        save(folder / f"ill/{i}_mask.png", lesion(0))
        save(folder / f"ill/{i}_mask_1.png", lesion(7))
    test = scanned(folder).test
    first = test.masks[int(np.flatnonzero(test.anomalous)[0])][0].numpy()
    np.testing.assert_array_equal(first, (lesion(0) | lesion(7)) > 0)


def test_pictures_that_are_only_called_masks_are_images(tmp_path):
    folder = make(tmp_path, {"normal": 20, "ill": 10})
    for i in range(10):
        save(folder / f"ill/{i}_mask.png", picture(900 + i))
    assert sum(map(len, scanned(folder).all())) == 40


# --- what is left out, odd names, links ----------------------------------------------------------------


def test_what_is_not_used_is_counted_by_kind(tmp_path, capsys):
    folder = make(tmp_path, {"normal": 20, "ill": 10})
    (folder / "ill/notes.docx").write_text("x")
    (folder / "normal/gone.png").symlink_to("../.git/annex/x.png")
    save(folder / "normal/@eaDir/0.png/SYNOPHOTO_THUMB_M.png", picture(0))
    assert sum(map(len, scanned(folder).all())) == 30
    out = capsys.readouterr().out
    for text in ("1 × file .docx", "1 × a link that leads nowhere", "1 × a folder of another program"):
        assert f"left out: {text}, named in set-left-out.csv" in out


@pytest.mark.parametrize("name", ["{c} #{i}", "{c} 50%_{i}", "{c}_12:30:{i}", "=cmd {c} {i}", "{c}$ & {i}"])
def test_odd_names_can_be_opened_again(name, tmp_path):
    for c, n in (("normal", 20), ("ill", 10)):
        for i in range(n):
            save(tmp_path / "set" / c / f"{name.format(c=c, i=i)}.png", picture(i))
    splits = scanned(tmp_path / "set")
    assert sum(map(len, splits.all())) == 30


def test_a_folder_whose_name_ends_in_a_space(tmp_path):
    splits = scanned(make(tmp_path, {"normal ": 20, "ill": 10}))
    assert set(splits.manifest.roles) == {"normal", "ill"} and sum(map(len, splits.all())) == 30


def test_names_in_another_encoding_are_one_sentence(tmp_path):
    for c in ("正常", "异常"):
        for i in range(3):
            save(tmp_path / f"{i}.png", picture(i))
            place = os.fsencode(tmp_path) + b"/set/" + c.encode("gbk")
            os.makedirs(place, exist_ok=True)
            os.rename(tmp_path / f"{i}.png", place + b"/%d.png" % i)
    with pytest.raises(UsageError, match=r"these 6 images as they are \(no UTF-8\).*\n?.*convmv"):
        guess_manifest(tmp_path / "set")


def test_decomposed_names_meet_composed_cells(tmp_path):
    rows = [("image", "label")]
    for i in range(20):
        name = f"Müller_{i:02d}.png"
        save(tmp_path / "set" / unicodedata.normalize("NFD", name), picture(i))
        rows.append((unicodedata.normalize("NFC", name), i % 2))
    table(tmp_path / "set/labels.csv", rows)
    assert sum(map(len, scanned(tmp_path / "set").all())) == 20


def test_a_folder_that_is_a_link_works_and_so_does_the_hint_of_one_by_hand(tmp_path, monkeypatch):
    make(tmp_path / "elsewhere", {"normal": 20, "ill": 10})
    (tmp_path / "project").mkdir()
    (tmp_path / "project/set").symlink_to(tmp_path / "elsewhere/set")
    splits = scanned(tmp_path / "project/set")
    assert sum(map(len, splits.all())) == 30
    path = tmp_path / "project/set.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("root")))
    with pytest.raises(DataError, match="Set DIAWORK_DATA to the folder that really holds the file"):
        load(path)
    monkeypatch.setenv("DIAWORK_DATA", str(tmp_path / "elsewhere"))
    assert load(path).identity == splits.identity


def test_nothing_that_no_scan_wrote_is_replaced(tmp_path, capsys):
    folder = make(tmp_path, {"": 20}, name="normal_{i}")
    make(tmp_path, {"": 10}, name="lesion-{i}")
    (tmp_path / "set.png").write_bytes(b"mine")
    (tmp_path / "set.csv").write_text("mine,too\n")
    assert main(["data", "scan", str(folder)]) == 2
    assert "set.csv: this table exists and says something else" in capsys.readouterr().err
    assert not (tmp_path / "set.yaml").exists()
    (tmp_path / "set.csv").unlink()
    assert main(["data", "scan", str(folder)]) == 0
    assert (tmp_path / "set.png").read_bytes() == b"mine" and "is a picture of yours" in capsys.readouterr().err


def test_the_recipe_leaves_training_its_healthy_images(tmp_path, capsys):
    for i in range(30):
        for c in ("normal", "ill"):
            for j in range(4):
                save(tmp_path / "set" / c / f"p{i}_{c}{j}.png", picture(1000 * i + 10 * j + len(c)))
    splits = scanned(tmp_path / "set")
    assert (~splits.train.anomalous).sum() >= 0.4 * 120 and not set(splits.train.patients) & set(splits.test.patients)
    assert "by patient; training keeps 70% of the healthy ones" in capsys.readouterr().out


def test_files_that_show_one_picture_stay_together(tmp_path, capsys):
    folder = make(tmp_path, {"normal": 30, "ill": 20})
    for i in range(10):
        save(folder / f"normal/again{i}.bmp", picture(1 + i))
    splits = scanned(folder)
    assert check_splits(splits).ok and sum(map(len, splits.all())) == 60
    assert "of files show one picture, so the patients of both count as one" in capsys.readouterr().out


def test_by_image_is_said_where_no_patient_is_seen(tmp_path, capsys):
    splits = scanned(make(tmp_path, {"normal": 20, "ill": 10}))
    out = capsys.readouterr().out
    assert "by image: no patient is seen in names such as 0.png" in out and "made by image" in splits.source


# --- shapes at random ----------------------------------------------------------------------------------


@st.composite
def shapes(draw):
    """A folder's files, by path: class, split, patient, mask; and how it says them."""
    how = draw(st.sampled_from(["folders", "table"]))
    split_first, by_split = draw(st.booleans()), draw(st.booleans())
    nested, masks = draw(st.booleans()), draw(st.sampled_from(["", "suffix", "folder"]))
    endings = draw(st.lists(st.sampled_from([".png", ".PNG", ".bmp", ".tif"]), min_size=1, max_size=2))
    classes = draw(st.sampled_from([("normal", "ill"), ("Healthy", "cyst", "tumour"), ("0", "1")]))
    rows, seed = [], 0
    for split in ("train", "test") if by_split else ("",):
        for c, name in enumerate(classes):
            for i in range(12):
                seed += 1
                patient = f"P{split[:2]}{c}{i // 3:02d}" if nested else ""
                parts = [part for part in ((split, name) if split_first else (name, split)) if part]
                parts = ([split] if split else []) if how == "table" else parts
                stem = f"{name}{i}x" if how == "folders" else f"img{seed:04d}q"
                rows.append(
                    {
                        "at": [*parts, patient] if patient else parts,
                        "stem": stem,
                        "class": name,
                        "split": split,
                        "patient": patient,
                        "ending": endings[i % len(endings)],
                        "ill": c > 0,
                        "seed": seed,
                    }
                )
    return how, masks, rows


@given(shapes())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_forty_shapes_are_read_as_they_were_made_or_asked_about(shape):
    how, masks, rows = shape
    with tempfile.TemporaryDirectory() as place:
        folder, made = Path(place) / "set", {}
        for row in rows:
            path = "/".join([*row["at"], row["stem"] + row["ending"]])
            save(folder / path, picture(row["seed"], (8, 8)))
            mask = ""
            if masks and row["ill"]:
                mask = f"{'/'.join([*row['at'], row['stem']])}_mask.png"
                mask = "/".join(["masks", *row["at"], f"{row['stem']}.png"]) if masks == "folder" else mask
                save(folder / mask, lesion(row["seed"] % 4, 8))
            made[path] = (row["class"], row["split"], row["patient"], mask)
        if how == "table":
            cells = [(row["stem"], row["class"], row["patient"]) for row in rows]
            table(folder / "labels.csv", [("Image_ID", "Class", "PatientID"), *cells])
        try:
            guess = guess_manifest(folder)
        except UsageError:
            event("asked")
            return
        manifest = load_manifest(write_guess(guess, folder))
        items = {item.path: item for item in list_items(manifest).items}
        seen = {path: (item.class_name, item.split if made[path][1] else "", item.patient if made[path][2] else "",
                       item.mask) for path, item in items.items()}  # fmt: skip
        assert seen == made
