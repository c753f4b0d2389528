"""The readers: a room for each kind, and what the reader of one image takes, refuses and does not guess."""

import importlib
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diawork.base.errors import DataError, UsageError
from diawork.data import manifests
from diawork.data.datasets import load
from diawork.data.manifests import Kind, Manifest, load_manifest
from diawork.data.preprocess import channels_first, decoding, parse_npy, to_unit
from diawork.data.readers.picture import read_image
from diawork.data.store import Content, Part

GREY = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)
FINE = GREY.astype(np.uint16) * 100
COLOUR = np.stack([GREY, GREY // 2, GREY // 3], -1)


def encoded(values, kind="png", **how):
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, values)
    else:
        (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(buffer, kind, **how)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "tiff", "npy"])
def test_eight_bits_are_divided_by_255(kind):
    read = read_image(encoded(GREY, kind))
    assert read.image.dtype == np.float32
    np.testing.assert_array_equal(read.image, (GREY / np.float32(255))[None])


@pytest.mark.parametrize("kind", ["png", "tiff", "npy"])
def test_finer_data_need_a_window_and_follow_it(kind):
    with pytest.raises(DataError, match=r"is u?int\d+, 0 … 23800: it needs an intensity window"):
        read_image(encoded(FINE, kind))
    read = read_image(encoded(FINE, kind), window=(0, 23800))
    np.testing.assert_allclose(read.image[0], FINE / 23800, atol=1e-6)
    assert read.notes == []


@pytest.mark.parametrize("kind", ["tiff", "npy"])
def test_floats_need_a_window_too(kind):
    values = GREY.astype(np.float32) / 255
    with pytest.raises(DataError, match="float32"):
        read_image(encoded(values, kind))
    np.testing.assert_allclose(read_image(encoded(values, kind), window=(0, 1)).image[0], values)


def test_what_is_outside_the_window_is_counted():
    read = read_image(encoded(FINE, "npy"), window=(1000, 2000), name="scan")
    outside = int(((FINE < 1000) | (FINE > 2000)).sum())
    assert read.notes == [
        f"scan: {outside} of 120 values ({outside / 120:.2%}) lie outside the intensity window [1000, 2000] "
        "and were cut to it."
    ]
    assert (read.image.min(), read.image.max()) == (0, 1)


def test_colour_stays_colour_and_equal_channels_are_grey():
    assert read_image(encoded(COLOUR)).image.shape == (3, 10, 12)
    assert read_image(encoded(COLOUR.transpose(2, 0, 1).copy(), "npy")).image.shape == (3, 10, 12)
    np.testing.assert_array_equal(read_image(encoded(np.stack([GREY] * 3, -1))).image, read_image(encoded(GREY)).image)


def test_masks_palettes_and_opaque_alpha_are_read():
    assert set(np.unique(read_image(encoded(GREY > 100, "npy")).image)) == {0, 1}
    assert set(np.unique(read_image(encoded(Image.fromarray(GREY > 100))).image)) == {0, 1}
    assert read_image(encoded(Image.fromarray(COLOUR).quantize(8))).image.shape[0] == 3
    assert read_image(encoded(Image.fromarray(COLOUR).convert("RGBA"))).image.shape[0] == 3


def half_transparent():
    image = Image.fromarray(COLOUR).convert("RGBA")
    image.putalpha(100)
    return encoded(image)


REFUSED = {
    "no PNG, JPEG, TIFF, BMP, WebP, npy, DICOM or NIfTI file: it begins with 'hello'": lambda: b"hello",
    "this file is empty": lambda: b"",
    "this image is damaged": lambda: encoded(GREY)[:46],
    "partly transparent": half_transparent,
    "its colours are CMYK": lambda: encoded(Image.fromarray(COLOUR).convert("CMYK"), "tiff"),
    "holds several pictures": lambda: encoded(
        Image.fromarray(GREY), "tiff", save_all=True, append_images=[Image.fromarray(GREY)]
    ),
    "nothing is unpickled": lambda: encoded(np.array([[{}]], dtype=object), "npy"),
    "its bytes do not hold": lambda: encoded(GREY, "npy")[:-1],
    "npy file is damaged": lambda: b"\x93NUMPY\x09\x00",
    r"shape \(5, 10, 12\)": lambda: encoded(np.zeros((5, 10, 12), np.uint8), "npy"),
    "holds NaN": lambda: encoded(np.full((8, 8), np.nan), "npy"),
}


