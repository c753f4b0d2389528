"""One process at a time in a folder: a lock file with a heartbeat, on any file system."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diawork.base.errors import BusyError, ResourceError
from diawork.base.files import process_alive

BEAT, STALE = 30.0, 180.0  # seconds between heartbeats, and after which another machine's lock is left behind
POLL = 0.5  # seconds between looks while waiting
GUARD_AGE = 20.0  # seconds after which whoever was taking a lock over is gone


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False, say: Callable[[str], Any] = print) -> Iterator[None]:
    """Hold a folder for this process; where a living one holds it, wait for it or raise ``BusyError``.

    A lock is left behind when its process is gone, or, on another machine, when its heartbeat has
    stopped for three minutes; then it is taken over, and said so.
    """
    lock = folder / "lock.json"
    mine = {"pid": os.getpid(), "host": socket.gethostname()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        told = False
        while other := _take(lock, mine, say):
            if not wait:
                hint = f"Wait for it; if it is gone, remove {lock}."
                raise BusyError(f"{_who(other)} is working here.", path=folder, hint=hint)
            if not told:
                say(f"waiting for {_who(other)}, which is working on {folder.name}")
            told = True
            time.sleep(POLL)
    except OSError as error:
        raise ResourceError(f"cannot be locked ({error.strerror or error}).", path=folder) from error
    ended = threading.Event()
    threading.Thread(target=_beat, args=(lock, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if _content(lock) == mine:
            lock.unlink(missing_ok=True)


def holder(folder: Path) -> dict[str, Any] | None:
    """Return pid and host of the living process that holds a folder, if there is one."""
    lock = folder / "lock.json"
    owner = _content(lock)
    try:
        pid = int(owner.get("pid") or 0)
    except (TypeError, ValueError):
        return None
    if not pid:
        return None
    same_machine = owner.get("host") == socket.gethostname()
    alive = process_alive(pid) if same_machine else _age(lock) <= STALE
    return owner if alive else None


def _content(lock: Path) -> dict[str, Any]:
    try:
        content = json.loads(lock.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}  # torn: its writer was killed


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}"


def _take(lock: Path, mine: dict[str, Any], say: Callable[[str], Any]) -> dict[str, Any] | None:
    """Write the lock; return its living holder where there is one. Only one process takes over at a time."""
    if _create(lock, mine):
        return None
    if (other := holder(lock.parent)) and other != mine:
        return other
    guard = lock.with_suffix(".takeover")
    if not _create(guard, mine):
        if _age(guard) > GUARD_AGE:
            guard.unlink(missing_ok=True)
        return _content(guard) or {"pid": "?", "host": "?"}
    try:
        if (other := holder(lock.parent)) and other != mine:
            return other
        left = _content(lock)
        os.replace(_written(lock, mine), lock)
        if left and left != mine:
            say(f"took over {lock.parent.name}, left by {_who(left)}")
        return None
    finally:
        guard.unlink(missing_ok=True)


def _written(path: Path, content: dict[str, Any]) -> Path:
    temporary = path.with_name(f".{path.name}-{threading.get_ident()}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content))
    return temporary


def _create(path: Path, content: dict[str, Any]) -> bool:
    """Make a file with its content in one step; say whether it was not there before."""
    temporary = _written(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with open(path, "x") as f:
                json.dump(content, f)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _age(path: Path) -> float:
    """Return the seconds since a file was touched, by the clock of its file system."""
    try:
        probe = _written(path, {})
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return now - path.stat().st_mtime
    except OSError:
        return 0.0


def _beat(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(lock)
