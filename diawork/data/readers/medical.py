"""DICOM and NIfTI, behind the extra ``medical``: their values after rescaling, and nothing else that a file says.

No header field leaves this room: not in an image, not in a note, not in a sentence about what is wrong.
"""

from __future__ import annotations

import gzip
import io
import warnings
from types import ModuleType
from typing import Literal

import numpy as np

from diawork.base.errors import DataError, DiaworkError
from diawork.data.preprocess import Stored

Frame = int | Literal["middle"] | None
GZIP = b"\x1f\x8b"
MOST_BYTES = 2**31  # of a volume without compression
_EXTRA = 'Install it with pip install "diawork[medical]".'


def is_dicom(data: bytes) -> bool:
    """Say whether a file begins as DICOM does."""
    return data[128:132] == b"DICM"


def is_nifti(data: bytes) -> bool:
    """Say whether a file is NIfTI-1 in one piece, compressed or not."""
    if data.startswith(GZIP):
        try:
            with gzip.open(io.BytesIO(data)) as f:
                data = f.read(348)
        except (OSError, EOFError, ValueError):
            return False
    return data[344:348] == b"n+1\0"


def dicom_values(data: bytes, frame: Frame) -> Stored:
    """Return one picture of a DICOM file after its rescale slope and intercept; MONOCHROME1 is told as inverted."""
    pydicom = _package("pydicom", "DICOM")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they may quote a field of the header
            file = pydicom.dcmread(io.BytesIO(data))
            photometric = str(file.get("PhotometricInterpretation", ""))
            frames = int(file.get("NumberOfFrames", 1) or 1)
            slope, intercept = float(file.get("RescaleSlope", 1) or 1), float(file.get("RescaleIntercept", 0) or 0)
            lookup = "ModalityLUTSequence" in file
            values = np.asarray(file.pixel_array)
            position = _chosen(frames, frame, "pictures")
            values = values if frames == 1 else values[position]
    except DiaworkError:
        raise
    except Exception:  # what pydicom says may quote a field of the header
        raise DataError("this DICOM file is damaged, or compressed in a way that cannot be read here.") from None
    if lookup:
        raise DataError("this DICOM file maps its values by a table; only slope and intercept are read.")
    if photometric not in ("MONOCHROME1", "MONOCHROME2", "RGB"):
        raise DataError("this DICOM file is neither grey nor RGB.", hint="Convert it to MONOCHROME2 or RGB.")
    if photometric != "RGB" and (slope, intercept) != (1, 0):
        values = values.astype(np.float64) * slope + intercept
    return Stored(values, photometric == "MONOCHROME1")


def nifti_values(data: bytes, frame: Frame) -> Stored:
    """Return one slice of a NIfTI volume across its last axis, after its scaling, turned as it is usually seen."""
    nibabel = _package("nibabel", "NIfTI")
    try:
        plain = data
        if data.startswith(GZIP):
            with gzip.open(io.BytesIO(data)) as f:
                plain = f.read(MOST_BYTES + 1)
        if len(plain) > MOST_BYTES:
            raise DataError(f"the volume is larger than {MOST_BYTES:,} bytes.")
        volume = np.asarray(nibabel.Nifti1Image.from_bytes(plain).dataobj)
    except DiaworkError:
        raise
    except Exception:  # what nibabel says may quote a field of the header
        raise DataError("this NIfTI file is damaged.") from None
    if set(volume.shape[3:]) <= {1}:
        volume = volume.reshape(*volume.shape[:2], -1)
    if volume.ndim != 3 or volume.dtype.kind not in "uif":
        raise DataError(f"holds {volume.dtype} {volume.shape}; wanted one volume of numbers.")
    return Stored(np.rot90(volume[..., _chosen(volume.shape[2], frame, "slices")]))


def _chosen(n: int, frame: Frame, what: str) -> int:
    """Return the position that ``frame`` means among n."""
    if frame is None and n > 1:
        hint = 'Choose one: frame: middle or a number in the manifest, or "file#12" in a table.'
        raise DataError(f"holds {n} {what}; wanted one.", hint=hint)
    if frame == "middle":
        return n // 2
    position = frame or 0
    if not 0 <= position < n:
        raise DataError(f"has no picture {position}; it holds {n} {what}, 0 to {n - 1}.")
    return position


def _package(name: str, kind: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError:
        raise DataError(f"reading {kind} needs the package {name}.", hint=_EXTRA) from None
