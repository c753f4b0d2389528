"""Executed notebooks as HTML pages: offline, readable, linked."""

import html
import re

import nbformat
import pytest
from markupsafe import escape

from diawork.base.files import shipped
from diawork.report.page import write_html
from diawork.report.site import listed_page, to_html, write_index, write_site
from diawork.runs.notebooks import list_notebooks
from tests.builders import PNG, make_run

REPORTS = shipped("notebooks").parent / "reports"


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
    assert all(f'href="0{n}_page.html"' in index for n in (1, 2, 3))
    assert "preset=smoke: trained for seconds, the numbers mean nothing." in index
    second = (site / "02_page.html").read_text("utf-8")
    assert 'href="01_page.html"' in second and 'href="03_page.html"' in second and 'href="index.html"' in second


def test_a_page_needs_no_network_and_no_script(site):
    page = (site / "01_page.html").read_text("utf-8")
    assert "<script" not in page and 'src="http' not in page and "@import" not in page
    assert "data:image/png" in page and "1</span>" in page and "<math" in page


@pytest.fixture
def reports(tmp_path):
    for seed in range(3):
        make_run(tmp_path / "runs", "DIA", seed, evidence=True)
        make_run(tmp_path / "runs", "CSI", seed)
    folder = tmp_path / "reports"
    folder.mkdir()
    write_html(tmp_path / "runs", folder / "one.html", title="Does <it> pay?", asked="a test")
    (folder / "empty.html").write_text("<h1>Nothing yet</h1>")
    return folder


def test_the_index_of_reports_says_what_each_asks_and_answers_when_and_by_which_rules(reports):
    one = listed_page(reports / "one.html")
    assert one.title == "Does <it> pay?" and one.question.startswith("How well does DIA rank")
    assert one.answer[0].startswith("On ") and one.answer[1].startswith("Does dissolving pay?")
    assert one.rules.startswith("test images, 3 seeds") and one.made and one.picture.startswith(b"\x89PNG")
    page = write_index(reports).read_text("utf-8")
    assert "Does &lt;it&gt; pay?" in page and 'href="empty.html"' in page and page.count("data:image") == 1
    assert "index.html" not in write_index(reports).read_text("utf-8")


def test_the_committed_index_says_what_the_committed_reports_say():
    index = (REPORTS / "index.html").read_text("utf-8")
    for path in REPORTS.glob("*.html"):
        if path.name != "index.html":
            said = listed_page(path)
            words = [said.address, said.title, said.made, said.rules, *said.answer]
            assert [one for one in words if str(escape(one)) not in index] == []


def test_the_committed_notebook_pages_hold_the_cells_of_the_notebooks():
    issued = {path.stem for path in (REPORTS / "notebooks").glob("*.html")}
    assert issued == {"index", *(path.stem for path in list_notebooks())}
    for path in list_notebooks():
        page = (REPORTS / "notebooks" / f"{path.stem}.html").read_text("utf-8")
        blocks = re.findall(r'<div class="highlight[^"]*"><pre>(.*?)</pre>', page, re.DOTALL)
        shown = [html.unescape(re.sub(r"<[^>]*>", "", block)).strip() for block in blocks]
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.source for cell in cells if cell.source not in shown] == []


def test_equations_become_mathml():
    assert "<msub><mi>x</mi><mi>t</mi></msub>" in to_html("of $x_t$")
    assert 'display="block"' in to_html("$$x = 1$$")
