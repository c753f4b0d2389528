"""Data sets: the phantom, npz files good and bad, downloads, batches."""

import http.server
import io
import os
import random
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from diawork.base.config import ExperimentConfig
from diawork.base.errors import DataError, UsageError
from diawork.base.seeding import generator
from diawork.data import store
from diawork.data.datasets import load
from diawork.data.images import ImageSet, batches, describe
from diawork.data.locations import find_file
from diawork.data.manifests import Manifest, load_manifest
from diawork.data.readers import phantom, read_content

COUNTS = {"train": {"well": 6, "ill": 2}, "val": {"well": 2, "ill": 2}, "test": {"well": 3, "ill": 2}}
TOY = {
    "name": "toy", "title": "Toy", "kind": "npz", "licence": "CC0", "citation": "nobody", "file": "toy.npz",
    "classes": {0: "ill", 1: "well"}, "roles": {"ill": "anomalous", "well": "normal"}, "counts": COUNTS,
    "image": {"size": 8, "channels": 1}, "t_range": [1, 2], "bridge": "pad",
}  # fmt: skip
REAL = Path(os.environ.get("DIAWORK_DATA", "/nowhere")) / "pneumoniamnist.npz"


def toy(**changes):
    return Manifest.model_validate(TOY | changes)


def arrays(**changes):
    """The arrays of a well-formed toy file."""
    rng, made = np.random.default_rng(0), {}
    for split, counts in COUNTS.items():
        n = sum(counts.values())
        made[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(n) < counts["well"]).astype(np.uint8)[:, None]
    return {name: value for name, value in (made | changes).items() if value is not None}


def opened(folder, manifest=None, **changes):
    np.savez(folder / "toy.npz", **arrays(**changes))
    return load(manifest or toy(), folder)


def refused(words, folder, manifest=None, **changes):
    with pytest.raises(DataError) as caught:
        opened(folder, manifest, **changes)
    message = str(caught.value)
    assert all(word in message for word in ("toy", *words)) and "\n" not in message, message


# --- what loading gives ------------------------------------------------------------------------------


def test_a_file_becomes_named_images_in_unit_range(tmp_path):
    splits = opened(tmp_path)
    train = splits.train
    assert train.images.shape == (8, 1, 8, 8) and train.images.dtype == torch.float32
    assert torch.equal(train.images[:, 0] * 255, torch.from_numpy(arrays()["train_images"]).float())
    assert train.class_names.tolist() == ["well"] * 6 + ["ill"] * 2
    assert train.anomalous.tolist() == [False] * 6 + [True] * 2 and train.index.tolist() == list(range(8))
    assert (train.split, train.name, train.masks) == ("train", "toy", None)


def test_flat_labels_fortran_order_and_wide_integers_read_the_same(tmp_path):
    plain = arrays()
    other = {k: v.ravel().astype(">i8") if "labels" in k else np.asfortranarray(v) for k, v in plain.items()}
    assert opened(tmp_path, **other).identity == opened(tmp_path).identity


