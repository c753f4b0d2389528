"""PNG files beyond what Pillow says of them: checksums of every chunk, and colours of 16 bits a channel."""

import struct
import zlib
from typing import NamedTuple

import numpy as np

from diawork.base.errors import DataError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # of the colour types that hold no palette


class Header(NamedTuple):
    """What a PNG file says of its picture."""

    width: int
    height: int
    bits: int
    colour: int  # 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha
    interlaced: bool


def checked(data: bytes) -> tuple[Header, bytes]:
    """Return the header and the compressed pixels of a PNG file, of which every chunk's CRC-32 holds."""
    at, chunks = len(SIGNATURE), list[tuple[bytes, bytes]]()
    while not chunks or chunks[-1][0] != b"IEND":
        if len(data) < at + 12:
            raise ValueError("it ends too early")
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if data[at + 8 + length : at + 12 + length] != zlib.crc32(kind + body).to_bytes(4, "big"):
            raise ValueError(f"the checksum of its part {kind.decode('latin-1')!r} is wrong")
        chunks.append((kind, body))
        at += 12 + length
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise ValueError("its header cannot be read")
    width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    return Header(width, height, bits, colour, bool(interlace)), b"".join(b for k, b in chunks if k == b"IDAT")


def deep_colours(header: Header, compressed: bytes) -> np.ndarray:
    """Return uint16 (H, W, C) of a picture of 16 bits a channel, of which Pillow reads the upper 8 alone."""
    if header.interlaced:
        raise DataError("this PNG of 16 bits a colour is interlaced.", hint="Save it without interlacing.")
    height, width, depth = header.height, header.width, 2 * CHANNELS[header.colour]
    size = height * (1 + width * depth)
    inflate = zlib.decompressobj()
    raw = inflate.decompress(compressed, size + 1)
    if len(raw) != size or not inflate.eof:
        raise ValueError(f"holds {len(raw):,} bytes of pixels, wanted {size:,}")
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * depth)
    values = unfiltered(rows[:, 0], rows[:, 1:].reshape(height, width, depth))
    return np.ascontiguousarray(values).view(">u2").astype(np.uint16)


def unfiltered(kinds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Undo the filters (H,) of PNG rows uint8 (H, W, B).

    A byte depends on those to its left, above and above left, so all of one diagonal are known at once.
    """
    if kinds.max() > 4:
        raise ValueError(f"the row filter {kinds.max()} does not exist")
    height, width, depth = rows.shape
    out = np.zeros((height + 1, width + 1, depth), np.int16)  # black above and to the left
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left, above, corner = out[y + 1, x], out[y, x + 1], out[y, x]
        a, b, c = np.abs(above - corner), np.abs(left - corner), np.abs(left + above - 2 * corner)
        nearest = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))  # Paeth's predictor
        options = np.stack([np.zeros_like(left), left, above, (left + above) // 2, nearest])
        out[y + 1, x + 1] = (rows[y, x] + options[kinds[y], np.arange(len(y))]) & 255
    return out[1:, 1:].astype(np.uint8)
