"""A headless browser and a real JupyterLab on loopback, both private to the test that asks for them."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def chromium():
    """Return the path of a Chromium, or None."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


@contextlib.contextmanager
def browser(**context):
    """Yield a page's context of a fresh headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield launched.new_context(**context)
        finally:
            launched.close()


def prepared(source, folder, /, *, name="", **parameters):
    """Write a copy of a notebook into ``folder`` with other values in its parameters cell; return its name."""
    notebook = nbformat.read(source, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    nbformat.write(notebook, folder / (name or source.name))
    return name or source.name


@contextlib.contextmanager
def jupyterlab(folder, theme="JupyterLab Light"):
    """Yield the address of a JupyterLab (with its token) that serves ``folder`` and sees no user's settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, private = secrets.token_hex(16), folder / ".private"
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "HOME")
    own = {name: str(private / name.lower()) for name in places}
    for place in own.values():
        os.makedirs(place)
    for name, setting in {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "apputils-extension/themes": {"theme": theme},
        "notebook-extension/tracker": {"windowingMode": "none"},  # what is not on the screen can be measured, too
    }.items():
        file = private / "jupyter_config_dir/lab/user-settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    with open(folder / "lab.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server)
        yield lambda path: f"http://127.0.0.1:{port}/lab/tree/{path}?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_for(address, server, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError("JupyterLab did not start")


def run_all(page, seconds=120):
    """Run all cells of the notebook on show, and wait for the explorer's picture."""
    start_all(page)
    page.wait_for_selector("img.widget-image", timeout=seconds * 1000)


def start_all(page):
    """Run all cells of the notebook on show, and wait for none."""
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.wait_for_selector(".jp-Toolbar-kernelName:has-text('Python 3')", timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def end_kernel(page):
    """Shut the kernel of the notebook on show down."""
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Shut Down Kernel", exact=True).click()
    page.wait_for_selector(".jp-Toolbar-kernelName:has-text('No Kernel')", timeout=30_000)


def wait_for_every_cell(page, seconds=600):
    """Wait until every code cell of the notebook on show has run; return the errors and warnings that stand in it."""
    done = """() => {
      const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(p => p.textContent);
      return prompts.length > 0 && prompts.every(p => /\\[\\d+\\]/.test(p));
    }"""
    bad = ", ".join(f'[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in ("stderr", "error"))
    failed = f"() => document.querySelector('{bad}')"
    page.wait_for_function(f"() => ({done})() || ({failed})()", timeout=seconds * 1000)
    return page.locator(bad).all_inner_texts()


UNSIGHTLY = """() => {
  const notebook = document.querySelector('.jp-Notebook'), found = [];
  const scrolls = style => ['auto', 'scroll'].includes(style.overflowX);
  for (const element of notebook.querySelectorAll('*')) {
    if (scrolls(getComputedStyle(element)) && element.clientWidth && element.scrollWidth > element.clientWidth + 1)
      found.push(`scroll bar: ${element.className} ${element.textContent.slice(0, 80)}`);
  }
  const walker = document.createTreeWalker(notebook, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    if (!node.data.trim() || node.parentElement.closest('.cm-editor, option, style, mjx-assistive-mml')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const boxes = [...range.getClientRects()].filter(box => box.width && box.height);
    for (let element = node.parentElement; element !== notebook; element = element.parentElement) {
      const style = getComputedStyle(element), room = element.getBoundingClientRect();
      const across = style.overflowX !== 'visible', down = style.overflowY === 'hidden';
      if (style.overflowX === 'visible' && style.overflowY === 'visible') continue;
      if (boxes.some(box => across && (box.left < room.left - 1 || box.right > room.right + 1)
                         || down && (box.top < room.top - 2 || box.bottom > room.bottom + 2))) {
        found.push(`clipped: ${node.data.trim().slice(0, 80)} (in ${element.className})`);
        break;
      }
    }
  }
  return [...new Set(found)];
}"""


def unsightly(page):
    """Return what of the notebook on show is clipped or needs a horizontal scroll bar."""
    return page.evaluate(UNSIGHTLY)


def first_picture(page):
    """Return how far below the top of the notebook on show its first picture begins, in px."""
    return page.evaluate("""() => {
      const notebook = document.querySelector('.jp-Notebook').getBoundingClientRect().top;
      return document.querySelector('.jp-OutputArea-output img').getBoundingClientRect().top - notebook;
    }""")


def screens(page, start):
    """Save the notebook on show, screen by screen, as PNG files whose names begin as ``start``."""
    notebook = page.locator(".jp-WindowedPanel-outer").first
    height, step = notebook.evaluate("element => [element.scrollHeight, element.clientHeight]")
    for i in range(-(-height // step)):
        notebook.evaluate("(element, top) => { element.scrollTop = top; }", i * step)
        page.wait_for_timeout(150)
        page.screenshot(path=f"{start}-{i:02d}.png")


MEASURE = """async (moves) => {
  const image = document.querySelector('img.widget-image');
  const handle = document.activeElement;
  const times = [];
  for (let i = 0; i < moves; i++) {
    const key = (Math.floor(i / 10) % 2) ? 'ArrowLeft' : 'ArrowRight';
    const start = performance.now();
    const shown = new Promise(done =>
      image.addEventListener('load', () => requestAnimationFrame(() => done()), {once: true}));
    handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
    await shown;
    times.push(performance.now() - start);
    await new Promise(done => setTimeout(done, 60));
  }
  return times.sort((a, b) => a - b);
}"""


def step_handle(page):
    """Return the handle of the slider over the steps: after the image's in the page's order."""
    return page.locator(".widget-slider:has-text('dissolving step t') .noUi-handle").first
