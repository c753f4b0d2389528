"""Values as files have them: windows of CT and of floats, orders of volumes, frames, kinds of files, slices."""

import gzip
import io
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diawork.base.errors import CheckpointError, DataError
from diawork.cli.main import main
from diawork.data.datasets import load
from diawork.data.preprocess import PassingFault
from diawork.data.readers import medical
from diawork.data.readers.listing import walk
from diawork.data.readers.picture import read_image, slices
from tests.test_folders import make_set, opened, picture, save, written
from tests.test_intensity import damaged, one_sentence
from tests.test_medical import dicom, nifti

pydicom, nibabel = pytest.importorskip("pydicom"), pytest.importorskip("nibabel")
SHIPPED = Path(pydicom.__file__).parent / "data/test_files"


def hounsfield(seed, ill=False):
    """Return a slice (24, 24) in HU: lungs at -850 in soft tissue at 40, the anomaly a nodule at -600 in a lung."""
    rng = np.random.default_rng(seed)
    values = np.full((24, 24), 40.0)
    values[6:18, 3:21] = -850
    values[10:14, 6:10] += 250 * ill
    return values + rng.normal(0, 10, values.shape).round()


def ct(values, **how):
    data = pydicom.dcmread(io.BytesIO(dicom((values + 1024).astype(np.uint16), slope=1, intercept=-1024, **how)))
    data.Modality = "CT"
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def by_class(root, make, suffix, n=20, classes=("normal", "ill")):
    for ill, name in enumerate(classes):
        for i in range(n):
            write(root / "set" / name / f"{i:03d}{suffix}", make(100 * ill + i, bool(ill)))
    return root / "set"


def scanned(folder, *argv):
    assert main(["data", "scan", str(folder), *argv]) == 0
    return load(folder.parent / "set.yaml")


# --- windows ---------------------------------------------------------------------------------------------


def test_a_scan_of_ct_proposes_a_window_that_holds_it(tmp_path, capsys):
    splits = scanned(by_class(tmp_path, lambda seed, ill: ct(hounsfield(seed, ill)), ".dcm"))
    said = capsys.readouterr().out
    assert splits.manifest.intensity == (-1024, 3071) and not splits.notes
    assert (
        "CT in HU" in said
        and "lung [-1350, 150] cuts" in said
        and 'intensity: "whole"' in (tmp_path / "set.yaml").read_text()
    )
    lung = [images.images[:].amin() for images in splits.all()]
    assert min(lung) > 0  # nothing at -850 HU became black


def test_what_a_window_cuts_is_refused_with_the_range_that_holds_all(tmp_path, capsys):
    for split, name in (("train", "well"), ("test", "well"), ("test", "ill")):
        for i in range(4):
            write(
                tmp_path / "set" / split / name / f"{i}.dcm", ct(hounsfield(10 * i + len(split + name), name == "ill"))
            )
    with pytest.raises(DataError, match=r"\(\d\d\.\d\d%\) lie outside .*hold them all: intensity: \[-8\d\d, \d+\]"):
        opened(tmp_path, intensity=[0, 1023])
    lung = opened(tmp_path, intensity="lung")  # named, so on purpose
    assert lung.manifest.intensity == (-1350, 150) and not lung.notes
    dark = opened(tmp_path, intensity=[0, 1023], cut=0.6)
    assert "lie outside the intensity window [0.0, 1023.0] and were cut" in dark.notes[-1]
    assert main(["data", "check", str(written(tmp_path / "own.yaml", intensity="soft"))]) == 2
    assert "none of the windows of CT: whole, lung, soft tissue" in capsys.readouterr().err


FLOATS = {
    "unit": (lambda seed: np.random.default_rng(seed).random((16, 16)), [0, 1]),
    "z scores": (lambda seed: np.random.default_rng(seed).normal(0, 1, (16, 16)), None),
}


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".nii.gz"])
def test_floats_get_both_ends_of_their_values(kind, suffix, tmp_path):
    make, window = FLOATS[kind]

    def file(seed, ill):
        values, buffer = make(seed).astype(np.float32), io.BytesIO()
        if suffix == ".nii.gz":
            return gzip.compress(nifti(values[..., None]))
        np.save(buffer, values) if suffix == ".npy" else Image.fromarray(values).save(buffer, "TIFF")
        return buffer.getvalue()

    splits = scanned(by_class(tmp_path, file, suffix))
    every = np.concatenate([make(seed).ravel() for seed in (*range(20), *range(100, 120))]).astype(np.float32)
    low, high = window or (every.min(), every.max())
    assert splits.manifest.intensity == pytest.approx((low, high), rel=1e-6) and not splits.notes
    assert all(
        0 <= float(images.images[:].min()) < 0.1 and float(images.images[:].max()) > 0.9 for images in splits.all()
    )


