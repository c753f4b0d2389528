"""Checkpoints: one safetensors file with its record in the metadata, verified before use; nothing is ever unpickled.

The record holds the spec and the data that the tensors belong to, the versions that made them, and a SHA-256 of itself
and the tensors. Loading goes parse → hash → finite → spec → shape and dtype. Files of format 1 are read, too: pairs of
``NAME.safetensors`` and ``NAME.json``.
"""

import copy
import hashlib
import itertools
import json
import platform
import shutil
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialize_safetensors
from torch import nn

from diawork.base.config import Model, validated
from diawork.base.distributed import ALONE, Group
from diawork.base.errors import CheckpointError, ResourceError, UsageError
from diawork.base.files import read_json, remove_orphans, write_bytes
from diawork.base.registry import name_of
from diawork.base.stopping import stop, stop_requested

Tensors = dict[str, torch.Tensor]
FORMAT = 2
RECORD = "diawork"  # key of the record in a file's metadata; a second key would have no fixed place
REMOVE = "Remove it, and it is made anew."
MOST_DIFFERENCES = 15  # rows of the table
_T = TypeVar("_T")


class Checkpoint(NamedTuple):
    """Verified content of one checkpoint."""

    tensors: Tensors
    spec: dict[str, Any]
    state: dict[str, Any]
    versions: dict[str, str]
    path: Path

    def value(self, name: str, kind: type[_T]) -> _T:
        """Return ``state[name]``; ``CheckpointError`` where it is missing or of another type."""
        value = self.state.get(name)
        if not isinstance(value, kind):
            what = f"the record's {name!r} is {type(value).__name__}, wanted {kind.__name__}."
            raise CheckpointError(what, path=self.path)
        return value

    def config(self, model: type[Model], values: Any) -> Model:
        """Return the config written in it as ``values``; ``CheckpointError`` where it is none of ours."""
        try:
            return validated(model, values or {})
        except UsageError as error:
            raise CheckpointError(f"its config is not one of ours ({error}).", path=self.path) from None

    def refuse_others(self, *prefixes: str) -> None:
        """Raise ``CheckpointError`` for a tensor whose name starts with none of the prefixes."""
        others = [name for name in self.tensors if not name.startswith(prefixes)]
        if others:
            raise CheckpointError(f"the tensor {others[0]!r:.80} does not belong here.", path=self.path)


def named(**parts: Tensors) -> Tensors:
    """Return the tensors of several parts, each under ``part.name``."""
    return {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def save_checkpoint(path: Path, tensors: Tensors, *, spec: dict, state: dict) -> None:
    """Write ``path``.safetensors, whole or not at all.

    ``spec`` says what the tensors belong to and is compared on loading, ``state`` is the rest.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    record = {"format": FORMAT, "spec": spec, "state": state, "versions": _versions()}
    record = json.loads(json.dumps(record, allow_nan=False))
    text = json.dumps(record | {"sha256": _sha256(record, tensors)}, sort_keys=True)
    write_bytes(path.with_suffix(".safetensors"), serialize_safetensors(tensors, {RECORD: text}))
    path.with_suffix(".json").unlink(missing_ok=True)  # of a pair of format 1 that this replaces


def has_checkpoint(path: Path) -> bool:
    """Say whether something was saved at ``path`` by ``save_checkpoint``."""
    return path.with_suffix(".safetensors").exists()


def _versions() -> dict[str, str]:
    return {"torch": str(torch.__version__), "python": platform.python_version(), "machine": platform.machine()}


def _sha256(record: dict[str, Any], tensors: Tensors) -> str:
    """Return the hash of a record and of its tensors' names, types, shapes and bytes."""
    known = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        known.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        known.update(value.flatten().view(torch.uint8).numpy().data)
    return known.hexdigest()


def load_checkpoint(path: Path, *, spec: dict | None = None) -> Checkpoint:
    """Return the verified content of the file at ``path``, which must belong to ``spec`` where that is known."""
    file = path.with_suffix(".safetensors")
    try:
        data = file.read_bytes()
        tensors = parse_safetensors(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"cannot be read ({getattr(error, 'strerror', None) or error}).", path=file) from None
    except Exception as error:  # a hostile header, an exotic dtype: the parser and torch raise many types
        raise CheckpointError(f"not a safetensors file ({error}).", path=file) from None
    record = _record(file, metadata[RECORD], tensors) if RECORD in metadata else _record_of_format_1(path, data)
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"tensor {bad[0]!r} holds values that are not finite.", path=file)
    record["spec"] |= {"kind": name_of(str(record["spec"]["kind"]))} if "kind" in record["spec"] else {}
    if spec is not None:
        refuse_differences(path, record["spec"], spec)
    return Checkpoint(tensors, record["spec"], record["state"], record["versions"], path)


