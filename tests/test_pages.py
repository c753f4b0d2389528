"""What a reader meets first: short sentences, no config keys in headings, intervals inside their range."""

import html
import json
import re
from pathlib import Path

import pytest

from diawork.base.config import ExperimentConfig
from diawork.runs.notebooks import list_notebooks

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "reports").rglob("*.html"))
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCREEN, LONGEST = 200, 30  # words on a screen, and in a sentence
BLOCK = re.compile(r"</?(?:p|li|ul|h\d|div|td|th|tr|dt|dd|summary|figcaption|table|pre|br|header|section)\b[^>]*>")
KEYS = sorted(key for key in ExperimentConfig().flat() if "." in key)


def shown(page):
    """Return what an HTML page shows unfolded, a block a line."""
    body = re.search(r"<main>(.*)</main>", page, re.DOTALL)[1]
    body = re.sub(r"<(style|svg|math|pre)\b.*?</\1>", " ", body, flags=re.DOTALL)
    innermost = re.compile(r"<details[^>]*>\s*(<summary>.*?</summary>)(?:(?!<details).)*?</details>", re.DOTALL)
    while innermost.search(body):
        body = innermost.sub(r"\1", body)
    return html.unescape(re.sub(r"<[^>]*>", "", BLOCK.sub("\n", re.sub(r"\s+", " ", body))))


def written(text):
    """Return what a Markdown page shows, a block a line: without code, tables, pictures and equations."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|!\[[^\]]*\]\([^)]*\)|<[^>]*>", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^\|.*$|^#+ .*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^(?:[-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    return "\n".join(re.sub(r"\s+", " ", block) for block in re.split(r"\n\s*\n", text))


def long_sentences(text):
    """Return the sentences of the first screen that are too long for one reading."""
    found, words = [], 0
    for sentence in (one for block in text.splitlines() for one in re.split(r"(?<=[.?!])\s|·", block)):
        long = len(re.findall(r"\S*[^\W\d_]\S*", sentence))  # figures and signs are no words
        if words < SCREEN and long > LONGEST:
            found.append(sentence.strip())
        words += long
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_the_first_screen_of_a_text_has_short_sentences(path):
    assert long_sentences(written(path.read_text("utf-8"))) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_first_screen_of_a_page_has_short_sentences(path):
    assert long_sentences(shown(path.read_text("utf-8"))) == []


@pytest.mark.parametrize("path", list_notebooks(), ids=lambda path: path.stem)
def test_no_sentence_of_a_notebook_is_long(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            assert long_sentences(written("".join(cell["source"]))) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_heading_of_a_page_is_a_config_key(path):
    headings = re.findall(r"<(h\d|th|summary)\b[^>]*>(.*?)</\1>", path.read_text("utf-8"), re.DOTALL)
    text = " ".join(text for _, text in headings)
    assert [key for key in KEYS if re.search(rf"\b{re.escape(key)}\b", text)] == []


@pytest.mark.parametrize("path", [*PAGES, *TEXTS], ids=lambda path: path.stem)
def test_no_interval_leaves_its_range(path):
    text = path.read_text("utf-8").replace("−", "-")
    ends = re.findall(r"([+-]?\d\.\d{3}) to ([+-]?\d\.\d{3})|\[(-?\d\.\d{3}), (-?\d\.\d{3})\]", text)
    pairs = [tuple(float(end) for end in found if end) for found in ends]
    assert [pair for pair in pairs if not -1 <= pair[0] <= pair[1] <= 1] == []


def test_what_is_looked_for_is_found():
    assert long_sentences("word " * 31) and not long_sentences("word " * 30 + "0.904 ± 0.006. word")
    assert shown("<main><h1>A</h1><details><summary>B</summary><p>C</p></details></main>").split() == ["A", "B"]
    assert written("# A\n\n- one\n- two\n\n| a |\n").split() == ["one", "two"]
