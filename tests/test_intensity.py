"""Light: every bit depth, photometric sense, alpha, palette, orientation and channel count, or one sentence."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diawork.base.config import ExperimentConfig
from diawork.base.errors import DataError
from diawork.data.manifests import load_manifest
from diawork.data.readers.picture import PNG, read_image
from diawork.runs.resolve import resolve

RNG = np.random.default_rng(0)
TWELVE = RNG.integers(0, 4096, (9, 11), np.uint16)  # 12-bit values
COLOUR12 = RNG.integers(0, 4096, (9, 11, 3), np.uint16)
GREY = RNG.integers(0, 256, (9, 11), np.uint8)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png16(values, *, extra=b""):
    """A PNG of 16 bits a channel."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(values.astype(">u2")))
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(values, kind="TIFF", **how):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **how)
    return buffer.getvalue()


def with_alpha(values, alpha=65535):
    return np.concatenate([values, np.full((*values.shape[:2], 1), alpha, np.uint16)], -1)


# --- 16 bits a colour --------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [COLOUR12, with_alpha(COLOUR12), with_alpha(TWELVE[..., None])])
def test_sixteen_bits_a_colour_or_with_alpha_are_refused_in_a_sentence(values):
    with pytest.raises(DataError, match=r"its colours have 16 bits each, of which 8 would be read. Save it as npy"):
        read_image(png16(values), window=(0, 4095))


@pytest.mark.parametrize("name", ["LA", "RGBA"])
def test_transparency_is_refused(name):
    values = np.asarray(Image.fromarray(GREY).convert(name)).copy()
    np.testing.assert_allclose(read_image(encoded(values, "PNG")).image[0], GREY / 255, atol=1e-6)
    values[0, 0, -1] = 254
    with pytest.raises(DataError, match="partly transparent"):
        read_image(encoded(values, "PNG"))


def test_a_transparent_colour_is_refused_where_it_occurs():
    rgb = np.stack([GREY] * 3, -1)
    picture, key = Image.fromarray(rgb), tuple(map(int, rgb[0, 0]))
    for colour, refused in ((key, True), ((1, 2, 3), False)):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", transparency=colour)
        if refused:
            with pytest.raises(DataError, match="partly transparent"):
                read_image(buffer.getvalue())
        else:
            np.testing.assert_allclose(read_image(buffer.getvalue()).image[0], GREY / 255, atol=1e-6)


def test_deep_colour_in_a_tiff_is_refused():
    with pytest.raises(DataError, match=r"16 bits each, of which 8 would be read|damaged"):
        read_image(tiff(COLOUR12, photometric=2), window=(0, 4095))


def tiff(values, *, photometric, sample_format=1):
    """An uncompressed TIFF of one strip."""
    height, width, channels = (*values.shape, 1)[:3]
    body, bits = values.tobytes(), values.dtype.itemsize * 8
    tags = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, 8),
            (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(body)), (284, 3, 1, 1),
            (339, 3, 1, sample_format)]  # fmt: skip
    extra = struct.pack("<HHH", bits, bits, bits) if channels == 3 else b""
    tags.append((258, 3, channels, 8 + len(body)) if channels == 3 else (258, 3, 1, bits))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    at = 8 + len(body) + len(extra)
    return b"II*\0" + struct.pack("<I", at) + body + extra + struct.pack("<H", len(tags)) + entries + bytes(4)


# --- photometric sense -------------------------------------------------------------------------------


@pytest.mark.parametrize(("photometric", "turned"), [(1, False), (0, True)])
def test_white_may_be_the_lowest_value(photometric, turned):
    deep = read_image(tiff(TWELVE, photometric=photometric), window=(0, 4095)).image[0]
    np.testing.assert_allclose(1 - deep if turned else deep, TWELVE / 4095, atol=1e-6)
    float_tiff = tiff((TWELVE / 4095).astype(np.float32), photometric=photometric, sample_format=3)
    floats = read_image(float_tiff, window=(0, 1)).image[0]
    np.testing.assert_allclose(floats, deep, atol=1e-6)
    eight = read_image(tiff(GREY, photometric=photometric)).image[0]
    np.testing.assert_allclose(1 - eight if turned else eight, GREY / 255, atol=1e-6)


# --- orientation -------------------------------------------------------------------------------------

