"""Starting several processes of this interpreter for one work, never by forking: a notebook's kernel may hold a card.

Not by torchrun or `accelerate launch`: they pass no SIGUSR1 on, end with a code of their own whatever a process ended
with, and the latter starts several processes on a CPU through MPI alone. A process finds the variables that they set.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from diawork.base.errors import DiaworkError, Interrupted, ProcessDied, out_of_memory
from diawork.base.files import read_json, write_json
from diawork.base.processes.group import Group
from diawork.base.stopping import end_with, handling, stop_at_once

Work = Callable[[dict[str, Any], Group], None]  # what was asked, as plain values, and the group to do it in
POLL = 0.05  # seconds
GRACE, SAVING = 5.0, 60.0  # seconds for the others to end, after one has failed, and after one has been stopped


def launch(work: Work, asked: dict[str, Any], *, processes: int, cuda: bool, logs: Path) -> None:
    """Do ``work(asked, group)`` in ``processes`` processes, on a card or a share of the cores each, and wait for them.

    Stop signals are passed on. Where one fails the others are ended, and what it raised is raised here: a user's error
    as itself, anything else as ``ProcessDied``. The first one speaks to whom this process speaks; the others write
    ``logs/process-N.log``, kept where they fail.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="diawork-") as folder, contextlib.ExitStack() as stack:
        write_json(Path(folder) / "asked.json", asked)
        command = [sys.executable, "-m", "diawork.base.processes.launch", f"{work.__module__}:{work.__qualname__}"]
        command += [folder, str(os.getpid()), str(int(cuda))]
        written = [logs / f"process-{rank + 1}.log" for rank in range(1, processes)]
        outputs = [stack.enter_context(_speaking())]
        outputs += [{"stdout": stack.enter_context(open(log, "wb")), "stderr": subprocess.STDOUT} for log in written]
        environments = _environments(processes)
        with _passing_on() as team:
            for environment, output in zip(environments, outputs, strict=True):
                team.start(command, environment, output)
            team.watch()
        if trouble := team.trouble(Path(folder)):
            raise trouble
        for log in written:
            log.unlink(missing_ok=True)


