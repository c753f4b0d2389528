"""Stopping on request: loops save first, everything else stops at once, the same command goes on later."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from diawork.base.errors import Interrupted

_SIGNALS = [getattr(signal, s) for s in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT") if hasattr(signal, s)]
_PR_SET_PDEATHSIG = 1
_asked = threading.Event()
_active: Callable[[int, Any], None] | None = None  # our handler, while one is installed


class StopNow(KeyboardInterrupt):
    """A stop asked for where nothing needs saving; no ``except Exception`` on its way swallows it."""


@contextlib.contextmanager
def graceful_stop() -> Iterator[None]:
    """Turn SIGTERM, SIGHUP, SIGUSR1 and the first Ctrl-C inside the block into a request to save and stop.

    For loops that call ``raise_if_stopping``; a request that none of them saw is raised at the end of
    the block, so everything must be saved inside it. A second Ctrl-C raises ``KeyboardInterrupt``.
    """
    if threading.current_thread() is not threading.main_thread() or _active is _ask:
        yield
        return
    try:
        with handling(_ask):
            yield
        raise_if_stopping()
    finally:
        _asked.clear()


@contextlib.contextmanager
def stop_at_once() -> Iterator[None]:
    """Turn the same signals into ``Interrupted`` wherever the code is; a ``graceful_stop`` inside takes over."""
    ours = threading.current_thread() is threading.main_thread() and _active is None
    try:
        with handling(_stop) if ours else contextlib.nullcontext():
            yield
    except StopNow:
        raise Interrupted("Stopped on request; what was finished is kept.", hint="The same command goes on.") from None


@contextlib.contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Install ``handler`` for the signals that stop; one that is ignored from outside (nohup) stays ignored."""
    global _active
    if threading.current_thread() is not threading.main_thread():  # signals reach the main one alone
        yield
        return
    before = {number: old for number in _SIGNALS if (old := signal.getsignal(number)) not in (None, signal.SIG_IGN)}
    outer, _active = _active, handler
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        _active = outer


def _ask(signum: int, _frame: Any) -> None:
    if signum == signal.SIGINT and _asked.is_set():
        raise KeyboardInterrupt
    _asked.set()


def _stop(_signal: int, _frame: Any) -> None:
    raise StopNow


def stop_requested() -> bool:
    """Say whether a stop was asked for."""
    return _asked.is_set()


def raise_if_stopping() -> None:
    """Raise ``Interrupted`` where a stop was asked for."""
    if stop_requested():
        stop()


def stop() -> NoReturn:
    """Raise ``Interrupted``, everything being saved."""
    raise Interrupted("Stopped on request; everything is saved.", hint="The same command goes on.")


def end_with(parent: int) -> None:
    """Be stopped when the process ``parent`` ends (Linux; elsewhere the locks prevent double work)."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we could ask
        os._exit(Interrupted.exit_code)