@pytest.mark.parametrize("says", REFUSED)
def test_refuses_in_one_sentence(says):
    with pytest.raises(DataError, match=says) as refused:
        read_image(REFUSED[says](), name="x.png")
    assert str(refused.value).startswith("x.png: ") and "\n" not in str(refused.value)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr("diawork.data.readers.picture.MOST_PIXELS", 100)
    with pytest.raises(DataError, match="12×10 px are too many"):
        read_image(encoded(GREY))


@pytest.mark.parametrize("window", [(1, 1), (5, 0), (0, float("nan"))])
def test_refuses_a_window_that_is_none(window):
    with pytest.raises(UsageError, match="low below high"):
        read_image(encoded(FINE), window=window)


def test_paths_are_read_and_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(encoded(GREY, "tiff"))
    assert read_image(tmp_path / "a.tif").name == "a.tif"
    with pytest.raises(DataError, match="a folder"):
        read_image(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "b.tif")
    monkeypatch.setattr("diawork.data.readers.picture.MOST_BYTES", 10)
    with pytest.raises(DataError, match="too many for one image"):
        read_image(str(tmp_path / "a.tif"))


# --- what all readers share ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", manifests.KINDS.values())
def test_every_kind_has_its_reader(kind):
    assert callable(importlib.import_module(f"diawork.data.readers.{kind.reader}").read)


def test_a_reader_is_a_room_and_a_line_in_the_list_of_kinds(monkeypatch):
    values = load_manifest("phantom").model_dump(exclude={"phantom"}) | {"kind": "stripes"}
    values["counts"] = {split: {"healthy": 2, "lesion": 1} for split in ("train", "test")}
    with pytest.raises(ValueError, match="'stripes' is not a kind of data set: npz, phantom"):
        Manifest.model_validate(values)

    def read(manifest, root, *, download):
        names = np.array(["healthy", "healthy", "lesion"])
        images = np.linspace(0, 1, 3 * 32 * 32, dtype=np.float32).reshape(3, 1, 32, 32)
        return Content({split: Part(images, names) for split in manifest.counts}, "made of stripes", ("striped",))

    monkeypatch.setitem(manifests.KINDS, "stripes", Kind("stripes", needs=()))
    monkeypatch.setitem(sys.modules, "diawork.data.readers.stripes", SimpleNamespace(read=read))
    splits = load(Manifest.model_validate(values))
    assert [len(s) for s in splits.all()] == [3, 0, 3] and splits.test.anomalous.tolist() == [False, False, True]
    assert splits.source == "made of stripes" and splits.notes[-1] == "striped"


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 5, 6, 1), (2, 1, 5, 6)])
def test_channels_come_first(shape):
    assert channels_first(np.zeros(shape)).shape == (2, 1, 5, 6)


def test_values_become_shares_of_their_window_and_the_cut_ones_are_counted():
    unit, cut = to_unit(np.array([[[-5, 0], [50, 200]]], np.int16), (0, 100))
    assert unit.dtype == np.float32 and unit.tolist() == [[[0, 0], [0.5, 1]]] and cut == (2, 4, -5, 200)


def test_an_array_in_fortran_order_is_read_as_it_was_written():
    values = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(parse_npy(encoded(values, "npy")), values)


def test_whatever_a_decoder_raises_becomes_one_sentence_about_the_file():
    sentence = r"^a\.bin: pixels: damaged \(KeyError\)\. Get it again\.$"
    with pytest.raises(DataError, match=sentence), decoding("a.bin", "damaged", field="pixels", hint="Get it again."):
        raise KeyError
    with pytest.raises(UsageError, match=r"^mine: no$"), decoding("a.bin", "damaged"):
        raise UsageError("no", path="mine")