def _environments(processes: int) -> list[dict[str, str]]:
    """Return each process's variables: where all meet, who it is, what may be imported, its share of the cores."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    threads = str(max(1, torch.get_num_threads() // processes))
    path = os.pathsep.join(map(os.path.abspath, dict.fromkeys(sys.path)))
    shared = meeting | {"LOCAL_WORLD_SIZE": str(processes), "PYTHONPATH": path}
    shared |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    return [os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


@contextlib.contextmanager
def _speaking() -> Iterator[dict[str, Any]]:
    """Yield the first process's outputs: ours, or a pipe to wherever a notebook's output goes."""
    if sys.stdout is sys.__stdout__:
        yield {}
        return
    reading, writing = os.pipe()
    speaker = threading.Thread(target=_repeat, args=(reading, sys.stdout), daemon=True)
    speaker.start()
    try:
        yield {"stdout": writing, "stderr": writing}
    finally:
        os.close(writing)
        speaker.join(GRACE)


def _repeat(reading: int, out: Any) -> None:
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while said := pipe.read(65536):
            out.write(said.decode("utf-8", "replace"))
            out.flush()


class _Team:
    """The processes that were started, and how they end."""

    def __init__(self) -> None:
        self.members: list[subprocess.Popen] = []
        self.stopped = False  # on request
        self.killed: set[int] = set()  # by us

    def start(self, command: list[str], environment: dict[str, str], output: dict[str, Any]) -> None:
        """Start one, in a group of its own, so that Ctrl-C reaches us alone."""
        self.members.append(
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **output)
        )

    def watch(self) -> None:
        """Wait until all have ended; where one has failed, the others have a while for it."""
        late: float | None = None
        while None in (codes := [one.poll() for one in self.members]):
            if late is None and any(codes):
                saving = Interrupted.exit_code in codes
                late = time.monotonic() + (SAVING if saving else GRACE)
            if late is not None and time.monotonic() > late:
                self.kill()
            time.sleep(POLL)

    def tell(self, number: int) -> None:
        """Send a signal to all that run."""
        for one in self.members:
            if one.poll() is None:
                one.send_signal(number)

    def kill(self) -> None:
        """End all that run."""
        self.killed |= {rank for rank, one in enumerate(self.members) if one.poll() is None}
        for one in self.members:
            one.kill()
            one.wait()

    def trouble(self, folder: Path) -> DiaworkError | None:
        """Return what to raise: the first failure, of which later ones are echoes; None where all went well."""
        codes = [one.returncode for one in self.members]
        left = sorted((read_json(path) for path in folder.glob("error-*.json")), key=lambda error: error["time"])
        raised = [error for error in left if error["code"]]
        died = [rank for rank, code in enumerate(codes) if code < 0 and rank not in self.killed]
        if not any(codes):
            return None
        if self.stopped:
            hint = "The same command goes on."
            return _again(raised[0]) if raised else Interrupted("Stopped; the last checkpoint is intact.", hint=hint)
        if died:
            return self._lost(died[0], signal.Signals(-codes[died[0]]).name, 128 - codes[died[0]])
        if left:
            if (first := left[0])["code"]:
                return _again(first)
            print(first["trace"], file=sys.stderr)
            return self._lost(first["rank"], f"a bug of ours ({first['what']})", 1)
        rank = next(rank for rank, code in enumerate(codes) if code)  # it could not even say why
        return self._lost(rank, f"exit code {codes[rank]}", 1)

    def _lost(self, rank: int, by: str, code: int) -> ProcessDied:
        what = f"process {rank + 1} of {len(self.members)} was ended by {by}, and the others with it."
        error = ProcessDied(what, hint="The same command goes on from the last checkpoint.")
        error.exit_code = code
        return error


def _again(left: dict[str, Any]) -> DiaworkError:
    """Return the error that a process left, as it was raised there."""
    kinds = {kind.code: kind for kind in DiaworkError.__subclasses__()}
    kind = kinds.get(left["code"], DiaworkError)
    return kind(left["what"], hint=left["hint"], path=left["path"], field=left["field"])


@contextlib.contextmanager
def _passing_on() -> Iterator[_Team]:
    """Yield a team to which stop signals are passed on, the first one once; after a second Ctrl-C nothing is left."""
    team = _Team()

    def stop(number: int, _frame: Any) -> None:
        if team.stopped and number == signal.SIGINT:
            team.kill()
            raise KeyboardInterrupt
        if not team.stopped:
            team.stopped = True
            team.tell(signal.SIGTERM)

    try:
        with handling(stop):
            yield team
    finally:
        team.kill()


# --- inside a process -----------------------------------------------------------------------------------


def member(work: str, folder: str, parent: str, cuda: str) -> int:
    """Do a work, named as module:function, as one of a group; what goes wrong is left for who started us."""
    end_with(int(parent))
    try:
        with stop_at_once(), Group.join(cuda=cuda == "1").membership() as group:
            module, _, name = work.partition(":")
            getattr(importlib.import_module(module), name)(read_json(Path(folder) / "asked.json"), group)
        return 0
    except Exception as error:
        return _left(error, Path(folder))


def _left(error: Exception, folder: Path) -> int:
    """Write what went wrong, and when, since others' later errors may be its echo; return the exit code."""
    error = out_of_memory(error) or error
    left: dict[str, Any] = {"time": time.time(), "rank": int(os.environ["RANK"]), "code": ""}
    if isinstance(error, DiaworkError):
        path = None if error.path is None else str(error.path)
        left |= {"code": error.code, "what": error.what, "hint": error.hint, "path": path, "field": error.field}
    else:
        left |= {"what": f"{type(error).__name__}: {error}", "trace": "".join(traceback.format_exception(error))}
    with contextlib.suppress(DiaworkError):
        write_json(folder / f"error-{left['rank']}.json", left)
    return error.exit_code if isinstance(error, DiaworkError) else 1


if __name__ == "__main__":
    code = member(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what the libraries do at their end may wait for a process that is gone