def test_colour_becomes_channels_first(tmp_path):
    colour = {k: np.stack([v, v // 2, v // 4], -1) for k, v in arrays().items() if "images" in k}
    splits = opened(tmp_path, toy(image={"size": 8, "channels": 3}), **colour)
    assert splits.test.images.shape == (5, 3, 8, 8)
    assert torch.equal(splits.test.images[:, 1] * 255, torch.from_numpy(colour["test_images"][..., 1]).float())


def test_a_set_without_val_has_an_empty_one(tmp_path):
    manifest = toy(counts={k: v for k, v in COUNTS.items() if k != "val"})
    splits = opened(tmp_path, manifest)
    assert len(splits.val) == 0 and len(splits.train) == 8 and "val" in describe(splits)


def test_take_and_normal_keep_rows_together(tmp_path):
    train = opened(tmp_path).train
    some = train.take(np.array([7, 0]))
    assert some.index.tolist() == [7, 0] and some.class_names.tolist() == ["ill", "well"]
    assert torch.equal(some.images, train.images[[7, 0]])
    assert train.normal().index.tolist() == list(range(6)) and not train.normal().anomalous.any()
    assert train.take(train.anomalous).index.tolist() == [6, 7]


def test_identity_follows_the_content(tmp_path):
    one, changed = opened(tmp_path), arrays()["val_images"]
    changed[0, 0, 0] ^= 1
    two = opened(tmp_path, val_images=changed)
    assert one.train.identity == two.train.identity and one.val.identity != two.val.identity
    assert one.identity != two.identity == opened(tmp_path, val_images=changed).identity
    assert one.train.take(range(8)).identity == one.train.identity != one.train.normal().identity


def test_pixels_are_hashed_once_and_only_when_asked(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(np, "ascontiguousarray", lambda x, plain=np.ascontiguousarray: read.append(x.shape) or plain(x))
    splits = opened(tmp_path)
    read.clear()
    some = splits.train.take([0, 1]).normal()
    assert not read
    assert splits.identity == splits.identity and some.identity == some.identity
    assert sum(len(shape) == 4 for shape in read) == 4  # train, val, test and the selection


def test_the_front_door_takes_a_name_a_manifest_or_a_config_and_any_root(tmp_path):
    one = opened(tmp_path)
    assert load(one.manifest, str(tmp_path)).identity == one.identity
    assert load("phantom", "").identity == load(ExperimentConfig(), None).identity == load().identity


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.01, -0.01])
def test_images_out_of_range_are_refused(bad):
    x = torch.zeros(3, 1, 4, 4)
    x[1, 0, 2, 2] = bad
    with pytest.raises(DataError, match=r"1 of 3 images hold NaN or values outside .* first image 1"):
        ImageSet(x, np.array(["a"] * 3), np.zeros(3, bool), np.arange(3), "train", "x")


@pytest.mark.parametrize(
    "parts", [{"images": torch.zeros(3, 4, 4)}, {"images": torch.zeros(3, 1, 4, 4, dtype=torch.float64)},
              {"index": np.arange(2)}, {"masks": torch.zeros(3, 4, 4, dtype=torch.bool)}],
)  # fmt: skip
def test_image_sets_check_their_shapes(parts):
    columns = {"class_names": np.array(["a"] * 3), "anomalous": np.zeros(3, bool), "index": np.arange(3)}
    with pytest.raises(DataError, match="wanted"):
        ImageSet(**{"images": torch.zeros(3, 1, 4, 4), "split": "test", "name": "x", **columns, **parts})


# --- the phantom ---------------------------------------------------------------------------------------

SMALL = {"train": {"healthy": 5, "lesion": 0}, "val": {"healthy": 3, "lesion": 2}, "test": {"healthy": 3, "lesion": 2}}


def small_phantom(**changes):
    values = load_manifest("phantom").model_dump() | {"counts": SMALL} | changes
    return load(Manifest.model_validate(values))


def test_phantom_splits_have_masks_roles_and_different_images():
    splits = small_phantom()
    assert [len(s) for s in splits.all()] == [5, 5, 5]
    assert (splits.test.masks.flatten(1).any(1).numpy() == splits.test.anomalous).all()
    every = torch.cat([s.images for s in splits.all()]).flatten(1)
    assert len(every.unique(dim=0)) == len(every)


def test_phantom_is_the_same_every_time_and_made_once():
    first = small_phantom()
    assert small_phantom().train.images.data_ptr() == first.train.images.data_ptr()
    phantom.made.cache_clear()
    assert small_phantom().identity == first.identity
    other = load_manifest("phantom").phantom.model_dump() | {"seed": 1}
    assert small_phantom(phantom=other).identity != first.identity


def test_phantom_too_large_for_memory_is_refused():
    with pytest.raises(DataError, match="GiB of memory"):
        small_phantom(counts=SMALL | {"train": {"healthy": 9_999_999, "lesion": 0}})


def test_description_shows_counts_licence_and_notes(tmp_path):
    with pytest.warns(UserWarning, match="not the published file"):
        splits = opened(tmp_path, toy(md5="0" * 32))
    text = describe(splits)
    for word in ("Toy", "well (normal)", "8 × 8 px", "CC0", "1-2", "not the published file (MD5 ", splits.identity):
        assert word in text
    assert str(tmp_path) not in text and splits.notes[0] in text


# --- schema variants -----------------------------------------------------------------------------------


def images_as(dtype, scale=1):
    return {k: (v.astype(float) * scale).astype(dtype) for k, v in arrays().items() if "images" in k}


ONE_HOT = np.eye(2, dtype=np.uint8)[[1] * 6 + [0] * 2]
VARIANTS = [
    ({"train_images": None}, ["'train_images' is missing", "val_images"]),
    ({"test_labels": None}, ["'test_labels' is missing"]),
    ({"val_images": None, "valid_images": np.zeros(3)}, ["Did you mean 'valid_images'"]),
    ({"train_images": np.zeros((8, 8, 9), np.uint8)}, ["(8, 8, 9), wanted (N, 8, 8)"]),
    ({"train_images": np.zeros((8, 64), np.uint8)}, ["wanted (N, 8, 8)"]),
    ({"train_images": np.zeros((8, 8, 8, 3), np.uint8)}, ["wanted (N, 8, 8)"]),
    ({"train_images": np.zeros((8, 1, 8, 8), np.uint8)}, ["wanted (N, 8, 8)"]),
    ({"train_images": np.zeros((0, 8, 8), np.uint8), "train_labels": np.zeros(0, int)}, ["holds no image"]),
    ({"train_images": np.uint8(3)}, ["shape ()"]),
    ({"train_images": np.zeros((7, 8, 8), np.uint8)}, ["(7,)", "one for each"]),
    ({"train_labels": ONE_HOT}, ["train_labels: is uint8 (8, 2)"]),
    ({"train_labels": np.ones(8)}, ["train_labels: is float64"]),
    ({"train_labels": np.full(8, np.nan)}, ["train_labels: is float64"]),
    ({"train_labels": np.array(["well"] * 8)}, ["train_labels: is <U4"]),
    ({"train_labels": np.ones(8, bool)}, ["train_labels: is bool"]),
    ({"train_labels": np.full(8, 7)}, ["8 images have the label 7", "0: ill, 1: well"]),
    ({"train_labels": np.full(8, -1)}, ["label -1"]),
    ({"train_labels": np.ones(8, int)}, ["counts differ", "well: 8 in the file, 6 in the manifest"]),
    ({"val_images": np.zeros((5, 8, 8), np.uint8), "val_labels": np.ones(5, int)}, ["val", "counts differ"]),
    ({"train_images": np.zeros((8, 8, 8), object)}, ["nothing is unpickled"]),
    ({"train_images": np.zeros((8, 8, 8), "V3")}, ["|V3"]),
    ({"train_images": np.zeros((8, 8, 8), [("a", "u1")])}, ["wanted uint8"]),
    ({"train_images": np.zeros((8, 8, 8), complex)}, ["complex128"]),
    ({"train_images": np.zeros((8, 8, 8), bool)}, ["bool"]),
    (images_as(np.uint16, 257), ["train_images: is uint16, 0 … 65535", "an intensity window", "intensity: [0, 4095]"]),
    (images_as(np.float32, 1 / 255), ["is float32, 0 … ", "needs an intensity window"]),
    (images_as(np.int16), ["int16", "needs an intensity window"]),
]


@pytest.mark.parametrize(("changes", "words"), VARIANTS)
def test_schema_variants_are_refused_with_got_and_wanted(changes, words, tmp_path):
    refused(words, tmp_path, **changes)


def test_sixteen_bit_data_keep_their_levels_in_an_explicit_window(tmp_path):
    wide = images_as(np.uint16, 16)
    splits = opened(tmp_path, toy(intensity=[0, 4080]), **wide)
    assert torch.allclose(splits.train.images, opened(tmp_path).train.images) and not splits.notes


def test_a_sixteen_bit_ramp_keeps_every_level(tmp_path):
    ramp = np.arange(8 * 64, dtype=np.uint16).reshape(8, 8, 8) * 8
    splits = opened(tmp_path, toy(intensity=[0, 4095]), **images_as(np.uint16, 1) | {"train_images": ramp})
    values = splits.train.images.flatten() * 4095
    assert len(values.unique()) == 512 and torch.allclose(values, torch.from_numpy(ramp.flatten().astype(np.float32)))


def test_values_outside_the_window_are_counted_and_noted(tmp_path):
    splits = opened(tmp_path, toy(intensity=[0, 100], cut=0.7), **images_as(np.float32))
    outside = int((arrays()["train_images"] > 100).sum())
    assert (
        f"train: {outside:,} of 512 values ({outside / 512:.2%}) lie outside" in splits.notes[0]
        and splits.train.images.max() == 1
    )


def test_nan_pixels_are_refused_with_their_image(tmp_path):
    broken = images_as(np.float32)
    broken["test_images"][3, 0, 0] = np.nan
    refused(["test_images: image 3 holds NaN"], tmp_path, toy(intensity=[0, 255]), **broken)


@pytest.mark.parametrize(
    ("roles", "changes", "word"),
    [({"ill": "normal", "well": "normal"}, {}, "val holds 4 normal and 0 anomalous"),
     ({"ill": "anomalous", "well": "normal"}, {"counts": COUNTS | {"train": {"well": 0, "ill": 8}},
      "train_labels": np.zeros(8, int)}, "no normal image"),
     ({"ill": "anomalous", "well": "normal"}, {"counts": COUNTS | {"test": {"well": 5, "ill": 0}},
      "test_labels": np.ones(5, int)}, "5 normal and 0 anomalous")],
)  # fmt: skip
def test_the_protocol_needs_both_roles(roles, changes, word, tmp_path):
    manifest = toy(roles=roles, counts=changes.pop("counts", COUNTS))
    refused([word], tmp_path, manifest, **changes)


# --- damage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (b"<!DOCTYPE html>", "web page"), (b"PK\x03\x04", "not a readable npz"), (b"x" * 999, "not a")],
)
def test_files_that_are_no_npz(content, word, tmp_path):
    (tmp_path / "toy.npz").write_bytes(content)
    manifest = toy(md5="1" * 32, url=["https://example.org/toy.npz"])
    with pytest.raises(DataError, match=word) as caught:
        load(manifest, tmp_path)
    assert "1" * 32 in str(caught.value) and "https://example.org/toy.npz" in str(caught.value)


def bomb(folder, key="train_images", header=None, size=300_000_000):
    """Write a toy file of which one member is a small zip of many zeros."""
    made = arrays()
    with zipfile.ZipFile(folder / "toy.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in made.items():
            buffer = io.BytesIO()
            np.save(buffer, value)
            data = buffer.getvalue()
            if name == key:
                data = (header or data[:128]) + bytes(size)
            archive.writestr(f"{name}.npy", data)


def test_bombs_are_refused_before_they_are_read(tmp_path, monkeypatch):
    bomb(tmp_path, size=20_000_000)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("was read"))
    with pytest.raises(DataError, match="declares 20,000,128 bytes, more than 8 images of 8 px can take"):
        load(toy(), tmp_path)


def test_data_beyond_the_memory_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DIAWORK_DATA_LIMIT_GB", "0.000001")
    refused(["GiB", "DIAWORK_DATA_LIMIT_GB"], tmp_path)
    monkeypatch.setenv("DIAWORK_DATA_LIMIT_GB", "many")
    assert 0 < store.memory_limit() <= 4 * store.GIB


@pytest.mark.parametrize("shape", ["(99999999999, 8, 8)", "(-8, 8, 8)", "(8, 8)", "(4, 8, 8)"])
def test_headers_that_lie_are_found(shape, tmp_path):
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    bomb(tmp_path, header=b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(118).encode(), size=512)
    with pytest.raises(DataError, match="its bytes do not hold"):
        load(toy(), tmp_path)


@pytest.mark.parametrize(("version", "accepted"), [(1, True), (2, True), (3, False), (9, False)])
def test_npy_headers_of_version_1_and_2_are_read(version, accepted, tmp_path):
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8, 8), }"
    length = (118).to_bytes(2 if version == 1 else 4, "little")
    bomb(tmp_path, header=b"\x93NUMPY" + bytes([version, 0]) + length + text.ljust(118).encode(), size=512)
    if accepted:
        assert load(toy(), tmp_path).train.images.sum() == 0
        return
    with pytest.raises(DataError, match="version"):
        load(toy(), tmp_path)


