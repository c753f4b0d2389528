"""A light notebook that makes real run folders without torch, and sweeps of it, for the tests that kill."""

import json
import os
import signal
import time

import nbformat

from diawork.base.locks import holder

PARAMETERS = """seed: int = 0  # 0 …
method: str = "dia"  # a method
temperature: float = 0.5  # of the loss
pause: float = 0.0  # s of work
out: str = "runs"  # folder for runs
fault: str = ""  # what goes wrong
cell: str = ""  # folder of the cell"""
WORK = """import os, signal, sys, time
from diawork.base.config import ExperimentConfig
from diawork.runs.run import Run
from diawork.sweeps.cell import CellFolder

cfg = ExperimentConfig(seed=seed).override({"loss.temperature": temperature})
data = {"name": "toy", "identity": "toy", "notes": []}
run = Run.create(out, cfg, data=data, label="toy", compute={})
CellFolder(cell).note_run(run)
if fault == "kill" and not os.path.exists(out + "/mended"):
    os.kill(os.getpid(), signal.SIGKILL)
if fault == "raise" and not os.path.exists(out + "/mended"):
    raise ValueError("no <such> thing")
if fault == "exit":
    sys.exit(0)
if not run.done and fault != "nothing":
    with run.working(wait=True):
        if not run.done:
            time.sleep(pause)
            with open(out + "/work.log", "a") as log:
                log.write(run.folder.name + "\\n")
            auroc = 0.5 + temperature / 10 + seed / 1000
            metrics = {"auroc": auroc, "auroc_low": auroc, "auroc_high": auroc}
            run.finish({"seed": seed, "detector": "toy", "draws": None, "metrics": {"test": metrics}})"""
TITLE = {"seed": 0, "temperature": 0.5}


def toy_notebook(folder):
    """Write the notebook and return its path."""
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cells = [parameters, nbformat.v4.new_code_cell(WORK), nbformat.v4.new_code_cell("print('run:', run.folder)")]
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, folder / "toy.ipynb")
    return folder / "toy.ipynb"


def toy_sweep(folder, *, temperatures=(0.1, 0.2, 0.3), seeds=(0, 1), pause=0.0, fault="", more=""):
    """Write a sweep of the light notebook and return its path."""
    path = folder / "toy.yaml"
    axis = f"  - grid: {{temperature: {json.dumps(list(temperatures))}}}"
    fixed = f'  pause: {float(pause)}\n  fault: "{fault}"'
    text = f"name: toy\nnotebook: {toy_notebook(folder)}\nfixed:\n{fixed}\naxes:\n{axis}\nseeds: {list(seeds)}\n{more}"
    path.write_text(text)
    return path


def holders(out, pattern):
    """Return the living processes that hold folders below ``out``."""
    found = [holder(lock.parent) for lock in out.glob(f"{pattern}/lock")]
    return [process.pid for process in found if process]


def wait_for(what, seconds=60):
    """Wait until ``what()`` holds and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def kill_one_kernel(out, rng):
    """Kill -9 the kernel of a run that is being made."""
    pid = rng.choice(wait_for(lambda: holders(out, "toy-*")))
    os.kill(pid, signal.SIGKILL)
