"""DICOM and NIfTI, behind the extra ``medical``: their values after rescaling, and nothing else that a file says.

No header field leaves this room: not in an image, not in a sentence about what is wrong. Sizes are read from the
header, and what is too large is refused before anything is decoded. A NIfTI volume is turned to x right, y front,
z up (RAS); its pictures lie across z, or across the axis that "x12" or "y12" names.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import math
import os
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from diawork.base.errors import DataError, DiaworkError
from diawork.data.preprocess import PassingFault, Stored, parse_npy

Frame = int | str | None  # a number, "middle", or an axis of a volume before either: "x12", "ymiddle"
GZIP = b"\x1f\x8b"
MOST_BYTES, MOST_INFLATED = 2**30, 2**28  # of a volume, of a deflated DICOM file, without compression
MOST_PIXELS = 64_000_000
GREY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
DEFLATED, RLE, EXTENDED = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.51"
_EXTRA = 'Install it with pip install "diawork[medical]".'
_LIBJPEG = "Install it with pip install pylibjpeg pylibjpeg-libjpeg (GPL), or convert the file."


def is_dicom(data: bytes) -> bool:
    """Say whether a file begins as DICOM does, with its preamble or without."""
    return data[128:132] == b"DICM" or re.match(rb"\x02\0[\0-\2]\0[UO]|\x08\0[\0\1\5\x08\x16\x18]\0", data) is not None


def is_nifti(data: bytes) -> bool:
    """Say whether a file is NIfTI-1 in one piece, compressed or not."""
    return _nifti_head(data)[344:348] == b"n+1\0"


def _nifti_head(data: bytes) -> bytes:
    if not data.startswith(GZIP):
        return data[:348]
    try:
        return gzip.GzipFile(fileobj=io.BytesIO(data)).read(348)
    except (OSError, EOFError, zlib.error):
        return b""


def frames_in(data: bytes) -> dict[str, int]:
    """Return how many pictures a DICOM file ({"": n}) or a NIfTI volume ({"x": n, "y": n, "z": n}) holds.

    The axis with the coarsest voxels comes first, where it is half as coarse again as the others; else z.
    """
    if is_dicom(data):
        return {"": _dicom(data)[1]}
    header, shape = _nifti_header(data)
    nibabel = _package("nibabel", "NIfTI")
    axes, _ = _orientation(nibabel, header)
    sides, spacing = np.ones(3, int), np.ones(3)
    for axis, to in enumerate(axes[:, 0].astype(int)):
        sides[to], spacing[to] = shape[axis], abs(float(header["pixdim"][1 + axis]))
    coarse = int(spacing.argmax())
    first = coarse if spacing[coarse] >= 1.5 * np.delete(spacing, coarse).max() else 2
    return {"xyz"[axis]: int(sides[axis]) for axis in sorted(range(3), key=lambda axis: (axis != first, -axis))}


# --- DICOM ---------------------------------------------------------------------------------------------


def dicom_values(data: bytes, frame: Frame) -> Stored:
    """Return one picture of a DICOM file after its rescale slope and intercept; MONOCHROME1 is told as inverted."""
    pydicom = _package("pydicom", "DICOM")
    file, frames = _dicom(data)
    position = _chosen({"": frames}, frame, "pictures")[1]
    with _unquoted("this DICOM file is damaged, or compressed in a way that cannot be read here."):
        if "ModalityLUTSequence" in file:
            raise DataError("this DICOM file maps its values by a table; only slope and intercept are read.")
        photometric = str(file.get("PhotometricInterpretation", ""))
        if photometric not in (*GREY, *COLOUR, "PALETTE COLOR"):
            raise DataError("this DICOM file is neither grey nor in colour.", hint="Convert it to MONOCHROME2 or RGB.")
        height, width = int(file.Rows), int(file.Columns)
        if height * width > MOST_PIXELS:
            raise DataError(f"{width}×{height} px are too many (at most {MOST_PIXELS:,}).")
        if file.file_meta.TransferSyntaxUID.is_encapsulated:
            encoded = pydicom.encaps.get_frame(file.PixelData, position, number_of_frames=frames)
            _refuse_larger(encoded, height, width, rle=file.file_meta.TransferSyntaxUID == RLE)
            values = _decoded(pydicom, file, data, position)
        else:
            values = np.asarray(pydicom.pixels.pixel_array(file, index=position))  # YBR becomes RGB
        if photometric == "PALETTE COLOR":
            values = pydicom.pixels.apply_color_lut(values, file)
            values = (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
        if photometric not in GREY:
            return Stored(values)
        slope, intercept = _rescaling(file, position)
        if (slope, intercept) != (1, 0):
            values = values.astype(np.float64)
            values *= slope
            values += intercept
        return Stored(values, photometric == "MONOCHROME1", hounsfield=file.get("Modality") == "CT")


def _dicom(data: bytes) -> tuple[Any, int]:
    """Return the data set of a DICOM file, its pixels not yet decoded, and how many pictures it holds."""
    pydicom = _package("pydicom", "DICOM")
    with _unquoted("this DICOM file is damaged."):
        f = io.BytesIO(data)
        pydicom.filereader.read_preamble(f, force=True)
        meta = pydicom.filereader._read_file_meta_info(f)
        if meta.get("TransferSyntaxUID") == DEFLATED:
            inflate, n = zlib.decompressobj(-zlib.MAX_WBITS), 0
            left = data[f.tell() :]
            while left and n <= MOST_INFLATED:
                n += len(inflate.decompress(left, 2**20))
                left = inflate.unconsumed_tail
            if n > MOST_INFLATED:
                raise DataError(f"the file takes more than {MOST_INFLATED:,} bytes without compression.")
        file = pydicom.dcmread(io.BytesIO(data), force=True)
        if "PixelData" not in file and "FloatPixelData" not in file and "DoubleFloatPixelData" not in file:
            raise DataError("this DICOM file holds no picture.")
        if "TransferSyntaxUID" not in file.file_meta:  # a file without preamble and meta group
            implicit = file.original_encoding[0]
            uid = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
            file.file_meta.TransferSyntaxUID = uid
        return file, int(file.get("NumberOfFrames", 1) or 1)


def _rescaling(file: Any, position: int) -> tuple[float, float]:
    """Return slope and intercept of a picture: of its own functional group, of the shared one, or of the file."""
    own, shared = file.get("PerFrameFunctionalGroupsSequence"), file.get("SharedFunctionalGroupsSequence")
    groups = ([own[position]] if own and position < len(own) else []) + ([shared[0]] if shared else [])
    places = [group.PixelValueTransformationSequence[0] for group in groups
              if group.get("PixelValueTransformationSequence")] + [file]  # fmt: skip
    place = next((place for place in places if "RescaleSlope" in place or "RescaleIntercept" in place), file)
    return float(place.get("RescaleSlope", 1) or 1), float(place.get("RescaleIntercept", 0) or 0)


def _decoded(pydicom: ModuleType, file: Any, data: bytes, position: int) -> np.ndarray:
    """Return a compressed picture; ``PassingFault`` where the package that decodes this compression is missing."""
    uid = file.file_meta.TransferSyntaxUID
    decoder = pydicom.pixels.get_decoder(uid)
    if uid == EXTENDED and file.BitsStored > 8 and "pylibjpeg" not in decoder.available_plugins:
        raise PassingFault("this DICOM file is JPEG of 12 bits, which needs pylibjpeg-libjpeg.", hint=_LIBJPEG)
    if not decoder.is_available:
        raise PassingFault(f"this DICOM file is compressed ({uid.name}), which needs python-gdcm.", hint=_EXTRA)
    for plugin in sorted(set(decoder.available_plugins) - {"gdcm"}):
        with contextlib.suppress(Exception):  # the next one may read it
            return np.asarray(pydicom.pixels.pixel_array(file, index=position, decoding_plugin=plugin))
    with _TURN:  # gdcm aborts its process on a damaged file, so it has one of its own
        child = _gdcm.get(os.getpid())
        if child is None or child.poll() is not None:
            pipe = subprocess.PIPE
            command = [sys.executable, "-c", _CHILD]
            child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            _gdcm[os.getpid()] = child
        ask, answer = child.stdin, child.stdout
        assert ask is not None and answer is not None
        ask.write(struct.pack("<qq", len(data), position) + data)
        ask.flush()
        return parse_npy(answer.read(*struct.unpack("<q", answer.read(8))))


_gdcm: dict[int, subprocess.Popen[bytes]] = {}  # by process: the child in which gdcm decodes
_TURN = threading.Lock()
_CHILD = """
import io, struct, sys, numpy, pydicom, pydicom.pixels
while head := sys.stdin.buffer.read(16):
    size, index = struct.unpack("<qq", head)
    file = pydicom.dcmread(io.BytesIO(sys.stdin.buffer.read(size)), force=True)
    out = io.BytesIO()
    numpy.save(out, pydicom.pixels.pixel_array(file, index=index, decoding_plugin="gdcm"))
    sys.stdout.buffer.write(struct.pack("<q", out.tell()) + out.getvalue())
    sys.stdout.buffer.flush()
