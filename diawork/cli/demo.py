"""``diawork demo``: a size that fits this machine as it is now, one bar over the whole of it, and a report."""

from __future__ import annotations

import contextlib
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from tqdm.auto import tqdm

from diawork.base.config import ExperimentConfig, K
from diawork.cli import options
from diawork.cli.options import STOPS, say
from diawork.cli.run import run_methods, tell
from diawork.runs.presets import preset

if TYPE_CHECKING:
    from diawork.cli.probe import Costs
    from diawork.runs.run import Run

SIZES = ("demo", "demo_short")  # presets, the largest first
WITHIN = 300.0  # s that a demo may take
REST = 6.0  # s of a run beside training and scoring (maps, intervals, pictures), and of the controls and the page
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"
SCORING = "scoring"  # the stage that a run ends with
_SIZE = "A preset; auto: the largest that a probe of this machine expects to end within 5 minutes."


class Stage(NamedTuple):
    """A part of the demo, by the name that its bar would have, and the seconds that it is expected to take."""

    name: str
    seconds: float


@click.command(epilog=STOPS)
@options.out
@options.device
@options.precision
@click.option("--size", type=click.Choice(["auto", *SIZES]), default="auto", show_default=True, help=_SIZE)
@click.option("--open/--no-open", "show", default=False, help="Open the report in a browser.")
def demo(size: str, show: bool, out: Path | None, device: str, precision: str) -> None:
    """Train DIA on the embedded phantom and write an HTML report: minutes, offline, no account."""
    from diawork.base.compute import Compute
    from diawork.cli.probe import probe

    compute = Compute.auto(device, precision)
    costs = probe(preset(SIZES[0]), compute)
    size, why = choose(costs, size, begun(out))
    stages = plan(sized(size), costs)
    arithmetic = f"{compute.precision} on {compute.device}, {compute.as_dict()['threads']} threads"
    say(f"size {size}: about {spoken(stages)} on this machine as it is now ({arithmetic}); {why}")
    with contextlib.closing(Whole(stages)) as whole:
        page = run_methods(
            sized(size), size, "dia,csi,controls", 1, out=out, device=device, precision=precision,
            on_run=whole.after_run, progress=whole.stage,
        )  # fmt: skip
        whole.finish()
    if show:
        webbrowser.open(page.absolute().as_uri())


def sized(size: str) -> ExperimentConfig:
    """Return the config of a demo of this size."""
    return preset(size, dataset="phantom")


def begun(out: Path | None) -> str:
    """Return the size of a demo that was begun in this folder for runs, "" where there is none."""
    from diawork.data.manifests import load_manifest
    from diawork.runs.methods import method_config
    from diawork.runs.resolve import resolve
    from diawork.runs.run import Run, runs_root

    records = [Run(path.parent).config() for path in runs_root(out).glob("phantom-*/config.json")]
    for size in SIZES:
        cfg = resolve(method_config(sized(size), "dia"), load_manifest("phantom"))
        if any(record["digest"] == cfg.digest(record["data"]["identity"]) for record in records):
            return size
    return ""


def choose(costs: Costs, asked: str = "auto", known: str = "") -> tuple[str, str]:
    """Return a size, the largest that ends in time unless one was asked for or begun, and why it is this one."""
    if asked != "auto":
        return asked, "as asked"
    if known:
        return known, "it was begun here, and what is finished is found again"
    for size in SIZES:
        if sum(stage.seconds for stage in plan(sized(size), costs)) <= WITHIN:
            return size, f"the largest that a probe expects to end within {WITHIN / 60:.0f} minutes"
    return SIZES[-1], f"the smallest there is; {WITHIN / 60:.0f} minutes take a faster or a quieter machine"


def plan(cfg: ExperimentConfig, costs: Costs) -> list[Stage]:
    """Return the stages of a demo in their order: DIA, CSI, then the controls and the page.

    A pass forward costs a third of a training step; a step of DIA embeds 3·K views an image and dissolves it, one of
    CSI 2·K; a score takes K views of each of T′ copies.
    """
    from diawork.data.manifests import load_manifest

    counts = {split: sum(some.values()) for split, some in load_manifest(cfg.dataset).counts.items()}
    seen = cfg.train.epochs * counts["train"]
    look = cfg.score.samples * K * costs.view / 3
    stages = [Stage("DDPM", cfg.diffusion.steps * cfg.diffusion.batch_size * costs.image)]
    for branches, dissolving in ((3, costs.image / 3), (2, 0.0)):
        stages += [
            Stage("training", seen * (branches * K * costs.view + dissolving)),
            Stage("features of the bank", counts["train"] * look),
            Stage(SCORING, (counts["val"] + counts["test"]) * look + REST),
        ]
    return [*stages, Stage("controls and report", REST)]


def spoken(stages: Sequence[Stage]) -> str:
    """Say how long the stages take together."""
    seconds = sum(stage.seconds for stage in stages)
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


class Whole:
    """One bar over all stages, in seconds as planned; what was found finished leaves it."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.left, self.trained = list(stages), False
        self.done, self.total = 0.0, sum(stage.seconds for stage in stages)  # s
        self._bar = tqdm(total=self.total, bar_format=BAR, smoothing=0, file=sys.stderr)

    @contextlib.contextmanager
    def stage(self, *, total: int, initial: int, desc: str) -> Iterator[Part]:
        """Begin the next stage of this name; its steps move the bar by the seconds that they were planned to take."""
        if desc not in [stage.name for stage in self.left]:
            yield Part(self, 0.0)
            return
        while self.left[0].name != desc:
            self._drop(self.left.pop(0).seconds)
        seconds = self.left.pop(0).seconds
        self._drop(seconds * initial / max(1, total))
        self.trained |= desc == "training"
        self._bar.set_description_str(desc)
        yield Part(self, seconds / max(1, total))

    def after_run(self, run: Run) -> None:
        """Tell a result above the bar, and count what its run does beside its stages."""
        name = "" if run.result()["control"] else self.left[0].name
        while name and name != SCORING:
            self._drop(self.left.pop(0).seconds)
            name = self.left[0].name
        if name:
            (self.advance if self.trained else self._drop)(self.left.pop(0).seconds)
        self.trained = False
        self._bar.set_description_str(self.left[0].name)
        tell(run)

    def advance(self, seconds: float) -> None:
        """Move the bar by so many planned seconds."""
        self.done += seconds
        self._bar.update(seconds)

    def finish(self) -> None:
        """Count what is left as done."""
        self.advance(self.total - self.done)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def _drop(self, seconds: float) -> None:
        self.total -= seconds
        self._bar.total = self.total
        self._bar.refresh()


class Part:
    """The steps of one stage on the bar of all."""

    def __init__(self, whole: Whole, seconds: float) -> None:
        self._whole, self._seconds = whole, seconds

    def update(self, n: int = 1) -> None:
        """Count n more steps."""
        self._whole.advance(n * self._seconds)

    def set_postfix(self, *_: Any, **__: Any) -> None:
        """Leave the values of a stage to the run's records."""
