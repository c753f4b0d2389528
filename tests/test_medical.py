"""DICOM and NIfTI: values after rescaling, one picture by choice, and no header field outside the reader."""

import builtins
import io
import random
import warnings

import numpy as np
import pytest

from diawork.base.errors import DataError
from diawork.cli.main import main
from diawork.data.readers.picture import read_image
from tests.test_folders import FACTS, FOLDER, opened, written
from tests.test_intensity import one_sentence

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
RNG = np.random.default_rng(0)
CT = RNG.integers(0, 2000, (10, 12), np.uint16)
NAME, NUMBER = "Quux^Zyzzyva", "PATIENT-4711"


def dicom(values=CT, *, photometric="MONOCHROME2", slope=None, intercept=None, frames=0, stored=12, signed=False):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.PatientName, file.PatientID, file.InstitutionName = NAME, NUMBER, "Quux Clinic"
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    colour = photometric == "RGB"
    file.Rows, file.Columns = values.shape[1:3] if frames else values.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation = (3 if colour else 1), photometric
    bits = values.dtype.itemsize * 8
    file.BitsAllocated, file.BitsStored = bits, min(bits, stored)
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(signed)
    if colour:
        file.PlanarConfiguration = 0
    if frames:
        file.NumberOfFrames = frames
    if slope is not None:
        file.RescaleSlope, file.RescaleIntercept = slope, intercept
    file.PixelData = values.tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def nifti(volume, **how):
    return nibabel.Nifti1Image(volume, np.eye(4), **how).to_bytes()


FILES = {  # twelve files, the window to read them in, and the values that they hold
    "plain": (dicom(), (0, 2000), CT / 2000),
    "inverted": (dicom(photometric="MONOCHROME1"), (0, 2000), 1 - CT / 2000),
    "rescaled": (dicom(slope=1, intercept=-1024), (-1024, 976), CT / 2000),
    "steep": (dicom(slope=2.5, intercept=10), (10, 5010), CT / 2000),
    "inverted and rescaled": (dicom(photometric="MONOCHROME1", slope=2, intercept=-5), (-5, 3995), 1 - CT / 2000),
    "windowed": (dicom(), (500, 1500), ((CT - 500.0) / 1000).clip(0, 1)),
    "8 bits": (dicom((CT % 256).astype(np.uint8)), None, (CT % 256) / 255),
    "8 bits inverted": (dicom((CT % 256).astype(np.uint8), photometric="MONOCHROME1"), None, 1 - (CT % 256) / 255),
    "signed": (dicom(CT.astype(np.int16) - 1000, signed=True, stored=16), (-1000, 1000), CT / 2000),
    "16 bits": (dicom(CT * 30, stored=16), (0, 60000), CT / 2000),
    "colour": (dicom(np.stack([CT % 256] * 3, -1).astype(np.uint8), photometric="RGB"), None, (CT % 256) / 255),
    "one frame": (dicom(CT[None], frames=1), (0, 2000), CT / 2000),
}


@pytest.mark.parametrize("name", FILES)
def test_twelve_files_decode_to_known_values(name):
    data, window, wanted = FILES[name]
    np.testing.assert_allclose(read_image(data, window=window).image[0], wanted, atol=1e-6)


