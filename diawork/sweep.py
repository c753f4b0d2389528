"""The one door to papermill: run a notebook headless with typed parameters."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import Any

import papermill
from traitlets.config import Config

from diawork.errors import DiaworkError, UsageError, did_you_mean

_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str, "int": int, "float": (int, float), "bool": bool, "dict": dict, "list": list,
}  # fmt: skip


class NotebookError(DiaworkError):
    """A cell of a headless notebook raised."""

    code, exit_code = "N700", 7


def notebook_folder() -> Path:
    """Return where the numbered notebooks are: in the checkout or inside the installed package."""
    here = Path(__file__).parent
    return next(p for p in (here / "_notebooks", here.parent / "notebooks") if p.is_dir())


def find_notebook(name: str | Path) -> Path:
    """Return the path of a notebook given by path, name or number ("03")."""
    if Path(name).suffix == ".ipynb" and Path(name).exists():
        return Path(name)
    known = sorted(notebook_folder().glob("*.ipynb"))
    for path in known:
        if str(name) in (path.name, path.stem, path.stem[:2]):
            return path
    raise UsageError(f"{str(name)!r} is not a notebook.", hint=did_you_mean(name, [p.stem for p in known]))


def notebook_parameters(notebook: Path) -> dict[str, dict[str, str]]:
    """Return name → {inferred_type_name, default, help} from the cell tagged "parameters"."""
    return papermill.inspect_notebook(str(notebook))


def typed_parameters(notebook: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Check ``given`` against the notebook's parameters; strings are read as the declared type.

    Raises ``UsageError`` for an unknown name (papermill would only log it) or another type.
    """
    known = notebook_parameters(notebook)
    typed = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{name!r} is not a parameter of {notebook.name}.", hint=did_you_mean(name, known))
        typed[name] = _typed(name, value, known[name]["inferred_type_name"])
    return typed


def _typed(name: str, value: Any, declared: str) -> Any:
    kind = declared.split("[")[0].strip()
    wanted = _TYPES.get(kind)
    if wanted is None:
        return value
    if isinstance(value, str) and kind != "str":
        try:
            value = float(value) if kind == "float" else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise UsageError(f"{name}={value!r} is not a {kind}.") from None
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        raise UsageError(f"{name}={value!r} is a {type(value).__name__}; wanted {kind}.")
    return value


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
    not stored. Raises ``NotebookError`` naming the cell and the error; the copy shows both.
    """
    source, out = find_notebook(name), Path(out)
    typed = typed_parameters(source, parameters or {})
    partial = out.with_name(f".{out.name}")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(
            str(source), str(partial), parameters=typed, kernel_name="python3", store_widget_state=False,
            progress_bar=progress, execution_timeout=timeout, start_timeout=300, **_transport(),
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        cell = f"cell {error.exec_count}" if error.exec_count else "a cell"
        raise NotebookError(f"{cell} raised {error.ename}: {error.evalue}", path=out) from None
    finally:
        if partial.exists():
            os.replace(partial, out)
    return out


def _transport() -> dict[str, Any]:
    return {} if sys.platform == "win32" else {"config": Config({"KernelManager": {"transport": "ipc"}})}