SEEN = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: np.transpose,
        6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).T, 8: np.rot90}  # fmt: skip


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "deep"])
def test_orientation_is_honoured_in_every_format(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "deep":
        extra = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        image = read_image(png16(TWELVE[..., None], extra=extra), window=(0, 4095)).image[0]
        np.testing.assert_allclose(image, SEEN[orientation](TWELVE / 4095), atol=1e-6)
    else:
        image = read_image(encoded(GREY, kind, exif=exif)).image[0]
        np.testing.assert_allclose(image, SEEN[orientation](GREY / 255), atol=1e-6)


def test_a_jpeg_is_read_upright_and_cmyk_is_refused():
    exif, smooth = Image.Exif(), np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))
    exif[0x0112] = 6
    image = read_image(encoded(smooth, "JPEG", quality=95, exif=exif)).image
    assert image.shape == (1, 64, 48) and np.abs(image[0] - np.rot90(smooth / 255, -1)).max() < 0.03
    buffer = io.BytesIO()
    Image.fromarray(np.stack([smooth] * 3, -1)).convert("CMYK").save(buffer, "JPEG")
    with pytest.raises(DataError, match="its colours are CMYK"):
        read_image(buffer.getvalue())


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_span_black_to_white(bits):
    levels = np.arange(2**bits, dtype=np.uint8).repeat(8 // bits * 8).reshape(-1, 8)[:, :8]
    levels = np.resize(levels, (16, 8))
    packed = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel()).tobytes() for row in levels]
    header = struct.pack(">IIBBBBB", 8, 16, bits, 0, 0, 0, 0)
    data = PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r for r in packed)))
    image = read_image(data + chunk(b"IEND", b"")).image[0]
    np.testing.assert_allclose(image, levels / (2**bits - 1), atol=1e-6)


# --- damage ------------------------------------------------------------------------------------------


def damaged(data, rng):
    """Return a file with one to three injuries: a byte changed, a piece lost or doubled, the end cut off."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(data)), rng.choice([1, 2, 16, 200])
        how = rng.randrange(4)
        if how == 0:
            data[at] ^= rng.randrange(1, 256)
        elif how == 1:
            del data[at : at + length]
        elif how == 2:
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
        data = data or bytearray(b"\0")
    return bytes(data)


def one_sentence(error):
    assert "\n" not in str(error) and str(error).isprintable()


def injure(n, seed):
    """Damage n PNG files; return how many were read. None is read with other content, none ends in a traceback."""
    rng, read = random.Random(seed), 0
    originals = [(encoded(GREY, "PNG"), None), (png16(TWELVE[..., None]), (0, 4095))]
    wanted = [read_image(data, window=window).image for data, window in originals]
    for i in range(n):
        data, window = originals[i % 2]
        try:
            image = read_image(damaged(data, rng), window=window).image
        except DataError as error:
            one_sentence(error)
            continue
        read += 1
        np.testing.assert_array_equal(image, wanted[i % 2])
    return read


def test_damaged_pngs_are_refused_or_whole():
    assert injure(200, 0) < 60


@pytest.mark.slow
def test_many_damaged_pngs_are_refused_or_whole():
    assert injure(3000, 1) < 900


@pytest.mark.parametrize(
    ("end", "says"), [(0, "this file is empty"), (40, "its header cannot be read"), (-12, "this image is damaged")]
)
def test_a_file_that_holds_too_little_says_so(end, says):
    with pytest.raises(DataError, match=says):
        read_image(encoded(GREY, "PNG")[:end])


def survive(n, seed):
    """Damage n files of formats without checksums: what is lost or malformed is one sentence, never a traceback."""
    rng, smooth = random.Random(seed), np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))
    originals = [
        encoded(smooth, "JPEG"),
        encoded(GREY),
        encoded(GREY, compression="tiff_lzw"),
        tiff(GREY, photometric=0),
    ]
    for i in range(n):
        try:
            image = read_image(damaged(originals[i % 4], rng)).image
        except DataError as error:
            one_sentence(error)
        else:
            assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_jpegs_and_tiffs_end_in_a_sentence():
    survive(120, 0)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.slow
def test_many_damaged_jpegs_and_tiffs_end_in_a_sentence():
    survive(3000, 1)


def test_a_cut_jpeg_is_refused():
    data = encoded(np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1)), "JPEG")
    for end in (len(data) // 2, len(data) - 40):
        with pytest.raises(DataError, match="damaged"):
            read_image(data[:end])


# --- colour goes through -----------------------------------------------------------------------------


def test_a_colour_set_makes_its_networks_see_colour_and_a_grey_one_changes_nothing():
    grey = load_manifest("phantom")
    colour = grey.model_copy(update={"image": grey.image.model_copy(update={"channels": 3})})
    resolved = resolve(ExperimentConfig(), colour)
    assert (resolved.encoder.channels, resolved.diffusion.channels) == (3, 3)
    resolved = resolve(ExperimentConfig().override({"encoder.channels": 3}), grey)
    assert (resolved.encoder.channels, resolved.diffusion.channels) == (3, 1)
