"""YAML without surprises: 1.2 scalars, nothing clever, limits on size and depth.

PyYAML reads YAML 1.1, where ``1e-4`` is text, ``no`` is false, ``0123`` is 83 and ``12:30:45`` is
45045, and where the last of two equal keys wins. Here ``1e-4`` is a number and ``no`` a string;
duplicate keys, anchors, aliases, tags and second documents are refused. What a document may hold is a
``StrictModel``; the first thing wrong becomes one ``UsageError`` with file, line, field and nearest name.
"""

import contextlib
import functools
import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from diawork.base.errors import DiaworkError, UsageError, did_you_mean, printable

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1_000_000, 20, 5_000
_refused = functools.partial(yaml.MarkedYAMLError, None, None)  # with a problem and its mark


class _Loader(yaml.SafeLoader):
    """PyYAML's safe parser with YAML 1.2 scalars, refusing anchors, aliases, tags and deep nesting."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    depth = nodes = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """Compose one node; called by PyYAML for every node of the document."""
        event = self.peek_event()
        self.nodes += 1
        self.depth += 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
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


_TAG = "tag:yaml.org,2002:"
for _tag, _pattern, _first in (
    ("null", r"(?:null|Null|NULL|~|)\Z", ["n", "N", "~", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", list("-+.0123456789")),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z", list("-+.")),
):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(_pattern), _first)


def _scalar(node: yaml.ScalarNode) -> Any:
    """Return the value of a scalar by the YAML 1.2 core schema."""
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind == "int":
        if len(text) > 20:
            raise _refused("a number of more than 20 digits", node.start_mark)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


def _plain(node: yaml.Node, at: tuple, lines: dict[tuple, int]) -> Any:
    """Turn a node into plain Python values; note the line of every place in ``lines``."""
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*at, i), lines) for i, item in enumerate(node.value)]
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise _refused("a key must be text or a whole number", key_node.start_mark)
        if key in mapping:
            raise _refused(f"the key {key!r} appears twice", key_node.start_mark)
        lines[*at, key] = key_node.start_mark.line + 1
        mapping[key] = _plain(value_node, (*at, key), lines)
    return mapping


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError("not UTF-8 text.", path=f"{where}, line {line}", hint="Save it as UTF-8.") from None


def parse_yaml(text: str | bytes, where: str) -> tuple[Any, dict[tuple, int]]:
    """Return the document as plain values, and the line of every place (a tuple of keys), or one ``UsageError``."""
    if isinstance(text, bytes):
        text = _decoded(text, where)
    strange = re.search("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]", text)
    if strange:
        at = f"{where}, line {text.count(chr(10), 0, strange.start()) + 1}"
        raise UsageError(f"the character {strange[0]!a} (such as NUL or a byte-order mark) is not allowed.", path=at)
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        raise UsageError(f"larger than {MAX_BYTES:,} bytes; this is no manifest.", path=where)
    lines: dict[tuple, int] = {}
    try:
        node = _Loader(text).get_single_node()
        return (None if node is None else _plain(node, (), lines)), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not valid YAML"
        at = f"{where}, line {mark.line + 1}" if mark else where
        raise UsageError(f"{' '.join(problem.split())}.", path=at, field="YAML") from None
    except (ValueError, LookupError, ArithmeticError, AttributeError, TypeError, RecursionError) as error:
        # PyYAML lets a few malformed escapes and directives through to chr(), int() and the like
        raise UsageError(f"not valid YAML ({type(error).__name__}).", path=where) from None


# --- documents with a schema ---------------------------------------------------------------------------


def yaml_text(values: Any) -> str:
    """Return plain values as the YAML that ``parse_yaml`` reads."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


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
    values, lines = parse_yaml(text, printable(name))
    source = Source(printable(name), values, lines)
    if not isinstance(values, dict):
        content = "empty" if values is None else f"a {type(values).__name__} at the top"
        raise UsageError(f"{content}; a {kind} is a list of 'key: value' lines.", path=source.name)
    try:
        return model.model_validate(values), source
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
        return f"unknown key {key!r}", did_you_mean(key, _keys(model, place))
    if kind in ("missing", "sentence"):
        return what, context.get("hint", "")
    a_name = kind == "literal_error" and error["loc"][-1] == "[key]"
    hint = did_you_mean(value, re.findall(r"'(\w+)'", context["expected"])) if a_name else ""
    return f"{what[:1].lower()}{what[1:]}, not {repr(value)[:80]} ({type(value).__name__})", hint


def _keys(model: type[BaseModel], place: Iterable[Any]) -> list[str]:
    """Return the keys that the part of ``model`` at ``place`` may have."""
    types = _types(model)
    for step in place:  # a list's index or a mapping's key is none of these, and leads no deeper
        inner = _model_in(types.get(step))
        types = _types(inner) if inner else types
    return list(types)


def _types(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field's type is made of, as in ``Model | None`` and ``list[Model]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
