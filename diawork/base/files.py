"""Durable files: whole or not there, and hashed."""

import ast
import contextlib
import functools
import hashlib
import io
import json
import math
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from pydantic import TypeAdapter, ValidationError

from diawork.base.errors import CheckpointError, ResourceError

Record = TypeVar("Record")
PACKAGE = Path(__file__).resolve().parent.parent
_TEMPORARY = re.compile(r"^\..+\.(\d+)\.tmp$")


def shipped(name: str) -> Path:
    """Return a folder that comes with the package: inside it where installed, beside it in a checkout."""
    installed = PACKAGE / f"_{name.removeprefix('data_')}"
    return installed if installed.is_dir() else PACKAGE.parent / name


def home_cache() -> Path:
    """Return this user's ~/.cache, or for one without a home a folder beside the system's temporary files."""
    home = os.path.expanduser("~")
    return Path(tempfile.gettempdir(), "cache") if home.startswith("~") else Path(home, ".cache")


def require_room(*folders: Path | str) -> None:
    """Refuse folders, or the nearest above them that exist, in which nothing can be written."""
    for folder in map(Path, folders):
        nearest = next((one for one in (folder, *folder.absolute().parents) if one.is_dir()), folder)
        try:
            with tempfile.TemporaryFile(dir=nearest) as probe:
                probe.write(bytes(2**20))
        except OSError as error:
            hint = "Free some space, or choose another folder."
            raise ResourceError(f"nothing can be written here ({error.strerror}).", path=nearest, hint=hint) from None


def write_bytes(path: Path | str, data: bytes | memoryview) -> str:
    """Write ``data`` to ``path`` so that a crash or a full disk leaves the old file or the new; return its SHA-256."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        if os.name != "nt":  # a folder cannot be opened there
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        what = f"cannot write {len(data):,} bytes ({error.strerror or error})."
        way_out = "Choose another folder with --out or $DIAWORK_HOME, or free some space"
        raise ResourceError(what, path=path, hint=f"{way_out}; nothing already written was harmed.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # gone already where the rename succeeded
    return hashlib.sha256(data).hexdigest()


def write_array(path: Path | str, array: np.ndarray) -> str:
    """Write an array as ``.npy`` durably; return its SHA-256."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return write_bytes(path, buffer.getbuffer())


def write_arrays(path: Path | str, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays by name as a compressed ``.npz`` artefact and return its SHA-256."""
    buffer = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(buffer, **named)
    return write_bytes(path, buffer.getvalue())


def write_text(path: Path | str, text: str) -> str:
    """Write UTF-8 text durably; return its SHA-256."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> str:
    """Write JSON durably (sorted keys, no NaN); return its SHA-256."""
    return write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_value(text: str) -> Any:
    """Return what ``text`` says as JSON or as a Python literal; ``ValueError`` where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    raise ValueError(f"{text!r:.80} is neither JSON nor a Python literal")


def as_json(value: Any) -> Any:
    """Return a value as a JSON file gives it back; ``ValueError`` for what none can hold: inf, NaN, sets, torn text."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return json.loads(text)


def nulled(value: Any) -> Any:
    """Return plain values with null in the place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: nulled(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [nulled(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def read_json(path: Path | str) -> Any:
    """Read a JSON artefact; a missing or damaged one is a ``CheckpointError``."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise CheckpointError("this file is missing.", path=path) from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"not readable as JSON ({error}).", path=path) from None


def read_record(kind: type[Record], path: Path | str) -> Record:
    """Read a JSON artefact as the typed dict that its writer wrote; one that holds anything else is refused."""
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
        raise CheckpointError(f"edited, or of another version ({what}).", path=path) from None


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` artefact, checksums included; a damaged one is a ``CheckpointError``."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
        read = functools.partial(np.lib.format.read_array, allow_pickle=False)
        return {name: read(io.BytesIO(data)) for name, data in members.items()}
    except FileNotFoundError:
        raise CheckpointError("this file is missing.", path=path) from None
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types on damaged input
        raise CheckpointError(f"not readable as arrays ({error}).", path=path) from None


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest(value: Any, length: int = 12) -> str:
    """Return a short hex digest of a JSON-able value: the identity of a config, a data set, a run."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def remove_orphans(folder: Path) -> list[Path]:
    """Remove temporary files of writers that are no longer alive; return what was removed."""
    removed = []
    for path in folder.glob(".*.tmp") if folder.is_dir() else ():
        match = _TEMPORARY.match(path.name)
        if match and not process_alive(int(match[1])):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def process_alive(pid: int, age: float = 0.0) -> bool:
    """Say whether a process with this id, at least ``age`` seconds old, runs here; a zombie does not."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and time.time() - process.create_time() >= age
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.Error:  # another user's
        return True