"""


def _refuse_larger(encoded: bytes, height: int, width: int, *, rle: bool) -> None:
    """Refuse a compressed picture whose own header, or whose runs, say more pixels than the DICOM header."""
    size: Any = (height, width)
    at = encoded.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000: SOC, SIZ
    if rle:
        n, *offsets = np.frombuffer(encoded, "<u4", 16).tolist()
        ends = [*offsets[1:n], len(encoded)]
        size = all(_runs(encoded[a:b], height * width) for a, b in zip(offsets[:n], ends, strict=True)) and size
    elif at >= 0:
        x, y, x0, y0 = np.frombuffer(encoded, ">u4", 4, offset=at + 8).tolist()
        size = (y - y0, x - x0)
    elif encoded.startswith(b"\xff\xd8"):
        at = 2
        while encoded[at + 1] not in {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}:  # a frame header's markers
            at += 1 if encoded[at + 1] == 0xFF else 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        size = tuple(np.frombuffer(encoded, ">u2", 2, offset=at + 5).tolist())
    if size != (height, width):
        raise DataError("this DICOM file is damaged: its compressed picture has another size than its header says.")


def _runs(segment: bytes, most: int) -> bool:
    """Say whether a segment of RLE decodes to at most ``most`` bytes and its padding."""
    at = n = 0
    while at < len(segment) and n <= most + 1:
        head = segment[at]
        at += head + 2 if head < 128 else 1 + (head > 128)
        n += head + 1 if head < 128 else (257 - head) % 129
    return n <= most + 1


# --- NIfTI ---------------------------------------------------------------------------------------------


def nifti_values(data: bytes, frame: Frame) -> Stored:
    """Return one slice of a NIfTI volume after its scaling: z or y up in the picture, x or y to its right."""
    volume, slope, intercept, note = _volume(data)
    sides = {"z": volume.shape[2], "y": volume.shape[1], "x": volume.shape[0]}
    axis, position = _chosen(sides, frame, "slices")
    values = np.rot90(np.take(volume, position, "xyz".index(axis)))
    return Stored(values if (slope, intercept) == (1, 0) else values * slope + intercept, note=note)


@functools.lru_cache(maxsize=1)  # its slices are read one after the other
def _volume(data: bytes) -> tuple[np.ndarray, float, float, str]:
    """Return a volume (x, y, z) as stored, but turned to RAS, its slope and intercept, and what a reader must know."""
    nibabel = _package("nibabel", "NIfTI")
    header, shape = _nifti_header(data)
    with _unquoted("this NIfTI file is damaged."):
        dtype, offset = header.get_data_dtype(), int(header["vox_offset"])
        size = math.prod(shape) * dtype.itemsize
        whole = io.BytesIO(data) if not data.startswith(GZIP) else gzip.GzipFile(fileobj=io.BytesIO(data))
        if not 348 <= offset <= 2**24 or len(whole.read(offset)) < offset:  # extensions lie before the values
            raise DataError("this NIfTI file is damaged.")
        volume = np.frombuffer(whole.read(size), dtype).reshape(shape, order="F")
        axes, note = _orientation(nibabel, header)
        slope, intercept = header.get_slope_inter()
        return nibabel.apply_orientation(volume, axes), 1 if slope is None else slope, intercept or 0, note


def _nifti_header(data: bytes) -> tuple[Any, tuple[int, int, int]]:
    """Return the header of a NIfTI file and the volume's shape (3,), each number held against what may be read."""
    nibabel = _package("nibabel", "NIfTI")
    with _unquoted("this NIfTI file is damaged."):
        header = nibabel.Nifti1Header(_nifti_head(data), check=False)
        shape, dtype = tuple(map(int, header.get_data_shape())), header.get_data_dtype()
    if not 2 <= len(shape) <= 7 or min(shape) < 1 or set(shape[3:]) > {1} or dtype.kind not in "uif":
        raise DataError(f"holds {dtype} {shape}; wanted one volume of numbers.")
    x, y, z = (*shape, 1)[:3]
    if x * y * z * dtype.itemsize > MOST_BYTES:
        raise DataError(f"the volume takes more than {MOST_BYTES:,} bytes without compression.")
    if max(x * y, x * z, y * z) > MOST_PIXELS:
        raise DataError(f"its slices of {x}×{y}×{z} px are too large (at most {MOST_PIXELS:,} px).")
    return header, (x, y, z)