def _record(file: Path, text: str, tensors: Tensors) -> dict[str, Any]:
    """Return the record in a file's metadata, whose hash must be that of record and tensors."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    parts = ("spec", "state", "versions")
    if not isinstance(record, dict) or not all(isinstance(record.get(part), dict) for part in parts):
        raise CheckpointError("the record in its metadata is none of ours.", path=file)
    if record.get("format") != FORMAT:
        raise CheckpointError(f"its record is of format {record.get('format')!r:.20}, wanted {FORMAT}.", path=file)
    if record.pop("sha256", None) != _sha256(record, tensors):
        raise CheckpointError("the file is damaged: its SHA-256 is not the recorded one.", path=file, hint=REMOVE)
    return record


def _record_of_format_1(path: Path, data: bytes) -> dict[str, Any]:
    """Return the record beside the tensors, which holds their SHA-256 and a seal over itself."""
    file = path.with_suffix(".json")
    if not file.exists():
        raise CheckpointError("it holds no record of ours.", path=path.with_suffix(".safetensors"), hint=REMOVE)
    record = read_json(file)
    if not isinstance(record, dict) or record.get("format") != 1:
        raise CheckpointError("not a checkpoint record of format 1.", path=file)
    seal = record.pop("seal", None)
    if seal != hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest():
        raise CheckpointError("the file is damaged: its seal does not fit its content.", path=file, hint=REMOVE)
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        what = "the file is damaged: its SHA-256 is not the recorded one."
        raise CheckpointError(what, path=path.with_suffix(".safetensors"), hint=REMOVE)
    return record


def refuse_differences(path: Path, in_file: dict, wanted: dict) -> None:
    """Raise ``CheckpointError`` with a table field · in file · wanted, where the specs differ."""
    in_file, wanted = (_flat(json.loads(json.dumps(spec))) for spec in (in_file, wanted))
    rows = []
    for field in sorted({*in_file, *wanted}):
        ours, theirs = (side.get(field, "(absent)") for side in (wanted, in_file))
        if ours != theirs:
            rows.append(f"  {field}: in file {theirs!r:.80}, wanted {ours!r:.80}")
    if len(rows) > MOST_DIFFERENCES:
        rows[MOST_DIFFERENCES:] = [f"  and {len(rows) - MOST_DIFFERENCES} more"]
    if rows:
        what = "\n".join(["this checkpoint belongs to something else:", *rows, ""])
        hint = "Load it with the settings it was made with, or train anew."
        raise CheckpointError(what, path=path, hint=hint)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def matching(tensors: Tensors, prefix: str, like: Tensors, *, path: object = None) -> Tensors:
    """Return the ``prefix``-ed tensors, whose names, shapes and dtypes must be those of ``like``."""
    chosen = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    in_file, wanted = (
        {prefix + name: f"{str(v.dtype).removeprefix('torch.')} {tuple(v.shape)}" for name, v in side.items()}
        for side in (chosen, like)
    )
    refuse_differences(Path(str(path or "checkpoint")), in_file, wanted)
    return chosen


def load_weights(module: nn.Module, tensors: Tensors, *, path: object = None, prefix: str = "") -> None:
    """Load ``prefix``-ed tensors into ``module`` after comparing every name, shape and dtype."""
    module.load_state_dict(matching(tensors, prefix, module.state_dict(), path=path))


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return an optimiser's state as named tensors (``index.name``); its settings live in the config."""
    slots = ((i, name, value) for i, state in optimizer.state_dict()["state"].items() for name, value in state.items())
    return {f"{i}.{name}": torch.as_tensor(value) for i, name, value in slots if value is not None}


