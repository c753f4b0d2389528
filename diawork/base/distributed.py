"""Several processes that train one model: what each knows of the others, and how they are started and end.

``ALONE`` is a group of one, for which nothing is sent or waited for: a loop reads the same for one process and many.
Processes are started as new interpreters, never by forking: a notebook's kernel may hold a card. Not by torchrun or
`accelerate launch`: they pass no SIGUSR1 on, end with a code of their own whatever a process ended with, and the
latter starts several processes on a CPU through MPI alone. A process finds the variables that they set.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diawork.base.errors import DiaworkError, Interrupted, ProcessDied, out_of_memory
from diawork.base.files import read_json, write_json
from diawork.base.stopping import end_with, handling, stop_at_once

PATIENCE = timedelta(days=7)  # one may wait for another's scoring; who has died is noticed by who started them
POLL = 0.05  # seconds
GRACE, SAVING = 5.0, 60.0  # seconds for the others to end, after one has failed, and after one has been stopped
_STOPPED = {"stopped": True}


class Group:
    """Process ``rank`` of ``size`` that train one model. The first of them leads: it alone writes files.

    Every process computes the loss of the whole batch from its own and the others' features, so that the gradients
    of all, summed, are those of one process.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    @contextlib.contextmanager
    def joined(cls, *, cuda: bool) -> Iterator[Group]:
        """Join the processes that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT name; torchrun sets them, too.

        The group is left at the end of the block; on an error the process ends, and the others notice.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield ALONE
            return
        if cuda:
            torch.cuda.set_device(cls.card())
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
        yield cls(dist.get_rank(), dist.get_world_size())
        dist.destroy_process_group()

    @staticmethod
    def card() -> int:
        """Return the number of this process's card on its machine."""
        return int(os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or 0)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows bars."""
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """Return which of the ``n`` images of a batch are this process's; shares differ by one at most."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def gathered(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return tensors (r, …) with the rows of all processes (Σr, …); gradients reach a process's own rows."""
        if self.size == 1:
            return tensors
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(tensors[0])
        dist.all_reduce(counts)
        start = int(counts[: self.rank].sum())
        place = slice(start, start + len(tensors[0]))
        gathered = []
        for own in tensors:
            rows = own.new_zeros(int(counts.sum()), *own.shape[1:])
            rows[place] = own.detach()
            dist.all_reduce(rows)
            rows[place] = own
            gathered.append(rows)
        return tuple(gathered)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; one that a process lacks counts as zero."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in trained])
        dist.all_reduce(flat)
        for p, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = torch.empty_like(p).copy_(part.view(p.shape))  # in the parameter's memory format

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of x over the processes."""
        total = x.clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Say whether the flag is up in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def on_leader(self, work: Callable[[], Any]) -> Any:
        """Do ``work`` in the leading process alone; return its result, plain values, in all. If stopped, all are."""
        if self.size == 1:
            return work()
        if not self.leads:
            if (received := self._broadcast()) == _STOPPED:
                raise Interrupted("Stopped on request.", hint="The same command goes on.")
            return received["result"]
        try:
            result = work()
        except Interrupted:
            self._broadcast(_STOPPED)
            raise
        self._broadcast({"result": result})
        return result

    @staticmethod
    def _broadcast(value: Any = None) -> Any:
        """Send the leader's value to all as JSON, and return what it sent."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(text)])
        dist.broadcast(length, 0)
        text = text if len(text) == length else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))


ALONE = Group()
Work = Callable[[dict[str, Any], Group], None]  # what was asked, as plain values, and the group to do it in


# --- in the process that starts the others ---------------------------------------------------------


def launch(work: Work, asked: dict[str, Any], *, processes: int, cuda: bool, logs: Path) -> None:
    """Do ``work(asked, group)`` in ``processes`` processes, on a card or a share of the cores each, and wait for them.

    Stop signals are passed on. Where one fails the others are ended, and what it raised is raised here: a user's error
    as itself, anything else as ``ProcessDied``. The first one speaks to whom this process speaks; the others write
    ``logs/process-N.log``, kept where they fail.
    """
    logs.mkdir(parents=True, exist_ok=True)
    written = [logs / f"process-{rank + 1}.log" for rank in range(1, processes)]
    team = Team()
    with tempfile.TemporaryDirectory(prefix="diawork-") as folder, contextlib.ExitStack() as stack:
        write_json(Path(folder) / "asked.json", asked)
        command = [sys.executable, "-c", "from diawork.base.distributed import member; member()"]
        command += [f"{work.__module__}:{work.__qualname__}", folder, str(os.getpid()), str(int(cuda))]
        outputs = [stack.enter_context(_spoken())]
        outputs += [{"stdout": stack.enter_context(open(log, "wb")), "stderr": subprocess.STDOUT} for log in written]
        stack.callback(team.kill)
        with handling(team.stop):
            for variables, output in zip(_variables(processes), outputs, strict=True):
                # in a session of its own, so that Ctrl-C reaches us alone
                how: dict[str, Any] = {
                    "env": variables,
                    "stdin": subprocess.DEVNULL,
                    "start_new_session": True,
                } | output
                team.members.append(subprocess.Popen(command, **how))
            team.watch()
        if trouble := team.trouble(Path(folder)):
            raise trouble
    for log in written:
        log.unlink(missing_ok=True)


def _variables(processes: int) -> list[dict[str, str]]:
    """Return each process's variables: where all meet, who it is, what may be imported, its share of the cores."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, torch.get_num_threads() // processes))
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, dict.fromkeys(sys.path))),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    return [os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


@contextlib.contextmanager
def _spoken() -> Iterator[dict[str, Any]]:
    """Yield the first process's outputs: ours, or a pipe to wherever a notebook's output goes."""
    if sys.stdout is sys.__stdout__:
        yield {}
        return
    reading, writing = os.pipe()

    def repeat() -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while said := pipe.read(65536):
                sys.stdout.write(said.decode("utf-8", "replace"))
                sys.stdout.flush()

    speaker = threading.Thread(target=repeat, daemon=True)
    speaker.start()
    try:
        yield {"stdout": writing, "stderr": writing}
    finally:
        os.close(writing)
        speaker.join(GRACE)


class Team:
    """The processes that were started, and how they end."""

    def __init__(self) -> None:
        self.members: list[subprocess.Popen] = []
        self.stopped = False  # on request
        self.killed: set[int] = set()  # by us

    def watch(self) -> None:
        """Wait until all have ended; where one has failed, the others have a while for it."""
        late: float | None = None
        while None in (codes := [one.poll() for one in self.members]):
            if late is None and any(codes):
                late = time.monotonic() + (SAVING if Interrupted.exit_code in codes else GRACE)
            if late is not None and time.monotonic() > late:
                self.kill()
            time.sleep(POLL)

    def stop(self, number: int, _frame: Any) -> None:
        """Pass the first stop signal on; after a second Ctrl-C nothing is left."""
        if self.stopped and number == signal.SIGINT:
            self.kill()
            raise KeyboardInterrupt
        if not self.stopped:
            self.stopped = True
            for one in self.members:
                if one.poll() is None:
                    one.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End all that run."""
        self.killed |= {rank for rank, one in enumerate(self.members) if one.poll() is None}
        for one in self.members:
            one.kill()
            one.wait()

    def trouble(self, folder: Path) -> DiaworkError | None:
        """Return what to raise: the first failure, of which later ones are echoes; None where all went well."""
        codes = [one.returncode for one in self.members]
        if not any(codes):
            return None
        left = sorted((read_json(path) for path in folder.glob("error-*.json")), key=lambda error: error["time"])
        raised = [error for error in left if error["code"]]
        died = [rank for rank, code in enumerate(codes) if code < 0 and rank not in self.killed]
        if self.stopped and not raised:
            return Interrupted("Stopped; the last checkpoint is intact.", hint="The same command goes on.")
        if self.stopped or (left and not died and left[0]["code"]):  # raise again what was raised there
            first = raised[0]
            kinds = {kind.code: kind for kind in DiaworkError.__subclasses__()}
            kind = kinds.get(first["code"], DiaworkError)
            return kind(first["what"], hint=first["hint"], path=first["path"], field=first["field"])
        if died:
            rank, code = died[0], 128 - codes[died[0]]
            by = signal.Signals(-codes[rank]).name
        elif left:
            print(left[0]["trace"], file=sys.stderr)
            rank, by, code = left[0]["rank"], f"a bug of ours ({left[0]['what']})", 1
        else:  # it could not even say why
            rank = next(rank for rank, code in enumerate(codes) if code)
            by, code = f"exit code {codes[rank]}", 1
        what = f"process {rank + 1} of {len(self.members)} was ended by {by}, and the others with it."
        error = ProcessDied(what, hint="The same command goes on from the last checkpoint.")
        error.exit_code = code
        return error


# --- in a process that was started -----------------------------------------------------------------


def member() -> NoReturn:
    """Do the work that the command line names as one of a group; what goes wrong is left for who started us."""
    work, folder, parent, cuda = sys.argv[1:]
    end_with(int(parent))
    code = 0
    try:
        with stop_at_once(), Group.joined(cuda=cuda == "1") as group:
            module, _, name = work.partition(":")
            getattr(importlib.import_module(module), name)(read_json(Path(folder) / "asked.json"), group)
    except Exception as error:
        code = leave(error, Path(folder))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what the libraries do at their end may wait for a process that is gone


def leave(error: Exception, folder: Path) -> int:
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
