"""The one door to papermill: run a notebook headless with typed parameters."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from traitlets.config import Config

from diawork.base.errors import DiaworkError, Interrupted, UsageError, did_you_mean
from diawork.base.files import as_json, read_value, require_room, shipped
from diawork.base.stopping import handling

_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str, "int": int, "float": (int, float), "bool": bool, "dict": dict, "list": list,
}  # fmt: skip


LIVE_FACE = "application/vnd.jupyter.widget-view+json"
KERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
LONGEST_SOCKET = 90  # characters of a socket's folder; systems allow about 100
INTERRUPT_EVERY, KILL_AFTER = 3.0, 60.0  # seconds, once a stop was asked for


class NotebookError(DiaworkError):
    """A cell of a headless notebook raised; ``trace`` holds the last lines of its traceback."""

    code, exit_code = "N700", 7
    trace: list[str] = []


class KernelDied(NotebookError):
    """The kernel of a headless notebook ended in the middle, killed from outside or out of memory."""

    code = "N710"


def find_notebook(name: str | Path) -> Path:
    """Return the path of a notebook given by path, name or number ("03")."""
    if Path(name).suffix == ".ipynb" and Path(name).exists():
        return Path(name)
    known = list_notebooks()
    for path in known:
        if str(name) in (path.name, path.stem, path.stem[:2]):
            return path
    raise UsageError(f"{str(name)!r} is not a notebook.", hint=did_you_mean(name, [p.stem for p in known]))


def list_notebooks() -> list[Path]:
    """Return the numbered notebooks in their order."""
    return sorted(shipped("notebooks").glob("*.ipynb"))


def shared_parameters(notebooks: Sequence[Path], given: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each notebook the parameters that it has; one that none has is refused."""
    known = [notebook_parameters(path) for path in notebooks]
    for name in given:
        if not any(name in names for names in known):
            raise UsageError(f"no notebook has a parameter {name!r}.", hint=did_you_mean(name, set().union(*known)))
    return [{name: value for name, value in given.items() if name in names} for names in known]


def notebook_parameters(notebook: Path) -> dict[str, dict[str, str]]:
    """Return name → {inferred_type_name, default, help} from the cell tagged "parameters"."""
    try:
        return papermill.inspect_notebook(str(notebook))
    except Exception as error:  # papermill, nbformat and json each raise their own
        what = f"not a notebook that papermill can read ({type(error).__name__})."
        raise UsageError(what, path=notebook, hint="Open it in JupyterLab and save it again.") from None


def defaults(known: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return name → default of notebook parameters; one that is no literal is left out."""
    literals = {}
    for name, facts in known.items():
        with contextlib.suppress(ValueError, SyntaxError):
            literals[name] = ast.literal_eval(facts["default"])
    return literals


def typed_parameters(notebook: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Check ``values`` against the notebook's parameters; strings are read as the declared type.

    Raises ``UsageError`` for an unknown name (papermill would only log it) or another type.
    """
    known = notebook_parameters(notebook)
    typed = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{name!r} is not a parameter of {notebook.name}.", hint=did_you_mean(name, known))
        declared = known[name]["inferred_type_name"]
        kind = declared.split("[")[0].strip()
        if isinstance(value, str) and kind in _TYPES and kind != "str":
            try:
                value = read_value(value)
            except ValueError:
                raise UsageError(f"{name}={value!r:.80} is not a {kind}, in JSON or in Python.") from None
        require_type(name, value, declared)
        typed[name] = as_json(value)
    return typed


def require_type(name: str, value: Any, declared: str) -> None:
    """Refuse a value that is not of the type which the notebook declares for ``name``, or that no notebook can hold."""
    kind = declared.split("[")[0].strip()
    wanted = _TYPES.get(kind, object)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind in ("int", "float")):
        raise UsageError(f"{name}={value!r:.80} is a {type(value).__name__}; wanted {kind}.")
    try:
        as_json(value)
    except ValueError:
        what = "a notebook stores finite numbers, UTF-8 text, and lists and dicts of them"
        raise UsageError(f"{name}={value!r:.80} cannot be stored: {what}.") from None