def test_one_bright_image_of_many_widens_the_window(tmp_path, capsys):
    def file(seed, ill):
        buffer, values = io.BytesIO(), np.random.default_rng(seed).integers(0, 900, (16, 16), np.uint16)
        values[:3, :3] *= 60 if seed == 33 else 1
        Image.fromarray(values).save(buffer, "PNG")
        return buffer.getvalue()

    assert scanned(by_class(tmp_path, file, ".png", n=40)).manifest.intensity == (0, 65_535)
    assert "99.9 % of them from" in capsys.readouterr().out


# --- several pictures ------------------------------------------------------------------------------------


def enhanced(stack, how):
    """Return a multi-frame CT whose slope 2 and intercept -1000 - k stand in its functional groups."""
    file = pydicom.dcmread(io.BytesIO(dicom(stack.astype(np.uint16), frames=len(stack))))

    def group(k):
        inner, outer = pydicom.Dataset(), pydicom.Dataset()
        inner.RescaleSlope, inner.RescaleIntercept = 2, -1000 - k
        outer.PixelValueTransformationSequence = [inner]
        return outer

    groups = [group(0)] if how == "shared" else [group(k) for k in range(len(stack))]
    setattr(file, "SharedFunctionalGroupsSequence" if how == "shared" else "PerFrameFunctionalGroupsSequence", groups)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("how", ["shared", "frames"])
def test_slope_and_intercept_come_from_the_functional_groups(how):
    stack = np.random.default_rng(0).integers(0, 1000, (3, 8, 8))
    data = enhanced(stack, how)
    for k in range(3):
        values = stack[k] * 2 - 1000 - (k if how == "frames" else 0)
        image = read_image(data, window=(-2000, 2000), frame=k).image[0]
        np.testing.assert_allclose(image, (values + 2000) / 4000, atol=1e-6)


def test_a_volume_is_the_same_in_every_order(tmp_path):
    volume = np.random.default_rng(0).integers(0, 255, (6, 7, 8)).astype(np.int16)  # x to the right, y front, z up
    base = nibabel.Nifti1Image(volume, np.diag([1, 1, 3, 1]))
    want = {"z2": volume[:, :, 2], "x5": volume[5], "y3": volume[:, 3], "middle": volume[:, :, 4], 2: volume[:, :, 2]}
    for code in ("RAS", "LAS", "LPS", "PIR", "ASL"):
        to = nibabel.orientations.axcodes2ornt(code)
        turned = base.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(base.affine), to))
        data = turned.to_bytes()
        for frame, values in want.items():
            read = read_image(data, window=(0, 255), frame=frame)
            np.testing.assert_allclose(read.image[0], np.rot90(values) / 255, atol=1e-6)
        assert (f"in the order {code}" in read.note) == (code != "RAS")
        assert medical.frames_in(data) == {"z": 8, "y": 7, "x": 6}
    thick = nibabel.Nifti1Image(volume, np.diag([4, 1, 1, 1])).to_bytes()
    assert next(iter(medical.frames_in(thick))) == "x"


def test_a_set_says_that_it_was_turned(tmp_path):
    for k, (split, name) in enumerate([("train", "well"), ("test", "well"), ("test", "ill")]):
        volume = picture(k, (16, 16, 1))
        write(tmp_path / "set" / split / name / "a.nii", nibabel.Nifti1Image(volume, np.diag([-1, 1, 1, 1])).to_bytes())
    assert "3 of 3: NIfTI volumes stored in the order LAS, turned to RAS." in opened(tmp_path).notes


def test_a_scan_of_volumes_proposes_slices(tmp_path, capsys):
    volume = lambda seed, ill: nifti(np.random.default_rng(seed).integers(0, 255, (16, 16, 5)).astype(np.uint8))  # noqa: E731
    folder = by_class(tmp_path, volume, "_T1w.nii", n=8)
    splits = scanned(folder)
    assert "16 of 16 files hold several pictures" in capsys.readouterr().out
    assert sum(map(len, splits.all())) == 16 * 3 and splits.train.files[0].endswith("#z1")
    assert not set(splits.train.patients) & set(splits.test.patients)
    assert slices("normal/000_T1w.nii", folder, axis="x", middle=1, most=8) == [
        f"normal/000_T1w.nii#x{k}" for k in range(0, 16, 2)
    ]


