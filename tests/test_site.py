"""Executed notebooks as HTML pages: offline, readable, linked."""

import nbformat
import pytest

from diawork.report.site import to_html, write_site
from tests.builders import PNG


def executed(folder, name, *cells):
    title = nbformat.v4.new_markdown_cell(f"# {name}\n\n*Shows* $x_t$.")
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[title, *cells]), path)
    return path


@pytest.fixture
def site(tmp_path):
    picture = nbformat.v4.new_output("display_data", {"image/png": PNG.hex(), "text/plain": "<Figure>"})
    code = nbformat.v4.new_code_cell("print(1 < 2)", outputs=[picture])
    books = [executed(tmp_path, f"0{n}_page", code) for n in (1, 2, 3)]
    return write_site(books, tmp_path / "html", note="preset=smoke").parent


def test_the_index_names_every_page_and_pages_name_their_neighbours(site):
    index = (site / "index.html").read_text("utf-8")
    assert all(f'href="0{n}_page.html"' in index for n in (1, 2, 3)) and "preset=smoke" in index
    second = (site / "02_page.html").read_text("utf-8")
    assert 'href="01_page.html"' in second and 'href="03_page.html"' in second and 'href="index.html"' in second


def test_a_page_needs_no_network_and_no_script(site):
    page = (site / "01_page.html").read_text("utf-8")
    assert "<script" not in page and 'src="http' not in page and "@import" not in page
    assert "data:image/png" in page and "1</span>" in page and "<math" in page


def test_equations_become_mathml():
    assert "<msub><mi>x</mi><mi>t</mi></msub>" in to_html("of $x_t$")
    assert 'display="block"' in to_html("$$x = 1$$")