def run_notebook(
    name: str | Path,
    out: Path | str,
    *,
    parameters: dict[str, Any] | None = None,
    timeout: int | None = None,
    progress: bool = True,
) -> Path:
    """Run a notebook headless and write the executed copy to ``out``.

    The kernel is this interpreter's, over IPC where the system has it (no ports); widget state is
    not stored. Raises ``NotebookError`` naming the cell and the error; the copy shows both. A SIGTERM,
    SIGUSR1 or Ctrl-C interrupts the kernel, whose loops save, and becomes ``Interrupted``.
    """
    source, out = find_notebook(name), Path(out)
    typed = typed_parameters(source, parameters or {})
    partial = out.with_name(f".{out.name}")
    require_room(out.parent, os.environ.get("IPYTHONDIR") or os.path.expanduser("~"))  # a kernel writes there, too
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="diawork-") as sockets, _stopping(kernels := _Kernels(sockets)):
            papermill.execute_notebook(
                str(source), str(partial), parameters=typed, kernel_name="python3", store_widget_state=False,
                progress_bar=progress, execution_timeout=timeout, start_timeout=300,
                kernel_manager_class=kernels.manager(), config=kernels.config,
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        cell = f"cell {error.exec_count}" if error.exec_count else "a cell"
        failed = NotebookError(f"{cell} raised {error.ename}: {error.evalue}", path=out)
        failed.trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()[-20:]
        raise failed from None
    except DeadKernelError:
        raise KernelDied("the kernel died; it was killed, or memory ran out.", path=out) from None
    except RuntimeError as error:  # of nbclient
        if "Kernel" not in str(error):
            raise
        raise KernelDied(f"no kernel could be started ({error}).", path=out, hint="See `diawork doctor`.") from None
    finally:
        if partial.exists():
            _without_live_faces(partial)
            os.replace(partial, out)
    cells = [cell for cell in papermill.iorw.load_notebook_node(str(out)).cells if cell.cell_type == "code"]
    if any(cell.source and cell.execution_count is None for cell in cells):
        raise NotebookError("the notebook ended before its last cell.", path=out)
    return out


class _Kernels:
    """Starts this interpreter as papermill's kernel, knows its process, and gives its sockets a folder of their own.

    A kernelspec is not looked up: one named python3 may lie anywhere and start another Python. By default the
    sockets of two kernels that start in one folder have the same names.
    """

    def __init__(self, folder: str) -> None:
        self._started: AsyncKernelManager | None = None
        place = {"transport": "ipc", "ip": f"{folder}/k"}
        short = sys.platform != "win32" and len(folder) < LONGEST_SOCKET
        self.config = Config({"KernelManager": place if short else {}})

    def manager(self) -> type[AsyncKernelManager]:
        """Return the class that nbclient makes its kernel from."""
        kernels = self

        class Manager(AsyncKernelManager):
            @property
            def kernel_spec(self) -> KernelSpec:
                return KernelSpec(argv=KERNEL, display_name="Python 3", language="python")

            def __init__(self, *args: Any, **kw: Any) -> None:
                super().__init__(*args, **kw)
                kernels._started = self

        return Manager

    @property
    def pid(self) -> int | None:
        """Return the kernel's process, once there is one."""
        return getattr(getattr(self._started, "provisioner", None), "pid", None)


def _without_live_faces(path: Path) -> None:
    """Leave of each widget what needs no kernel: the picture beside it, and of a progress bar nothing."""
    nb = papermill.iorw.load_notebook_node(str(path))
    for cell in nb.cells:
        live = [output for output in cell.get("outputs", []) if output.get("data", {}).pop(LIVE_FACE, None)]
        for output in live:
            if output.data.keys() == {"text/plain"}:
                cell.outputs.remove(output)
    papermill.iorw.write_ipynb(nb, str(path))


@contextlib.contextmanager
def _stopping(kernels: _Kernels) -> Iterator[None]:
    """Pass a stop on to the kernel, again and again, then kill it; afterwards raise ``Interrupted``."""
    stopping, ended = threading.Event(), threading.Event()

    def press(_signal: int, _frame: Any) -> None:
        if not stopping.is_set():
            stopping.set()
            threading.Thread(target=_interrupt, args=(kernels, ended), daemon=True).start()

    try:
        with handling(press):
            yield
    except Exception:
        if not stopping.is_set():
            raise
    finally:
        ended.set()
    if stopping.is_set():
        raise Interrupted("Stopped on request; what was saved is kept.", hint="The same command goes on.")


def _interrupt(kernels: _Kernels, ended: threading.Event) -> None:
    """Interrupt the running cell, which may save; SIGTERM, repeated, is the same to a loop that saves."""
    start, number = time.monotonic(), signal.SIGINT
    while not ended.is_set():
        if time.monotonic() - start > KILL_AFTER + 10:
            os._exit(Interrupted.exit_code)  # its client does not come back
        pid = kernels.pid
        if pid:
            with contextlib.suppress(OSError):
                os.kill(pid, number if time.monotonic() - start < KILL_AFTER else signal.SIGKILL)
            number = signal.SIGTERM
        ended.wait(INTERRUPT_EVERY if pid else 0.1)