# --- kinds of files --------------------------------------------------------------------------------------


def test_files_of_every_kind_are_found_and_others_named(tmp_path):
    values = picture(0)
    for name in ("a.bmp", "b.webp", "c.PNG"):
        save(tmp_path / "set" / name, values, **({"lossless": True} if name.endswith("webp") else {}))
    plain = dicom(values)
    for name, data in (("IM0001", plain), ("x.CT.0001.IMA", plain), ("1.2.840.7", plain), ("bare.dcm", plain[132:])):
        write(tmp_path / "set" / name, data)
    for name in ("DICOMDIR", "notes.pdf", "README", "IM0002"):
        write(tmp_path / "set" / name, bytes(128) + (b"DICM" if name == "DICOMDIR" else b"text"))
    (tmp_path / "set/gone.png").symlink_to(tmp_path / "nowhere.png")
    unused = {}
    found = [file.path for file in walk(tmp_path / "set", unused)]
    assert len(found) == 7 and unused == {
        "DICOMDIR": "file DICOMDIR", "notes.pdf": "file .pdf", "README": "file without ending",
        "IM0002": "file without ending", "gone.png": "a link that leads nowhere",
    }  # fmt: skip
    for path in found:
        np.testing.assert_array_equal(read_image(tmp_path / "set" / path).image[0], values / np.float32(255))


def test_a_photo_with_a_second_picture_is_read(tmp_path):
    first, buffer = Image.fromarray(np.kron(picture(0, (4, 4)), np.ones((8, 8), np.uint8))).convert("RGB"), io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[first.resize((8, 8))], quality=95)
    assert np.abs(read_image(buffer.getvalue()).image[0] - np.asarray(first)[..., 0] / 255).max() < 0.1


