"""Randomness by name: every draw comes from a generator keyed by what it is for, so none needs saving."""

import contextlib
import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch

_GOLDEN, _MIX = np.uint64(0x9E3779B97F4A7C15), (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_LEVELS = 2**16 - 1  # of grey: images that agree at these are the same image


def key(seed: int, *path: str | int) -> int:
    """Return the 63-bit key of ``(seed, *path)``, e.g. ``key(0, "train", 17, "augment")``."""
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a fresh generator for one purpose, e.g. ``generator(0, "train", step, "t")``."""
    return torch.Generator(device).manual_seed(key(seed, *path))


def image_keys(x: torch.Tensor) -> np.ndarray:
    """Return a key for each image's pixels (N, C, H, W) in [0, 1]: (N,) uint64.

    Split, position, folder and batch do not matter: the same picture has the same key wherever it stands.
    """
    levels = ((image.cpu() * _LEVELS).nan_to_num().round().numpy().astype("<i4") for image in x)
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in levels)
    return np.frombuffer(b"".join(digests), "<u8")


class KeyedDraws:
    """Draws for rows that each have a key: a row's values depend on its key and the purpose, not on its company."""

    def __init__(self, keys: np.ndarray, seed: int, *path: str | int) -> None:
        self.keys = keys ^ np.uint64(key(seed, *path))
        self._drawn = 0  # values a row so far

    def rand(self, *shape: int) -> torch.Tensor:
        """Return uniform values in [0, 1) of this shape, a row a key (SplitMix64 of key and position)."""
        count = math.prod(shape[1:])
        positions = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64)
        self._drawn += count
        state = _mixed(self.keys)[:, None] + positions * _GOLDEN  # arrays of uint64 wrap around
        values = (_mixed(state) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
        return torch.from_numpy(values).reshape(shape)


def _mixed(state: np.ndarray) -> np.ndarray:
    """Return SplitMix64's finaliser of 64-bit states."""
    state = (state ^ (state >> np.uint64(30))) * _MIX[0]
    state = (state ^ (state >> np.uint64(27))) * _MIX[1]
    return state ^ (state >> np.uint64(31))


class RowDraws:
    """Draws for some rows of ``of``: those that all of them together would have drawn, whoever works on the others."""

    def __init__(self, generator: torch.Generator, rows: slice | torch.Tensor, of: int) -> None:
        self.generator, self.rows, self.of = generator, rows, of

    def rand(self, *shape: int) -> torch.Tensor:
        """Return uniform values in [0, 1) of this shape."""
        return torch.rand(self.of, *shape[1:], generator=self.generator)[self.rows]

    def randn(self, *shape: int) -> torch.Tensor:
        """Return standard normal values of this shape."""
        return torch.randn(self.of, *shape[1:], generator=self.generator)[self.rows]

    def randint(self, low: int, high: int) -> torch.Tensor:
        """Return a whole number of [low, high) a row."""
        return torch.randint(low, high, (self.of,), generator=self.generator)[self.rows]


Draws = torch.Generator | RowDraws  # of a whole batch, or of some rows of it
Source = Draws | KeyedDraws


def rand(source: Source, *shape: int) -> torch.Tensor:
    """Return uniform values in [0, 1) from a generator, or from draws made row by row."""
    if isinstance(source, torch.Generator):
        return torch.rand(*shape, generator=source)
    return source.rand(*shape)


def randn(source: Draws, *shape: int) -> torch.Tensor:
    """Return standard normal values from a generator, or those of some rows."""
    return torch.randn(*shape, generator=source) if isinstance(source, torch.Generator) else source.randn(*shape)


def randint(source: Draws, low: int, high: int, *, n: int, each: bool = True) -> torch.Tensor:
    """Return n whole numbers of [low, high): one for ``each`` row, or one for all."""
    if isinstance(source, RowDraws) and each:
        return source.randint(low, high)
    generator = source.generator if isinstance(source, RowDraws) else source
    return torch.randint(low, high, (n if each else 1,), generator=generator).expand(n)


@contextlib.contextmanager
def isolated_rng(seed: int, *path: str | int) -> Iterator[None]:
    """Seed torch's global generators for library code inside the block, and put them back after it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key(seed, *path))
        yield