def test_two_members_of_one_name_are_refused(tmp_path):
    np.savez(tmp_path / "toy.npz", **arrays())
    with zipfile.ZipFile(tmp_path / "toy.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("train_images.npy", b"other")
    with pytest.raises(DataError, match="same name"):
        load(toy(), tmp_path)


def test_a_folder_or_a_forbidden_file_is_a_data_error(tmp_path):
    (tmp_path / "toy.npz").mkdir()
    with pytest.raises(DataError, match="not a file"):
        load(toy(), tmp_path)


def corrupted(data, rng):
    """Return ``data`` with a bit flip, a zeroed block, a cut, an insertion or a swap."""
    at, block = rng.randrange(len(data)), rng.choice([1, 4, 64, 512])
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes(len(data[at : at + block])) + data[at + block :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + rng.randbytes(block) + data[at:]
    return data[:at] + data[at + block : at + 2 * block] + data[at : at + block] + data[at + 2 * block :]


def fuzz(n, seed, folder):
    """Check that damage is refused or harmless; return how many files were accepted with the right content."""
    rng, path, manifest = random.Random(seed), folder / "toy.npz", toy()
    wanted, accepted = opened(folder).identity, 0
    sources = []
    for save in (np.savez, np.savez_compressed):
        save(path, **arrays())
        sources.append(path.read_bytes())
    for _ in range(n):
        path.write_bytes(corrupted(rng.choice(sources), rng))
        try:
            identity = load(manifest, folder).identity
        except DataError:  # any other type is a failure
            continue
        assert identity == wanted
        accepted += 1
    return accepted


@pytest.mark.filterwarnings("ignore")  # numpy warns of damaged headers on its way to the error
def test_corrupted_npz_short(tmp_path):
    assert fuzz(400, 0, tmp_path) < 200


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_corrupted_npz_long(tmp_path):
    assert fuzz(6000, 1, tmp_path) < 3000


# --- finding and downloading ---------------------------------------------------------------------------


def test_a_missing_file_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DIAWORK_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError) as caught:
        load("breastmnist")
    for word in (tmp_path / "data", tmp_path / "home" / "data", ".cache/diawork", "diawork data get breastmnist",
                 "zenodo.org", "CC BY 4.0", "DIAWORK_DATA"):  # fmt: skip
        assert str(word) in str(caught.value)


def test_folders_are_searched_in_order(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("DIAWORK_DATA", str(tmp_path / "one"))
    monkeypatch.setenv("DIAWORK_HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy.npz").touch()
    assert find_file(toy()) == tmp_path / "data" / "toy.npz"
    with pytest.raises(DataError, match=r"looked in \S*two\."):
        find_file(toy(), tmp_path / "two")


def test_unknown_name_is_a_usage_error():
    with pytest.raises(UsageError, match="Did you mean 'phantom'"):
        load("phantoms")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "www").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "www"))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/toy.npz"
        running.shutdown()


