"""The site: Sphinx, because its search and its pages work from a folder without a server, and because its warnings
can be errors. Tables of reference are made from the code each time; `sphinx-build -W docs site` builds it."""

import inspect
import shutil
from pathlib import Path

import click
from latex2mathml.converter import convert

import diawork
from diawork.base.config import ExperimentConfig, Frozen
from diawork.base.registry import DETECTORS
from diawork.cli.main import cli

HERE = Path(__file__).parent
project, author, html_title = "diawork", "the diawork developers", "diawork"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_made"]
html_theme = "furo"
html_show_sphinx = html_copy_source = html_show_search_summary = False
html_math_renderer = "mathml"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _limits(schema: dict) -> str:
    """Return what a value may be, in words: its kind and its bounds, or the choices."""
    if "anyOf" in schema:
        return " or ".join(map(_limits, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "maxLength": "length ≤"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    kind = {"number": "number", "integer": "whole number", "null": "none", "array": "list", "string": "text"}
    return ", ".join([kind.get(schema.get("type", ""), schema.get("type", "as its rule says")), *bounds])


def _comments(section: type) -> dict[str, str]:
    """Return name → the comment behind its line in the code: unit and source."""
    lines = (line.partition("  # ") for line in inspect.getsource(section).splitlines())
    return {before.strip().partition(":")[0]: _cell(said) for before, mark, said in lines if mark and ":" in before}


def config_table() -> str:
    """Return a table for every section of the config, detectors' own included."""
    sections = {name: type(value) for name, value in ExperimentConfig() if isinstance(value, Frozen)}
    sections |= {name: entry.Section for name, entry in DETECTORS.items() if entry.Section}
    parts = []
    for name, section in sections.items():
        said = _comments(section)
        schema = section.model_json_schema()["properties"]
        rows = [
            f"| `{name}.{key}` | `{_cell(repr(field.default))}` | {_cell(_limits(schema[key]))} | {said.get(key, '')} |"
            for key, field in section.model_fields.items()
        ]
        heading = f"## {name}\n\n{inspect.getdoc(section) or ''}\n\n"
        parts.append(heading + "| setting | default | may be | unit, source |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts)


def api_table() -> str:
    """Return every public name with its signature and docstring, by its module."""
    parts = []
    for room, names in diawork._ROOMS.items():
        parts.append(f"## diawork.{room}")
        for name in names:
            value = getattr(diawork, name)
            if callable(value):
                signature = str(inspect.signature(value)).replace("diawork.", "")
                parts.append(f"### {name}\n\n```python\n{name}{signature}\n```\n\n{_text(inspect.getdoc(value))}")
            else:
                parts.append(f"### {name}\n\n`{_cell(value)}`")
    return "\n\n".join(parts)


def _text(said: str | None) -> str:
    return (said or "").replace("``", "`").replace("<", "&lt;").replace("::\n", ":\n")


def cli_text() -> str:
    """Return what --help says of every verb."""
    return "\n\n".join(_helped(cli, "diawork"))


def _helped(group: click.Group, called: str) -> list[str]:
    parts = []
    context = click.Context(group, info_name=called)
    for name in group.list_commands(context):
        command, words = group.commands[name], f"{called} {name}"
        text = command.get_help(click.Context(command, info_name=words, max_content_width=100))
        parts.append(f"### {words}\n\n```text\n{text}\n```")
        parts += _helped(command, words) if isinstance(command, click.Group) else []
    return parts


def setup(app: object) -> None:
    """Write the made tables, and set equations without a script."""
    made = HERE / "_made"
    made.mkdir(exist_ok=True)
    for name, text in (("config", config_table()), ("api", api_table()), ("cli", cli_text())):
        (made / f"{name}.md").write_text(text + "\n", "utf-8")

    def visit(self: object, node: object, display: str) -> None:
        self.body.append(convert(node.astext(), display=display))
        from docutils.nodes import SkipNode

        raise SkipNode

    app.add_html_math_renderer(
        "mathml", (lambda s, n: visit(s, n, "inline"), None), (lambda s, n: visit(s, n, "block"), None)
    )
    app.connect("build-finished", lambda app, error: error or _notebooks(Path(app.outdir)))


def _notebooks(out: Path) -> None:
    """Put the executed notebooks, pages that need neither server nor network, beside the site."""
    shutil.copytree(HERE.parent / "reports" / "notebooks", out / "notebooks", dirs_exist_ok=True)
