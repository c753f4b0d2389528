"""One process at a time in a folder: a lease of filelock, whose heartbeat says that its holder lives."""

import contextlib
import functools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import SoftFileLease, Timeout

from diawork.base.errors import BusyError, ResourceError
from diawork.base.files import process_alive

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BEAT, STALE = 30.0, 180.0  # seconds between heartbeats, and after which another machine's lock is left behind
TORN = 5.0  # seconds after which the writer of a lock without a record is gone
POLL = 0.5  # seconds between looks while waiting
REMIND = 600.0  # seconds between reminders of what is waited for
CLOCK = 2.0  # seconds by which two clocks may differ


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False, say: Callable[[str], Any] = print) -> Iterator[None]:
    """Hold a folder for this process; where a living one holds it, wait for it or raise ``BusyError``.

    A lock is left behind when its process is gone, or, on another machine, when its heartbeat has
    stopped for three minutes; then it is taken over, and said so.
    """
    lease = _lease(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lease, folder, wait=wait, say=say)
    except OSError as error:
        raise ResourceError(f"cannot be locked ({error.strerror or error}).", path=folder) from error
    try:
        yield
    finally:
        lease.release()


class Holder(NamedTuple):
    """A process that holds a folder."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def holder(folder: Path) -> Holder | None:
    """Return the living process that holds a folder, if there is one.

    On this machine a process that started after the lock's last heartbeat is another one with the same number.
    """
    owner, silent = _owner(_lease(folder)), _age(folder / "lock")
    if owner is None:
        return None
    alive = process_alive(owner.pid, age=silent - CLOCK) if owner.host == _this_machine() else silent <= STALE
    return owner if alive else None


def _acquire(lease: SoftFileLease, folder: Path, *, wait: bool, say: Callable[[str], Any]) -> None:
    hint = f"if it hangs, end it; if it is gone, remove {lease.lock_file}"
    began, told = time.monotonic(), -math.inf
    while True:
        with _one_taker(folder):
            owner, living = _owner(lease), holder(folder)
            # What filelock leaves for a while or for ever: the lock of a zombie, of a silent machine, or one whose
            # writer was killed before it wrote who it is.
            if not living and (owner or _age(folder / "lock") > TORN):
                lease.force_break()
            if not living:
                with contextlib.suppress(Timeout):
                    lease.acquire(blocking=False)
                    if owner:
                        say(f"took over {folder.name}, left by {owner}")
                    return
        if living and not wait:
            raise BusyError(f"{living} is working here.", path=folder, hint=f"Wait for it; {hint}.")
        if living and time.monotonic() - told > REMIND:
            minutes = (time.monotonic() - began) / 60
            since = f" for {minutes:.0f} minutes" if minutes >= 1 else ""
            sign = f"its last sign of life is {_age(folder / 'lock'):.0f} s old"
            say(f"waiting{since} for {living}, which is working on {folder.name} ({sign}); {hint}")
            told = time.monotonic()
        time.sleep(POLL)


@contextlib.contextmanager
def _one_taker(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time look who holds a folder and take it; its end lets go of it."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lease(folder: Path) -> SoftFileLease:
    return SoftFileLease(folder / "lock", lease_duration=STALE, heartbeat_interval=BEAT)


def _owner(lease: SoftFileLease) -> Holder | None:
    """Return who wrote the lock, alive or not."""
    return Holder(record.pid, record.hostname) if (record := lease.owner) else None


@functools.cache
def _this_machine() -> str | None:
    """Return the name that filelock gives to this machine; it tells containers with one host name apart."""
    with tempfile.TemporaryDirectory() as folder, _lease(Path(folder)) as lease:
        return lease.owner.hostname if lease.owner else None


def _age(path: Path) -> float:
    """Return the seconds since a file was touched, by the clock of its file system."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            return os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime
    except OSError:
        return 0.0
