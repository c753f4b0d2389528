"""Executed notebooks → a small site of HTML pages with an index, and the index of a folder of reports: all offline."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from diawork import figures
from diawork.base.files import write_text
from diawork.report.page import render


class _MathML(IPythonRenderer):
    """Sets equations as MathML, which browsers render by themselves."""

    def block_math(self, body: str) -> str:
        return convert(body, display="block")

    def inline_math(self, body: str) -> str:
        return convert(body)


def to_html(text: str) -> str:
    """Return Markdown with LaTeX between dollar signs as HTML with MathML."""
    return MarkdownWithMath(renderer=_MathML(escape=False)).render(text)


def write_page(notebook: Path, out: Path, *, links: Sequence[tuple[str, str]] = ()) -> Path:
    """Write an executed notebook as one HTML page; ``links`` are (address, words) of the pages around it."""
    nb = nbformat.read(notebook, as_version=4)
    exporter = HTMLExporter(template_name="basic", anchor_link_text=" ", filters={"markdown2html": to_html})
    body, resources = exporter.from_notebook_node(nb)
    style = "\n".join(css for css in resources["inlining"]["css"] if ".highlight" in css)
    page = render("notebook.html.j2", title=title_of(nb), body=Markup(body), style=Markup(style), links=links)
    write_text(out, page)
    return out


def write_site(notebooks: Sequence[Path], folder: Path, *, note: str = "") -> Path:
    """Write a page for every executed notebook and an index of them; return the index.

    ``note`` says with which settings they were run.
    """
    pages = [(f"{path.stem}.html", nbformat.read(path, as_version=4)) for path in notebooks]
    words = [(address, title_of(nb)) for address, nb in pages]
    for i, path in enumerate(notebooks):
        around = [("index.html", "all notebooks"), *words[max(i - 1, 0) : i], *words[i + 1 : i + 2]]
        write_page(path, folder / words[i][0], links=around)
    rows = Markup().join(
        Markup('<li><a href="{}">{}</a>{}</li>').format(address, name, Markup(to_html(lead_of(nb))))
        for (address, name), (_, nb) in zip(words, pages, strict=True)
    )
    warned = "note" if "preset=smoke" in note else "soft"
    note += ": trained for seconds, the numbers mean nothing." if warned == "note" else ""
    body = Markup('<p class="{}">{}</p><ol class="index">{}</ol>').format(warned, note, rows)
    index = folder / "index.html"
    write_text(index, render("notebook.html.j2", title="diawork: the notebooks, run", body=body, style="", links=()))
    return index


class Listed(NamedTuple):
    """What an index says of a report: its address, what it asks and answers, when and by which rules it was made."""

    address: str
    title: str
    question: str
    answer: list[str]
    made: str
    rules: str
    picture: bytes  # PNG, small; empty: the page has none


def listed_page(path: Path) -> Listed:
    """Return what the index says of the page at ``path``, read from the page itself."""
    page = path.read_text("utf-8")
    said = [_found(pattern, page) for pattern in _ANSWERS]
    answer = next((one for one in said if one), "")
    pays = _found(r"<li>((?:Does dissolving pay\?|[^<]* not told apart from).*?)</li>", page)
    split, seeds = _found(r"Results on the (\w+) images", page), re.findall(r"over (\d+) seeds", page)
    rules = [
        f"{split} images" if split else "",
        f"{max(map(int, seeds))} seeds" if seeds else "one seed" if split else "",
    ]
    rules += sorted(set(re.findall(r">(fixed (?:epoch|step)|best \w+)[^<]*<small>", page)))
    encoded = re.search(r'<img [^>]*src="data:image/png;base64,([^"]+)"', page)
    return Listed(
        path.name, _found(r"<h1>(.*?)</h1>", page), _found(r'class="soft">[^<]*: (How[^<]*\?)</p>', page),
        [one for one in (answer, pays) if one], _found(r"Made (\d{4}-\d\d-\d\d)", page), ", ".join(rules),
        figures.thumbnail(base64.b64decode(encoded[1])) if encoded else b"",
    )  # fmt: skip


_ANSWERS = (  # over several sets, of one set, its author's, of a page about something else
    r"<h2>Over the data sets</h2>\s*<p>(.*?)</p>", r'<p class="lead"><strong>(.*?)</strong>',
    r"What its author reads from it.*?<p>(.*?\.) ", r'<p class="lead">(.*?[.?]) ',
)  # fmt: skip


def _found(pattern: str, page: str) -> str:
    """Return the first group of a pattern in a page as text; empty where it is not there."""
    found = re.search(pattern, page, re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", found[1]))).strip() if found else ""


def write_index(folder: Path) -> Path:
    """Write ``index.html`` of the reports in a folder: what each asks and answers, when and how it was made."""
    pages = [listed_page(path) for path in sorted(folder.glob("*.html")) if path.name != "index.html"]
    links = [("notebooks/index.html", "The notebooks as they ran")] if (folder / "notebooks").is_dir() else []
    write_text(folder / "index.html", render("index.html.j2", title="Reports of diawork", pages=pages, links=links))
    return folder / "index.html"


def title_of(nb: nbformat.NotebookNode) -> str:
    """Return a notebook's first heading."""
    return re.sub(r"^#\s*", "", nb.cells[0].source.splitlines()[0])


def lead_of(nb: nbformat.NotebookNode) -> str:
    """Return the paragraph under a notebook's first heading."""
    return "\n".join(nb.cells[0].source.splitlines()[1:]).strip()