def test_a_picture_of_several_is_chosen():
    stack = np.stack([CT, CT // 2, CT // 4])
    data = dicom(stack, frames=3)
    with pytest.raises(DataError, match=r"holds 3 pictures; wanted one. Choose one: frame: middle"):
        read_image(data, window=(0, 2000))
    for frame, i in (("middle", 1), (2, 2), (0, 0)):
        np.testing.assert_allclose(read_image(data, window=(0, 2000), frame=frame).image[0], stack[i] / 2000, atol=1e-6)
    with pytest.raises(DataError, match="has no picture 3; it holds 3 pictures, 0 to 2"):
        read_image(data, window=(0, 2000), frame=3)


def test_values_beyond_eight_bits_need_a_window():
    with pytest.raises(DataError, match="needs an intensity window"):
        read_image(dicom(slope=1, intercept=-1024))


@pytest.mark.parametrize("compressed", [False, True])
def test_slices_of_a_volume(compressed):
    import gzip

    volume = RNG.integers(-100, 100, (8, 9, 5)).astype(np.int16)
    data = gzip.compress(nifti(volume)) if compressed else nifti(volume)
    image = read_image(data, window=(-100, 100), frame=3).image[0]
    np.testing.assert_allclose(image, np.rot90((volume[:, :, 3] + 100) / 200), atol=1e-6)
    with pytest.raises(DataError, match="holds 5 slices"):
        read_image(data, window=(-100, 100))


def test_a_table_and_a_manifest_choose_slices(tmp_path):
    volume = RNG.integers(0, 255, (16, 16, 4)).astype(np.uint8)
    (tmp_path / "set").mkdir()
    rows = ["image_path,label,split"]
    for n, (split, label) in enumerate([("train", "well"), ("test", "well"), ("test", "ill")]):
        (tmp_path / f"set/v{n}.nii").write_bytes(nifti(volume + n))
        rows += [f"v{n}.nii#{i},{label},{split}" for i in (1, 2)]
    (tmp_path / "set/table.csv").write_text("\n".join(rows))
    splits = opened(tmp_path, FACTS | {"kind": "table", "file": "set/table.csv"})
    np.testing.assert_allclose(splits.train.images[1][0], np.rot90(volume[:, :, 2]) / np.float32(255), atol=1e-6)
    (tmp_path / "set/table.csv").write_text(
        "\n".join(["image_path,label,split", *sorted({r.replace("#1", "") for r in rows if "#1" in r})])
    )
    middle = opened(tmp_path, FACTS | {"kind": "table", "file": "set/table.csv"}, frame="middle")
    assert middle.train.images[0].equal(splits.train.images[1])


# --- nothing leaks -----------------------------------------------------------------------------------


def test_no_header_field_appears_in_a_run_or_a_report(tmp_path):
    for split, name, n in (("train", "well", 20), ("train", "ill", 0), ("test", "well", 4), ("test", "ill", 4)):
        for i in range(n):
            path = tmp_path / f"set/{split}/{name}/{i}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dicom(RNG.integers(0, 4000, (16, 16), np.uint16)))
    written(tmp_path / "own.yaml", FOLDER, intensity=[0, 4095])
    assert main(["run", "--dataset", str(tmp_path / "own.yaml"), "--preset", "smoke", "--methods", "stats_knn"]) == 0
    written_files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert len(written_files) > 5
    for path in written_files:
        content = path.read_bytes()
        assert not any(word.encode() in content for word in ("Quux", "Zyzzyva", "4711")), path


def injure(n, seed):
    """Damage n DICOM files: each is read in [0, 1] or refused in one sentence that repeats nothing of its header."""
    rng, data = random.Random(seed), FILES["rescaled"][0]
    for _ in range(n):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] ^= rng.randrange(1, 256)
        broken = bytes(broken[: rng.choice([len(broken), rng.randrange(140, len(broken))])])
        try:
            with warnings.catch_warnings(record=True) as aside:
                warnings.simplefilter("always")
                image = read_image(broken, window=(-1024, 976)).image
        except DataError as error:
            one_sentence(error)
            said = str(error)
            harmless = not any(word in said for word in ("Quux", "Zyzzyva", "4711", "PATIENT"))
        else:
            harmless = image.min() >= 0 and image.max() <= 1
        assert harmless and not aside


def test_damaged_dicom_says_nothing_of_its_header():
    injure(150, 0)


@pytest.mark.slow
def test_many_damaged_dicom_files():
    injure(3000, 1)


def test_a_missing_package_is_one_sentence(monkeypatch):
    data, volume = dicom(), nifti(np.zeros((8, 8, 1), np.int16))
    real = builtins.__import__

    def without(name, *rest):
        if name in ("pydicom", "nibabel"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for file, word in ((data, "DICOM needs the package pydicom"), (volume, "NIfTI needs the package nibabel")):
        with pytest.raises(DataError, match=rf"{word}.*diawork\[medical\]"):
            read_image(file, window=(0, 1))
