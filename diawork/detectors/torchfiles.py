"""Reading the weights others have published as torch files, without executing anything that such a file says.

A state dict needs a small alphabet of instructions: numbers, texts, tuples, dictionaries, and tensors over
numbered storages. ``_Machine`` knows these alone and builds plain values; a file that asks for anything else,
such as the import of a function, is refused. Both layouts are read: the archive, and the one before 2020.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from diawork.base.errors import CheckpointError

DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
MAGIC = 0x1950A86A20F9469CFC6C
_KNOWN = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}
_KNOWN |= {("torch", name) for name in DTYPES}
_MARK = object()


class Name(NamedTuple):
    """A name that a file mentions; it stays a name."""

    module: str
    name: str


class Storage(NamedTuple):
    """A run of numbers somewhere else in the file."""

    key: str
    dtype: torch.dtype
    size: int


class Rebuilt(NamedTuple):
    """A tensor as a window on a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a torch file that holds a state dict."""
    path = Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            tensors = parse_safetensors(data)
        else:
            tensors = _archive(data) if zipfile.is_zipfile(io.BytesIO(data)) else _legacy(io.BytesIO(data))
    except FileNotFoundError:
        raise CheckpointError("this file of weights is missing.", path=path) from None
    except Exception as error:  # damaged or hostile input raises a dozen types
        raise CheckpointError(f"not readable as weights ({error}).", path=path) from None
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError("this file does not hold a state dict, a name and a tensor each.", path=path)
    return tensors


def _archive(data: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = index.removesuffix("data.pkl")
        order = root + "byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        found = _Machine(io.BytesIO(archive.read(index))).run()
        return _tensors(found, lambda storage: archive.read(f"{root}data/{storage.key}"))


def _legacy(file: BinaryIO) -> dict[str, Any]:
    if _Machine(file).run() != MAGIC:
        raise ValueError("it does not begin as a torch file")
    _Machine(file).run()  # version
    if not _Machine(file).run().get("little_endian"):
        raise ValueError("its numbers are not little-endian")
    machine = _Machine(file)
    found, keys, data = machine.run(), _Machine(file).run(), {}
    for key in keys:
        storage = machine.storages[key]
        size = struct.unpack("<q", file.read(8))[0]
        if size != storage.size:
            raise ValueError(f"storage {key} has {size} numbers, announced {storage.size}")
        data[key] = file.read(size * storage.dtype.itemsize)
    return _tensors(found, lambda storage: data[storage.key])


def _tensors(found: dict[str, Any], read: Callable[[Storage], bytes]) -> dict[str, Any]:
    """Fill what was rebuilt with numbers; a state dict inside a ``state_dict`` or ``model`` is taken out of it."""
    inner = next((found[name] for name in ("state_dict", "model") if isinstance(found.get(name), dict)), found)
    return {str(name): _tensor(value, read) for name, value in inner.items()}


def _tensor(value: Any, read: Callable[[Storage], bytes]) -> Any:
    if not isinstance(value, Rebuilt):
        return value
    storage, last = (
        value.storage,
        value.offset + sum((n - 1) * s for n, s in zip(value.shape, value.stride, strict=True)),
    )
    if min((value.offset, *value.shape, *value.stride, 0)) < 0 or (0 not in value.shape and last >= storage.size):
        raise ValueError(f"a tensor {value.shape} reaches beyond its {storage.size} numbers")
    if 0 in value.shape:
        return torch.empty(value.shape, dtype=storage.dtype)
    flat = torch.frombuffer(bytearray(read(storage)), dtype=storage.dtype)
    return flat.as_strided(value.shape, value.stride, value.offset).clone(memory_format=torch.contiguous_format)


class _Machine:
    """Follows the instructions of one stream and returns the plain value they build."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """Read until the stream's end mark."""
        while (code := self._take(1)) != b".":
            if code not in _STEPS:
                raise ValueError(f"the instruction {code!r} is not one that weights need")
            _STEPS[code](self)
        return self.stack.pop()

    def _take(self, n: int) -> bytes:
        data = self.file.read(n)
        if len(data) != n:
            raise ValueError("it ends too early")
        return data

    def number(self, layout: str) -> Any:
        """Read one number of a ``struct`` layout."""
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        at = next(i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK)
        self.stack, taken = self.stack[:at], self.stack[at + 1 :]
        return taken

    def last(self, n: int) -> tuple:
        """Take the last n values as a tuple."""
        return tuple(self.stack.pop() for _ in range(n))[::-1]

    def remember(self, key: int) -> None:
        """Note the topmost value."""
        self.memo[key] = self.stack[-1]

    def text(self) -> str:
        """Read a text with its length in front."""
        return self._take(self.number("<I")).decode()

    def name(self) -> Name:
        """Read a name of the few that a state dict mentions."""
        name = Name(*(self.file.readline().decode().rstrip("\n") for _ in range(2)))
        if name not in _KNOWN:
            raise ValueError(f"it asks for {name.module}.{name.name}, which no weights need")
        return name

    def storage(self) -> Storage:
        """Turn ("storage", type, key, place, size, …) into a storage."""
        kind, dtype, key, _, size, *_ = self.stack.pop()
        if kind != "storage":
            raise ValueError(f"it refers to {kind!r}, not to a storage")
        return self.storages.setdefault(key, Storage(key, DTYPES[dtype.name], size))

    def call(self) -> Any:
        """Build one of the three things that may be built."""
        what, arguments = self.last(2)
        match what.name:
            case "OrderedDict":
                return dict(*arguments)
            case "_rebuild_tensor_v2":
                return Rebuilt(*arguments[:4])
            case "_rebuild_parameter":
                return arguments[0]
        raise ValueError(f"{what.name} builds nothing")

    def items(self, pairs: list[Any]) -> None:
        """Put key, value, key, value … into the dictionary on top."""
        self.stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.number("B"),  # protocol
    b"(": lambda m: m.push(_MARK),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.number("B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"G": lambda m: m.push(m.number(">d")),
    b"\x8a": lambda m: m.push(int.from_bytes(m._take(m.number("B")), "little", signed=True)),
    b"X": lambda m: m.push(m.text()),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.push(m.last(1)),
    b"\x86": lambda m: m.push(m.last(2)),
    b"\x87": lambda m: m.push(m.last(3)),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.stack[-2].append(m.stack.pop()),
    b"e": lambda m: (lambda more: m.stack[-1].extend(more))(m.since_mark()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.items(list(m.last(2))),
    b"u": lambda m: m.items(m.since_mark()),
    b"q": lambda m: m.remember(m.number("B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"h": lambda m: m.push(m.memo[m.number("B")]),
    b"j": lambda m: m.push(m.memo[m.number("<I")]),
    b"c": lambda m: m.push(m.name()),
    b"Q": lambda m: m.push(m.storage()),
    b"R": lambda m: m.push(m.call()),
    b"b": lambda m: m.last(1),  # attributes of a dictionary: its metadata, not needed
}
