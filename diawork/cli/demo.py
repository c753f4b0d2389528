"""``diawork demo``: the phantom at a size that fits this machine as it is now, and a report."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diawork.cli import options
from diawork.cli.options import STOPS, ending, say
from diawork.cli.run import run_methods

if TYPE_CHECKING:
    from diawork.base.compute import Compute

SIZES = ("demo", "demo_short")  # presets; the second costs half of the first
SLOW = 0.5  # s a step of the DDPM, beyond which ``demo``, which costs 600 of them, takes more than 5 minutes


@click.command(epilog=ending("diawork demo --open", STOPS))
@options.out
@options.device
@options.precision
@click.option(
    "--size", type=click.Choice(["auto", *SIZES]), default="auto", show_default=True,
    help="A preset; auto: demo where a few timed steps expect it to end within 5 minutes, else demo_short.",
)  # fmt: skip
@click.option("--open/--no-open", "show", default=False, help="Open the report in a browser.")
def demo(size: str, show: bool, out: Path | None, device: str, precision: str) -> None:
    """Train DIA on the phantom and write a report. It takes minutes, offline, without an account."""
    from diawork.base.compute import Compute
    from diawork.runs.presets import preset

    compute, why = Compute.auto(device, precision), "as asked"
    if size == "auto":
        size, why = choose(out, compute)
    say(f"size {size} ({why}), {compute.precision} on {compute.device}")
    cfg = preset(size, dataset="phantom")
    page = run_methods(
        cfg, size, "dia,csi,controls", 1, out=out, device=device, precision=precision, overall=True
    )  # fmt: skip
    if show:
        webbrowser.open(page.absolute().as_uri())


def choose(out: Path | None, compute: Compute) -> tuple[str, str]:
    """Return a size and why: the one that was begun in this folder of runs, else by the time of a training step."""
    if known := begun(out):
        return known, "it was begun here, and what is finished is found again"
    seconds = step_seconds(compute)
    return SIZES[seconds > SLOW], f"a training step takes {seconds:.2g} s on this machine as it is now"


def begun(out: Path | None) -> str:
    """Return the size of a demo that was begun in this folder of runs, "" where there is none."""
    from diawork.data.manifests import load_manifest
    from diawork.runs.methods import method_config
    from diawork.runs.presets import preset
    from diawork.runs.resolve import resolve
    from diawork.runs.run import find_runs, runs_root

    records = [run.config() for run in find_runs(runs_root(out))] if runs_root(out).is_dir() else []
    for size in SIZES:
        cfg = resolve(method_config(preset(size, dataset="phantom"), "dia"), load_manifest("phantom"))
        if any(record["digest"] == cfg.digest(record["data"]["identity"]) for record in records):
            return size
    return ""


def step_seconds(compute: Compute) -> float:
    """Return what a step of the demo's DDPM takes, from three on noise after one that warms up."""
    import numpy as np
    import torch

    from diawork.base.seeding import generator
    from diawork.data.images import ImageSet
    from diawork.method.ddpm import pretrain_ddpm
    from diawork.runs.presets import preset

    settings = preset(SIZES[0]).diffusion
    n, size = settings.batch_size, settings.image_size
    noise = torch.rand(n, 1, size, size, generator=generator(0, "timed step"))
    train = ImageSet(noise, np.full(n, "noise"), np.zeros(n, bool), np.arange(n), "train", "noise")
    for steps in (1, 3):
        start, few = time.perf_counter(), settings.model_copy(update={"steps": steps})
        pretrain_ddpm(train, few, bridge="none", compute=compute, progress=False)
    return (time.perf_counter() - start) / steps