def _orientation(nibabel: ModuleType, header: Any) -> tuple[np.ndarray, str]:
    """Return which axis of RAS each stored axis is and its sign (3, 2), and what was turned in words."""
    if not (header["sform_code"] or header["qform_code"]):
        return np.array([[0, 1], [1, 1], [2, 1]]), "NIfTI volumes that tell no orientation, taken as they lie"
    with _unquoted("this NIfTI file is damaged."):
        axes = nibabel.io_orientation(header.get_best_affine())
        if not np.isfinite(axes).all():
            raise DataError("this NIfTI file is damaged.")
        code = "".join(nibabel.orientations.ornt2axcodes(axes))
    return axes, "" if code == "RAS" else f"NIfTI volumes stored in the order {code}, turned to RAS"


# --- both ----------------------------------------------------------------------------------------------


def _chosen(sides: dict[str, int], frame: Frame, what: str) -> tuple[str, int]:
    """Return the axis and the place on it that ``frame`` means; ``sides`` are axis → pictures, the usual one first."""
    axis, number = next(iter(sides)), frame
    if isinstance(frame, str) and frame[:1] in sides:
        axis, number = frame[0], frame[1:]
    n = sides[axis]
    if number is None and n > 1:
        hint = 'Choose one: frame: middle or a number in the manifest, or "file#12" in a table.'
        raise DataError(f"holds {n} {what}; wanted one.", hint=hint)
    if number == "middle":
        return axis, n // 2
    position = int(number or 0) if str(number or 0).isdecimal() else -1
    if not 0 <= position < n:
        raise DataError(f"has no picture {frame}; it holds {n} {what}, 0 to {n - 1}.")
    return axis, position


@contextlib.contextmanager
def _unquoted(what: str) -> Iterator[None]:
    """Turn whatever a library raises into one ``DataError`` of our own words: its own may quote a header's field."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (DiaworkError, MemoryError):
            raise
        except Exception:
            raise DataError(what) from None


def _package(name: str, kind: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError:
        raise PassingFault(f"reading {kind} needs the package {name}.", hint=_EXTRA) from None
