"""Executed notebooks → a small site of HTML pages with an index, which needs neither network nor script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

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
    body = Markup('<p class="soft">{}</p><ol class="index">{}</ol>').format(note, rows)
    index = folder / "index.html"
    write_text(index, render("notebook.html.j2", title="diawork: the notebooks, run", body=body, style="", links=()))
    return index


def title_of(nb: nbformat.NotebookNode) -> str:
    """Return a notebook's first heading."""
    return re.sub(r"^#\s*", "", nb.cells[0].source.splitlines()[0])


def lead_of(nb: nbformat.NotebookNode) -> str:
    """Return the paragraph under a notebook's first heading."""
    return "\n".join(nb.cells[0].source.splitlines()[1:]).strip()
