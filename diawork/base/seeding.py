"""Randomness by name: every draw comes from a generator keyed by what it is for, so none needs saving."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def key(seed: int, *path: str | int) -> int:
    """Return the 63-bit key of ``(seed, *path)``, e.g. ``key(0, "train", 17, "augment")``."""
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a fresh generator for one purpose, e.g. ``generator(0, "train", step, "t")``."""
    return torch.Generator(device).manual_seed(key(seed, *path))


@contextlib.contextmanager
def isolated_rng(seed: int, *path: str | int) -> Iterator[None]:
    """Seed torch's global generators for library code inside the block, and put them back after it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key(seed, *path))
        yield
