"""YAML documents with a schema: YAML 1.2 scalars, and errors that name file, line, field and the nearest name.

A document is read by ``yamlcore``, in which ``1e-4`` is a number and ``no`` a string. Duplicate keys, anchors, aliases,
tags, second documents and deep nesting are refused. What a document may hold is a ``StrictModel``; the first thing
wrong becomes one ``UsageError``.
"""

import contextlib
import functools
import json
import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError
from yamlcore import CoreLoader

from diawork.base.errors import DiaworkError, UsageError, did_you_mean, printable

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1_000_000, 20, 5_000
_refused = functools.partial(yaml.MarkedYAMLError, None, None)  # with a problem and its mark


class _Loader(CoreLoader):
    """YAML 1.2's core schema without anchors, aliases, tags and deep nesting."""

    depth = nodes = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """Compose one node; called by PyYAML for every node of the document."""
        event = self.peek_event()
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if event.anchor is not None:  # an alias has one, too
            raise _refused("anchors and aliases are not allowed", event.start_mark)
        if event.tag is not None:
            raise _refused("tags (!) are not allowed", event.start_mark)
        if self.depth > MAX_DEPTH:
            raise _refused(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        if self.nodes > MAX_NODES:
            raise _refused(f"more than {MAX_NODES} entries", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _plain(loader: _Loader, node: yaml.Node, at: tuple, lines: dict[tuple, int]) -> Any:
    """Turn a node into plain Python values; note the line of every place in ``lines``."""
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*at, i), lines) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith(":int") and len(node.value) > 20:
            raise _refused("a number of more than 20 digits", node.start_mark)
        return loader.construct_object(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = _plain(loader, key_node, (), {}) if isinstance(key_node, yaml.ScalarNode) else None
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise _refused("a key must be text or a whole number", key_node.start_mark)
        if key in mapping:
            raise _refused(f"the key {key!r} appears twice", key_node.start_mark)
        lines[*at, key] = key_node.start_mark.line + 1
        mapping[key] = _plain(loader, value_node, (*at, key), lines)
    return mapping


def parse_yaml(text: str | bytes, where: str) -> tuple[Any, dict[tuple, int]]:
    """Return the document as plain values, and the line of every place (a tuple of keys), or one ``UsageError``."""
    if len(text) > MAX_BYTES or (isinstance(text, str) and len(text.encode("utf-8", "replace")) > MAX_BYTES):
        raise UsageError(f"larger than {MAX_BYTES:,} bytes; this is no manifest.", path=where)
    lines: dict[tuple, int] = {}
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if text.startswith("\ufeff"):
            raise UsageError("a byte-order mark is not allowed.", path=f"{where}, line 1", hint="Save it as UTF-8.")
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else _plain(loader, node, (), lines)), lines
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError("not UTF-8 text.", path=f"{where}, line {line}", hint="Save it as UTF-8.") from None
    except yaml.reader.ReaderError as error:
        at = f"{where}, line {str(text).count(chr(10), 0, error.position) + 1}"
        raise UsageError(f"the character {chr(error.character)!a} is not allowed.", path=at) from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "not valid YAML"
        at = f"{where}, line {mark.line + 1}" if mark else where
        raise UsageError(f"{' '.join(problem.split())}.", path=at, field="YAML") from None
    except (ValueError, LookupError, ArithmeticError, AttributeError, TypeError, RecursionError) as error:
        # PyYAML lets a few malformed escapes and directives through to chr(), int() and the like
        raise UsageError(f"not valid YAML ({type(error).__name__}).", path=where) from None


def yaml_text(values: Any) -> str:
    """Return plain values as the YAML that ``parse_yaml`` reads."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def yaml_lines(values: dict[str, Any]) -> str:
    """Return the same with one line for each key at the top."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{inline(k)}: {inline(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(inline, value)) + "]"
        return json.dumps(value, ensure_ascii=False)

    return "".join(f"{key}: {inline(value)}\n" for key, value in values.items())


