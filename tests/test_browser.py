"""What the user sees, in a real browser: notebook 02 in a real JupyterLab, and the report without network."""

import numpy as np
import pytest
from PIL import Image

from diawork.base.files import shipped
from diawork.data.datasets import load
from diawork.data.scan import guess_manifest, write_guess
from diawork.report.page import write_html
from diawork.runs.notebooks import list_notebooks, notebook_parameters
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


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab over a folder with images by class, without masks, and their manifest; runs are shared."""
    folder = tmp_path_factory.mktemp("lab")
    data = load("phantom")
    for part in data.all():
        for class_name in ("healthy", "lesion"):
            images = part.images[part.class_names == class_name]
            (folder / "mine" / class_name).mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(images[:60].numpy()):
                picture = Image.fromarray(np.uint8(255 * image[0])).resize((100, 90))
                picture.save(folder / "mine" / class_name / f"{part.split}-{i}.jpg", quality=95)
    write_guess(guess_manifest(folder / "mine"), folder / "mine", folder / "mine.yaml")
    with browsing.jupyterlab(folder) as address:
        yield folder, address


def given(notebook, data, folder):
    """Return the parameters that bring a notebook to its smallest size on a data set."""
    wanted = {"preset": "smoke", "out": "runs", "dataset": "mine.yaml", "folder": "mine", "seeds": [0]}
    wanted |= {"knobs": {"csi": {"loss.temperature": [0.2, 0.5]}}}
    if notebook.stem.startswith("04"):
        wanted["seeds"] = 2
    skipped = {"dataset", "folder"} if data == "phantom" else set()
    return {name: wanted[name] for name in notebook_parameters(notebook).keys() & (wanted.keys() - skipped)}


LINE = 19  # px of a line of code; each parameter given adds one above the first picture
EVERY = [pytest.param(path, data, id=f"{path.stem[:2]}-{data}") for path in list_notebooks()
         for data in ("phantom", "mine") if data == "phantom" or not path.stem.startswith("05")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("notebook", "data"), EVERY)
def test_every_notebook_looks_right_in_jupyterlab(notebook, data, lab):
    """No error, no console error, no clipped sentence, no horizontal scroll bar; pictures of it stay in the folder."""
    (folder, address), said = lab, []
    name, parameters = f"{notebook.stem}-{data}.ipynb", given(notebook, data, folder)
    browsing.prepared(notebook, folder, name=name, **parameters)
    with browsing.browser(viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.goto(address(name))
        browsing.start_all(page)
        errors = browsing.wait_for_every_cell(page)
        page.wait_for_timeout(1500)
        browsing.screens(page, folder / f"{notebook.stem[:2]}-{data}")
        found, first = browsing.unsightly(page), browsing.first_picture(page)
        browsing.end_kernel(page)
    assert (errors, said, found) == ([], [], []) and first < 680 + LINE * len(parameters)


@pytest.mark.slow
def test_an_image_of_ones_own_is_shown_and_what_is_said_of_it_stays_while_the_steps_play(tmp_path):
    name, said = browsing.prepared(NOTEBOOK, tmp_path, preset="smoke", out="runs"), []
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 50), np.uint8)).save(tmp_path / "mine.jpg")
    with (
        browsing.jupyterlab(tmp_path) as address,
        browsing.browser(viewport={"width": 1280, "height": 800}) as context,
    ):
        page = context.new_page()
        opened(page, address(name), said)
        for view in ("strip of images", "your own image or model"):
            before = page.locator(PICTURE).first.get_attribute("src")
            page.get_by_role("button", name=view).click()
            changed(page, before)
            assert browsing.unsightly(page) == []
        page.get_by_placeholder("scan.tiff").fill("mine.jpg")
        page.keyboard.press("Tab")
        page.get_by_role("button", name="show this image").click()
        page.wait_for_selector("text=Your image of 70 × 50 px was brought to 32 × 32 px.")
        before = page.locator(PICTURE).first.get_attribute("src")
        page.locator(".widget-play button").first.click()
        changed(page, before)
        page.get_by_role("button", name="save figure").first.click()
        page.wait_for_selector("text=DissolveExplorer.png and its twin in SVG")
        assert page.locator("text=Your image of 70 × 50 px").count() == 1
        assert browsing.unsightly(page) == []
    assert said == [] and (tmp_path / "DissolveExplorer.svg").exists()


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


REPORTS = sorted((shipped("notebooks").parent / "reports").glob("*.html"))
TOO_WIDE = """() => [...document.querySelectorAll('.wide')].filter(box => box.clientWidth
  && box.scrollWidth > box.clientWidth + 1).length"""


def test_every_report_is_short_until_unfolded_and_cuts_no_column_off():
    with browsing.browser(viewport={"width": 1280, "height": 800}, offline=True) as context:
        page = context.new_page()
        for path in REPORTS:
            page.goto(path.as_uri())
            screens = page.evaluate("() => document.documentElement.scrollHeight / window.innerHeight")
            page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true; })")
            assert (path.name, screens <= 8, page.evaluate(TOO_WIDE)) == (path.name, True, 0)


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
