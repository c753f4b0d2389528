"""Small files that declare much: each is refused by its header, in little memory and time."""

import gzip
import io
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from diawork.base.errors import CheckpointError, DataError
from diawork.data.readers.listing import read_table
from diawork.data.readers.picture import read_image
from diawork.detectors.backbones import read_weights
from tests.test_medical import dicom, nifti

pydicom = pytest.importorskip("pydicom")
LARGEST = 64_000_000 * 4  # bytes of the largest legal picture, as float32


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(n, wbits=15):
    """Return n zeros deflated, without holding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(n >> 20)), packer.flush()])


def png():
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zeros(2**27)) + chunk(b"IEND", b"")


def declared(data, **changes):
    """Return a DICOM file with other entries."""
    file = pydicom.dcmread(io.BytesIO(data))
    for name, value in changes.items():
        setattr(file.file_meta if name == "TransferSyntaxUID" else file, name, value)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def deflated():
    data = dicom()
    n = 132 + 12 + struct.unpack("<I", data[140:144])[0]
    uid = b"1.2.840.10008.1.2.1\0"
    assert uid in data[:n]
    longer = b"1.2.840.10008.1.2.1.99"
    meta = data[144:n].replace(struct.pack("<H", len(uid)) + uid, struct.pack("<H", len(longer)) + longer)
    head = data[:140] + struct.pack("<I", len(meta)) + meta
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (
        head
        + packer.compress(data[n:])
        + b"".join(packer.compress(bytes(2**20)) for _ in range(2**10))
        + packer.flush()
    )


def rle(values, encoded, **changes):
    frames = pydicom.encaps.encapsulate([encoded])
    return declared(dicom(values), TransferSyntaxUID=pydicom.uid.RLELossless, PixelData=frames, **changes)


def rle_segments(*segments):
    offsets = np.cumsum([64, *map(len, segments)])[:-1]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def jpeg(kind, *codes):
    """Return a DICOM file of 10 by 12 px around a compressed picture that says 30,000 by 30,000."""
    at = b"".join(codes)
    return declared(
        dicom(np.zeros((10, 12), np.uint8)), TransferSyntaxUID=kind, PixelData=pydicom.encaps.encapsulate([at])
    )


def huge_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "JPEG")
    data, at = bytearray(buffer.getvalue()), buffer.getvalue().index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
    return bytes(data)


def header_of(shape):
    data = bytearray(nifti(np.zeros((8, 8, 8), np.int16)))
    data[40:56] = struct.pack("<8h", len(shape), *shape, *[1] * (7 - len(shape)))
    return bytes(data)


def pages(n):
    """Return a TIFF of n small pages."""
    buffer = io.BytesIO()
    one = Image.fromarray(np.zeros((4, 4), np.uint8))
    one.save(buffer, "TIFF", save_all=True, append_images=[one] * (n - 1))
    return buffer.getvalue()


def npy():
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    return b"\x93NUMPY\x01\0v\0" + head.ljust(117) + b"\n"


BOMBS = {
    "png of 400 million pixels": (png, "too many|exceeds"),
    "dicom of 400 million pixels": (lambda: declared(dicom(), Rows=20_000, Columns=20_000), "too many"),
    "deflated dicom of 1 GiB": (deflated, "without compression"),
    "rle dicom of 400 million pixels": (
        lambda: rle(np.zeros((10, 12), np.uint8), rle_segments(b"\x81\0" * 10), Rows=20_000, Columns=20_000),
        "too many",
    ),
    "rle dicom with longer runs": (
        lambda: rle(np.zeros((10, 12), np.uint8), rle_segments(b"\x81\0" * 2**20)), "another size",
    ),
    "jpeg in dicom": (lambda: jpeg(pydicom.uid.JPEGBaseline8Bit, huge_jpeg()), "another size"),
    "jpeg 2000 in dicom": (
        lambda: jpeg(pydicom.uid.JPEG2000Lossless, b"\xff\x4f\xff\x51\0\x29\0\0", bytes([0, 0, 99, 0] * 2 + [0] * 8)),
        "another size|damaged",
    ),
    "nii.gz of 5 GiB": (lambda: gzip.compress(header_of((2000, 2000, 700))) + gzip.compress(bytes(2**20)) * 100,
                        "without compression"),
    "nii.gz of one huge slice": (lambda: gzip.compress(header_of((20_000, 20_000, 1))), "too large"),
    "nii.gz that goes on": (
        lambda: gzip.compress(nifti(np.zeros((8, 8, 1), np.uint8))) + gzip.compress(bytes(2**24)) * 64, "",
    ),
    "tiff of 2,000 pages": (lambda: pages(2000), "several pictures"),
    "npy of a million rows": (npy, "its bytes do not hold"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(name):
    make, says = BOMBS[name]
    data, start = make(), time.perf_counter()
    if says:
        with pytest.raises(DataError, match=says) as refused:
            read_image(data, window=(0, 4095))
        assert "\n" not in str(refused.value)
    else:
        assert read_image(data, window=(0, 1)).image.shape == (1, 8, 8)
    assert time.perf_counter() - start < 5


def test_bombs_take_less_memory_than_four_of_the_largest_legal_pictures(tmp_path):
    for n, (make, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{n}").write_bytes(make())
    code = """
        import resource, sys
        from pathlib import Path
        from diawork.base.errors import DiaworkError
        from diawork.data.readers.picture import frames_in, read_image
        import gdcm, nibabel, pydicom
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sorted(Path(sys.argv[1]).iterdir()):
            for read in (lambda path: read_image(path, window=(0, 1)), frames_in):
                try:
                    read(path)
                except DiaworkError:
                    pass
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout.split()[-1]) < 4 * LARGEST


def test_weights_that_declare_more_than_their_file_holds_are_refused(tmp_path):
    torch.save({"w": torch.zeros(1).expand(30_000, 30_000)}, tmp_path / "stride.pt")
    torch.save({"w": torch.zeros(1000)}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in whole.infolist():
            packed.writestr(member.filename, whole.read(member) + bytes(2**24) * ("data/0" in member.filename))
    assert list(read_weights(tmp_path / "whole.pt")) == ["w"]
    for name, says in (("stride", "declare 3,600,000,000 bytes"), ("packed", "are packed into")):
        with pytest.raises(CheckpointError, match=says):
            read_weights(tmp_path / f"{name}.pt")


def test_tables_are_bounded_before_they_are_unpacked(tmp_path, monkeypatch):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = pa.array(np.zeros(300_000, np.int8))
    parquet.write_table(pa.table({f"c{i}": column for i in range(100)}), tmp_path / "wide.parquet")
    with pytest.raises(DataError, match="would hold 30,000,000 cells"):
        read_table(tmp_path / "wide.parquet")
    with zipfile.ZipFile(tmp_path / "sheet.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes(2**21))
    monkeypatch.setattr("diawork.data.readers.listing.MOST_BYTES", 2**20)
    with pytest.raises(DataError, match="too many for a table"):
        read_table(tmp_path / "sheet.xlsx")
    long = pa.table({"image": pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), ["x" * 100_000])})
    parquet.write_table(long, tmp_path / "long.parquet")
    assert len(read_table(tmp_path / "long.parquet")) == 1000