# --- documents with a schema ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A document's name, its plain values, and the line of every place (a tuple of keys) in it."""

    name: str
    values: Any
    lines: dict[tuple, int]

    def line(self, place: tuple) -> int:
        """Return the line of a place, or of the nearest one around it."""
        return next((self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines), 1)

    def value(self, place: tuple) -> Any:
        """Return the value that stands at a place."""
        return functools.reduce(operator.getitem, place, self.values)

    @contextlib.contextmanager
    def at(self, *place: Any) -> Iterator[None]:
        """Name the document and the line of ``place`` in a user's error that is raised inside."""
        try:
            yield
        except DiaworkError as error:
            where = f"{self.name}, line {self.line(place)}"
            raise UsageError(error.what, hint=error.hint, path=where, field=error.field) from None


def wrong(text: str, *at: Any, hint: str = "") -> PydanticCustomError:
    """Return what a validator raises: a sentence without its full stop, and the place seen from its model."""
    return PydanticCustomError("sentence", "{text}", {"text": text, "at": at, "hint": hint})


class StrictModel(BaseModel):
    """The schema of a document or of a part of it: nothing is converted, and no unknown key is overlooked."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


Document = TypeVar("Document", bound=StrictModel)


def read_document(model: type[Document], text: str | bytes, name: object, kind: str) -> tuple[Document, Source]:
    """Return the ``model`` written in ``text``, and its source; ``kind`` is the word for it in errors."""
    source = Source(printable(name), *parse_yaml(text, printable(name)))
    if not isinstance(source.values, dict):
        content = "empty" if source.values is None else f"a {type(source.values).__name__} at the top"
        raise UsageError(f"{content}; a {kind} is a list of 'key: value' lines.", path=source.name)
    try:
        return model.model_validate(source.values), source
    except ValidationError as error:
        # an unknown key is the likelier cause of a missing one, so it is named first
        first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    at = (*first["loc"], *first.get("ctx", {}).get("at", ()))
    place = at[:-1] if at[-1:] == ("[key]",) else at
    what, hint = _explained(first, model)
    with source.at(*place):
        raise UsageError(f"{what}.", hint=hint, field=".".join(map(printable, place)))


def load_document(model: type[Document], path: Path, kind: str, names: Iterable[str]) -> tuple[Document, Source]:
    """Return what ``read_document`` reads in a file; ``names`` are those that come with the package, for a hint."""
    return read_document(model, document_bytes(path, kind, names), path, kind)


def document_bytes(path: Path, kind: str, names: Iterable[str]) -> bytes:
    """Return the content of a document's file, of one that is too large no more than shows it."""
    try:
        if not path.is_file():
            raise FileNotFoundError(2, "no such file")
        with open(path, "rb") as f:
            return f.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = did_you_mean(path.stem, names)
        raise UsageError(f"the {kind} cannot be read ({reason}).", path=path, hint=hint) from None


_WORDS = {
    "missing": "this key is missing",
    "dict_type": "must be 'key: value' lines", "model_type": "must be 'key: value' lines",
    "list_type": "must be a list", "string_type": "must be text",
}  # fmt: skip


def _explained(error: Any, model: type[BaseModel]) -> tuple[str, str]:
    """Return one of pydantic's complaints as a sentence, and for names the nearest one."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    what = _WORDS.get(kind, error["msg"].removeprefix("Value error, "))
    if kind == "extra_forbidden":
        *place, key = error["loc"]
        fields = model.model_fields
        for step in place:  # a list's index or a mapping's key is no field, and leads no deeper
            inner = _model_in(fields[step].annotation) if step in fields else None
            fields = inner.model_fields if inner else fields
        return f"unknown key {key!r}", did_you_mean(key, [field.alias or name for name, field in fields.items()])
    if kind in ("missing", "sentence"):
        return what, context.get("hint", "")
    a_name = kind == "literal_error" and error["loc"][-1] == "[key]"
    hint = did_you_mean(value, re.findall(r"'(\w+)'", context["expected"])) if a_name else ""
    return f"{what[:1].lower()}{what[1:]}, not {repr(value)[:80]} ({type(value).__name__})", hint


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field's type is made of, as in ``Model | None`` and ``list[Model]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