COMPRESSED = {
    "examples_ybr_color.dcm": (3, 240, 320), "SC_rgb_jpeg_dcmtk.dcm": (3, 100, 100),
    "SC_ybr_full_422_uncompressed.dcm": (3, 100, 100), "examples_jpeg2k.dcm": (3, 480, 640),
    "examples_palette.dcm": (3, 350, 800), "SC_rgb_jpeg_gdcm.dcm": (3, 100, 100),
    "MR_small_jpeg_ls_lossless.dcm": (1, 64, 64), "MR_small_RLE.dcm": (1, 64, 64),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_dicom_and_its_colours_are_read(name):
    pytest.importorskip("gdcm")
    if not (SHIPPED / name).exists():
        pytest.skip("pydicom ships it no longer")
    image = read_image(SHIPPED / name, window=(0, 4095), frame=2 if "ybr_color" in name else None).image
    assert image.shape == COMPRESSED[name]


def test_a_missing_decoder_is_named(monkeypatch):
    if not (SHIPPED / "JPGExtended.dcm").exists():
        pytest.skip("pydicom ships it no longer")
    with pytest.raises(PassingFault, match=r"needs pylibjpeg-libjpeg.*pip install pylibjpeg"):
        read_image(SHIPPED / "JPGExtended.dcm", window=(0, 4095))
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", property(lambda _: False))
    with pytest.raises(PassingFault, match=r'\(JPEG-LS.*\), which needs python-gdcm.*"diawork\[medical\]"'):
        read_image(SHIPPED / "MR_small_jpeg_ls_lossless.dcm", window=(0, 4095))


# --- faults that pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [PermissionError(13, "Permission denied"), MemoryError(), ImportError("pydicom")])
def test_a_passing_fault_is_not_remembered(fault, tmp_path, monkeypatch):
    root = make_set(tmp_path)
    write(root / "set/train/well/z.dcm", dicom(picture(7)))
    with monkeypatch.context() as patch:
        real = __import__

        def failing(name, *rest, **how):
            if isinstance(fault, ImportError) and name != "pydicom":
                return real(name, *rest, **how)
            raise fault

        if isinstance(fault, ImportError):
            patch.setattr("builtins.__import__", failing)
        else:
            patch.setattr("PIL.Image.open", failing)
        with pytest.raises(PassingFault):
            opened(root)
    assert len(opened(root).train) == 17
    write(root / "set/train/well/z.dcm", b"no picture")
    for _ in range(2):  # what its content decides stays known
        with pytest.raises(DataError, match=r"1 of 25 images cannot be used, first train/well/z.dcm: this is no"):
            opened(root)


# --- the store -------------------------------------------------------------------------------------------


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_in_the_store_is_seen_when_first_read(tmp_path, capsys):
    splits = opened(make_set(tmp_path))
    store = Path(splits.train.images.values.filename)
    assert not splits.train.images.sound.any()
    assert splits.train.images[3].shape == (1, 16, 16) and splits.train.images.sound.sum() == 1
    flip(store, len(store.read_bytes()) - 5)
    again = opened(tmp_path)  # its identity is that of the digests
    assert again.identity == splits.identity
    with pytest.raises(CheckpointError, match=r"image 23 of this store is not as it was decoded. Remove its folder"):
        for images in again.all():
            list(images.batches())
    assert main(["data", "verify", str(written(tmp_path / "own.yaml"))]) == 4
    shutil.rmtree(store.parent)
    assert len(opened(tmp_path).train.images[:]) == 16


@pytest.mark.parametrize(
    "record", ["[]", "7", "{", '{"key": 1}', '{"key": ["a", "b", [1, 1, 1, 1], "uint8"], "done": -1}']
)
def test_an_edited_record_of_a_store_is_made_anew(record, tmp_path):
    splits = opened(make_set(tmp_path))
    (Path(splits.train.images.values.filename).parent / "store.json").write_text(record)
    assert opened(tmp_path).identity == splits.identity


# --- damage ----------------------------------------------------------------------------------------------


def of_kind(kind, **how):
    buffer = io.BytesIO()
    Image.fromarray(picture(1, (12, 12))).convert("RGB").save(buffer, kind, **how)
    return buffer.getvalue()


def recoded(data, syntax, encoded):
    file = pydicom.dcmread(io.BytesIO(data))
    file.file_meta.TransferSyntaxUID, file.PixelData = syntax, pydicom.encaps.encapsulate([encoded])
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def originals():
    """Return a small file of every kind that has a reader since the first fuzz, and the frame to read of it."""
    grey, stack = picture(0, (12, 12)), np.stack([picture(k, (12, 12)) for k in range(3)])
    jpeg = io.BytesIO()
    Image.fromarray(grey).save(jpeg, "JPEG")
    run = np.uint8([11]).tobytes()
    segment = b"".join(run + row.tobytes() for row in grey)
    head = np.uint32([1, 64, *[0] * 14]).tobytes()
    volume = nibabel.Nifti1Image(stack.T.copy(), np.diag([-1, 1, 2, 1])).to_bytes()
    yield enhanced(stack.astype(np.int64), "frames"), 1
    yield enhanced(stack.astype(np.int64), "shared"), "middle"
    yield recoded(dicom(grey), pydicom.uid.JPEGBaseline8Bit, jpeg.getvalue()), None
    yield recoded(dicom(grey), pydicom.uid.RLELossless, head + segment), None
    yield dicom(grey)[132:], None
    yield volume, "z1"
    yield gzip.compress(volume), "middle"
    yield of_kind("BMP"), None
    yield of_kind("WEBP", lossless=True), None
    yield of_kind("MPO", save_all=True, append_images=[Image.fromarray(picture(2, (8, 8)))]), None
    if (SHIPPED / "MR_small_jpeg_ls_lossless.dcm").exists():
        yield (SHIPPED / "MR_small_jpeg_ls_lossless.dcm").read_bytes(), None


def injure(n, seed):
    """Damage n files: each is read in [0, 1] or refused in one sentence; return how many were read."""
    rng, read, files = random.Random(seed), 0, list(originals())
    for data, frame in files:
        assert read_image(data, window=(-4000, 4000), frame=frame).image.size
    for k in range(n):
        data, frame = files[k % len(files)]
        try:
            image = read_image(damaged(data, rng), window=(-4000, 4000), frame=frame).image
        except DataError as error:
            one_sentence(error)
        else:
            read += 1
            assert image.min() >= 0 and image.max() <= 1
    return read


def test_damaged_files_of_every_new_kind_are_read_or_refused():
    assert 0 < injure(220, 0) < 200


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some of them end the process in which gdcm decodes
def test_three_thousand_damaged_files():
    assert 0 < injure(3000, 1) < 2700