def expected_state(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return what ``optimizer_state`` returns after a step, without content, as a step on one number a group shows."""
    expected: Tensors = {}
    numbers = itertools.count()
    for group in optimizer.param_groups:
        one = torch.zeros(1, dtype=group["params"][0].dtype, requires_grad=True)
        one.grad = torch.zeros_like(one)
        like = copy.copy(optimizer)
        like.state, like.param_groups = defaultdict(dict), [group | {"params": [one]}]
        like.step()
        slots = {name: torch.as_tensor(value) for name, value in like.state[one].items() if value is not None}
        for p in group["params"]:
            number = next(numbers)
            for name, value in slots.items():
                shape = p.shape if value.ndim else ()
                expected[f"{number}.{name}"] = torch.empty(shape, dtype=value.dtype, device="meta")
    return expected


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, *, prefix: str, path: object = None) -> None:
    """Put back what ``optimizer_state`` returned, after comparing it with the parameters."""
    whole = optimizer.state_dict() | {"state": {}}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in matching(tensors, prefix, expected_state(optimizer), path=path).items():
        index, slot = name.split(".", 1)
        if value.ndim:  # in its parameter's memory format, which a fused step works on
            value = torch.empty_like(parameters[int(index)], dtype=value.dtype).copy_(value)
        plain = value.dtype == torch.int64  # a counter that is no tensor
        whole["state"].setdefault(int(index), {})[slot] = value.item() if plain else value
    optimizer.load_state_dict(whole)


class Checkpointer:
    """Keeps a loop resumable by checkpoints in ``folder``; without one it only ends the loop on a stop signal.

    Of a group's processes, all of them at the same step with the same tensors, the first alone writes.
    """

    def __init__(
        self, folder: Path | None, *, spec: dict, every_seconds: float = 300.0, group: Group = ALONE
    ) -> None:  # fmt: skip
        self.folder, self.spec, self.every_seconds, self.group = folder, spec, every_seconds, group
        self._last, self._cost = time.monotonic(), 0.0
        if folder and group.leads:
            remove_orphans(folder)

    def require_space(self, tensors: Tensors, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Raise ``ResourceError`` where the folder cannot be written or hold three checkpoints: two and a new one."""
        if not self.folder or not self.group.leads:
            return
        write_bytes(self.folder / "probe", b"")
        (self.folder / "probe").unlink()
        states = [value for optimizer in optimizers for value in expected_state(optimizer).values()]
        need = 3 * sum(value.nbytes for value in (*tensors.values(), *states))
        held = sum(path.stat().st_size for path in self.folder.glob("step-*.safetensors"))
        free = shutil.disk_usage(self.folder).free
        if free + held < need:
            what = f"{free / 2**20:,.0f} MB are free; three checkpoints take {need / 2**20:,.0f} MB."
            hint = "Choose another folder with --out or $DIAWORK_HOME, or free some space."
            raise ResourceError(what, path=self.folder, hint=hint)

    def restore(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies; damaged ones are named in a warning and passed over."""
        newest = None
        for path in self._newest_first() if self.group.leads else ():
            try:
                newest = load_checkpoint(path, spec=self.spec)
            except CheckpointError as error:
                if "belongs to something else" in error.what:
                    raise
                warnings.warn(f"{error} Falling back to an older checkpoint.", stacklevel=2)
                continue
            before = newest.versions
            if changed := [f"{n} {before.get(n)} → {v}" for n, v in _versions().items() if before.get(n) != v]:
                others = f"this training began with other versions ({', '.join(changed)})"
                warnings.warn(f"{others}: it goes on, but not bit for bit.", stacklevel=2)
            break
        name = self.group.on_leader(lambda: newest and newest.path.name)
        return newest or (load_checkpoint(self.folder / name, spec=self.spec) if self.folder and name else None)

    def after_step(self, step: int, snapshot: Callable[[], tuple[Tensors, dict]]) -> None:
        """Save if it is time (at most 2 % of it goes into saving) or a stop was asked for, which is then raised."""
        due = time.monotonic() - self._last >= max(self.every_seconds, 50 * self._cost)
        stopping = self.group.any(stop_requested())
        if due or stopping:
            self.save(step, snapshot)
        if stopping:
            self.group.wait()
            stop()

    def save(self, step: int, snapshot: Callable[[], tuple[Tensors, dict]]) -> None:
        """Save now; older checkpoints are pruned only after the new one is committed."""
        if not self.folder or not self.group.leads:
            return
        start, path = time.monotonic(), self.folder / f"step-{step:09d}"
        tensors, state = snapshot()
        save_checkpoint(path, tensors, spec=self.spec, state=state | {"step": step})
        for old in self._newest_first()[2:]:
            _remove(old)
        self._last, self._cost = time.monotonic(), time.monotonic() - start

    def clear(self) -> None:
        """Remove all checkpoints, once the final weights are safe."""
        for path in self._newest_first() if self.group.leads else ():
            _remove(path)

    def _newest_first(self) -> list[Path]:
        files = self.folder.glob("step-*.safetensors") if self.folder else ()
        return [file.with_suffix("") for file in sorted(files, reverse=True)]


def _remove(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)
    path.with_suffix(".safetensors").unlink(missing_ok=True)