def at(url, md5):
    return toy().model_copy(update={"url": (url,), "md5": md5})


def test_download_puts_a_verified_file_in_place(server, tmp_path):
    np.savez(tmp_path / "www" / "toy.npz", **arrays())
    md5 = read_content(toy(), tmp_path / "www").md5
    path = find_file(at(server, md5), tmp_path / "data", download=True)
    assert path == tmp_path / "data" / "toy.npz" and path.read_bytes() == (tmp_path / "www" / "toy.npz").read_bytes()


def test_a_wrong_or_absent_download_leaves_nothing_behind(server, tmp_path):
    (tmp_path / "www" / "toy.npz").write_bytes(b"half a file")
    for url, word in ((server, "does not match"), (f"{server}x", "404"), ("http://127.0.0.1:9/x", "127.0.0.1")):
        with pytest.raises(DataError, match=word) as caught:
            find_file(at(url, "0" * 32), tmp_path / "data", download=True)
        assert "0" * 32 in str(caught.value) and str(tmp_path / "data") in str(caught.value)
    assert not list((tmp_path / "data").iterdir())


# --- batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (9, 4), (4, 4), (3, 4), (1, 4), (5, 1)])
def test_batches_visit_all_and_are_never_smaller_than_the_others(n, size):
    made = list(batches(n, size, generator(0, "order")))
    assert len(made) == -(-n // size) and {len(b) for b in made} == {min(n, size)}
    assert all(len(b.unique()) == len(b) for b in made) and set(torch.cat(made).tolist()) == set(range(n))


def test_batches_follow_their_generator():
    one, same, other = (torch.cat(list(batches(20, 6, generator(s)))) for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    with pytest.raises(DataError, match="0 images"):
        next(batches(0, 4, generator(0)))


# --- the real thing, where it is there -------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_file(), reason="needs DIAWORK_DATA")
@pytest.mark.filterwarnings("ignore:pneumoniamnist.npz is not")
def test_pneumoniamnist():
    splits = load("pneumoniamnist", REAL.parent)
    assert splits.train.images.shape == (4708, 1, 28, 28) and len(splits.train.normal()) == 1214
    assert (~splits.test.anomalous).sum() == 234
