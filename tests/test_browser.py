"""What the user sees, in a real browser: notebook 02 in a real JupyterLab, and the report without network."""

import pytest

from diawork.base.files import shipped
from diawork.report.page import write_html
from tests import browsing

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")
pytestmark = pytest.mark.skipif(browsing.chromium() is None, reason="no Chromium here: apt-get install chromium")
NOTEBOOK = shipped("notebooks") / "02_explore_dissolving.ipynb"
PICTURE = "img.widget-image"


def opened(page, address, said):
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.goto(address)
    browsing.run_all(page)


def changed(page, before):
    page.wait_for_function(
        "before => document.querySelector('img.widget-image').src !== before", arg=before, timeout=60_000
    )


def test_the_slider_moves_the_picture_in_jupyterlab(tmp_path):
    name, said = browsing.prepared(NOTEBOOK, tmp_path, preset="smoke", out="runs"), []
    with (
        browsing.jupyterlab(tmp_path) as address,
        browsing.browser(viewport={"width": 1250, "height": 1000}) as context,
    ):
        page = context.new_page()
        opened(page, address(name), said)
        before = page.locator(PICTURE).first.get_attribute("src")
        browsing.step_handle(page).focus()
        page.keyboard.press("ArrowRight")
        changed(page, before)
    assert said == []


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted(shipped("notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_runs_top_to_bottom_in_jupyterlab(notebook, tmp_path):
    name, said = browsing.prepared(notebook, tmp_path, preset="smoke", out="runs"), []
    with browsing.jupyterlab(tmp_path) as address, browsing.browser() as context:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.goto(address(name))
        browsing.start_all(page)
        assert browsing.wait_for_every_cell(page) == []
    assert said == []


@pytest.mark.slow
def test_how_long_a_move_takes(tmp_path, capsys):
    name = browsing.prepared(NOTEBOOK, tmp_path, preset="smoke", out="runs")
    with (
        browsing.jupyterlab(tmp_path) as address,
        browsing.browser(viewport={"width": 1250, "height": 1000}) as context,
    ):
        page = context.new_page()
        opened(page, address(name), [])
        page.wait_for_timeout(5000)  # the pictures are drawn ahead while the kernel has nothing to do
        browsing.step_handle(page).focus()
        times = page.evaluate(browsing.MEASURE, 50)
    assert len(times) == 50
    with capsys.disabled():
        print(f"\nslider to new picture: median {times[25]:.0f} ms, 95 % below {times[47]:.0f} ms, 50 moves")


def test_the_reports_player_moves_without_network_or_requests(tmp_path):
    from tests.builders import make_run

    make_run(tmp_path / "runs", "DIA", evidence=True)
    page_file = write_html(tmp_path / "runs", tmp_path / "report.html", title="Report", asked="a test")
    requested, said = [], []
    with browsing.browser(offline=True) as context:
        page = context.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(page_file.as_uri())
        first = page.locator(".player .frames img:visible").get_attribute("alt")
        page.locator(".player input:checked").focus()
        page.keyboard.press("ArrowRight")
        second = page.locator(".player .frames img:visible").get_attribute("alt")
    assert first != second and "dissolving step" in second
    assert [url for url in requested if not url.startswith("data:")] == [page_file.as_uri()] and said == []
