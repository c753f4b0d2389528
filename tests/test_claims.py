"""What is written by hand claims nothing: figures of README and presets are those of the reports and of the papers."""

import json
import re
from pathlib import Path

import pytest

from diawork.report.published import published
from diawork.runs.presets import PRESETS
from diawork.sweeps.file import list_sweeps
from diawork.sweeps.sweep import Sweep

ROOT = Path(__file__).parent.parent
FIGURE = re.compile(r"\b0\.\d{3}\b")
CLAIM = re.compile(r"\b(better|worse|ahead|lucky|beats?|not told apart)\b", re.IGNORECASE)


def figures_in(value):
    """Yield every number below a JSON value, at three digits."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from figures_in(one)
    elif isinstance(value, float):
        yield f"{value:.3f}"


def known():
    reports = {
        number for path in (ROOT / "reports").glob("*.json") for number in figures_in(json.loads(path.read_text()))
    }
    return reports | {f"{one.value:.3f}" for one in published()}


@pytest.mark.parametrize("path", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda path: path.stem)
def test_every_figure_of_readme_and_docs_stands_in_a_committed_report(path):
    text = path.read_text("utf-8")
    assert set(FIGURE.findall(text)) - known() == set()
    assert all((ROOT / page).exists() for page in re.findall(r"reports/[\w./-]*\w\.(?:html|json|png)", text))
    assert all((path.parent / page).exists() for page in re.findall(r"\]\(([\w./]+\.md)\)", text))


def test_the_ratios_of_the_docs_are_those_of_the_committed_bench():
    part = (ROOT / "docs" / "findings.md").read_text("utf-8").partition("## What it costs")[2]
    assert part
    costs = json.loads((ROOT / "reports" / "cost.json").read_text())
    ratios = {f"{row['ratio']:.1f}" for run in (costs, *costs["beside"]) for row in run["rows"]}
    assert set(re.findall(r"\b\d+\.\d\b", part)) <= ratios


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_the_report_of_their_scores_and_make_no_claim(name):
    said = PRESETS[name].__doc__
    assert not CLAIM.search(said) and set(FIGURE.findall(said)) <= {f"{one.value:.3f}" for one in published()}
    assert all((ROOT / path).exists() for path in re.findall(r"reports/[\w.-]*\w", said))


@pytest.mark.parametrize("name", list_sweeps())
def test_sweep_files_make_no_claim(name):
    text = Path(ROOT / "diawork" / "sweeps" / f"{name}.yaml").read_text("utf-8")
    comments = " ".join(line for line in text.splitlines() if line.startswith("#"))
    assert not CLAIM.search(comments) and not FIGURE.search(comments) and not Sweep.load(name).conclusion
    assert all((ROOT / path).exists() for path in re.findall(r"reports/[\w.-]*\w", comments))
