"""Stopping: signals at any moment save, end in exit code 75, and the same command goes on exactly."""

import contextlib
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from diawork.base.errors import Interrupted
from diawork.base.stopping import graceful_stop, raise_if_stopping, stop_at_once
from diawork.cli.main import main
from diawork.detectors import dia as contrastive
from diawork.detectors.dia import DIA
from diawork.runs import run as runs
from tests.toys import (
    CFG,
    IMAGES,
    SETTINGS,
    TEST,
    as_format_1,
    before_each_save,
    child,
    disturbed,
    duration,
    ended,
    equal,
    pretrained,
    trained,
)

pytestmark = [
    pytest.mark.usefixtures("small"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="signals forked processes"),
]


@pytest.fixture(autouse=True)
def _ctrl_c_counts():
    """Take SIGINT as a terminal sends it, also where these tests were started with it ignored (nohup, ``&``)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def command(toy, out, log=None):
    """Do `diawork run` on the toy phantom; every step done leaves a byte in ``log``."""

    def logged(*_):
        with open(log, "ab", buffering=0) as f:
            f.write(b".")

    changes = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    argv = ["run", "--dataset", str(toy), "--preset", "smoke", "--methods", "dia", "--out", str(out), *changes]
    with before_each_save(logged) if log else contextlib.nullcontext():
        return main([*argv, "--device", "cpu", "--precision", "fp32"])


def scores_in(out):
    return next(out.glob("toy*/scores.csv")).read_bytes()


def stops(n, toy, folder, seed=0):
    """Stop `diawork run` n times at random moments; return when, by the share of the steps done."""
    rng, moments, slowest = random.Random(seed), [], 0.0
    runs.versions()  # before the forks, so that editing the code meanwhile is no difference
    longest = duration(lambda: command(toy, folder / "undisturbed", folder / "log"))
    wanted, total = scores_in(folder / "undisturbed"), (folder / "log").stat().st_size
    for i in range(n):
        out, log = folder / f"run-{i}", folder / f"log-{i}"
        number = (signal.SIGTERM, signal.SIGUSR1)[i % 2]
        code, seconds = disturbed(lambda out=out, log=log: command(toy, out, log), number, rng, longest)
        assert code == 75 and seconds < 5
        done = log.stat().st_size if log.exists() else 0
        assert ended(child(lambda out=out, log=log: command(toy, out, log))) == 0
        assert log.stat().st_size <= total + 1  # at most one step was done twice
        assert scores_in(out) == wanted
        moments.append(done / total)
        slowest = max(slowest, seconds)
    print(f"{n} of {n} stops: exit 75, the slowest after {slowest:.2f} s; at {sorted(round(m, 2) for m in moments)}")
    return moments


def test_two_stops_of_a_run_change_nothing(tmp_path, toy):
    assert len(stops(2, toy, tmp_path, seed=3)) == 2


@pytest.mark.slow
def test_fifty_stops_of_a_run_change_nothing(tmp_path, toy):
    moments = stops(50, toy, tmp_path, seed=1)
    assert min(moments) < 0.2 and max(moments) == 1  # from the first steps to scoring and the report


def test_a_stop_in_the_last_pass_is_not_lost():
    with pytest.raises(Interrupted, match="everything is saved"), graceful_stop():
        os.kill(os.getpid(), signal.SIGTERM)  # and no loop asks any more
    with graceful_stop():
        raise_if_stopping()  # the request does not outlive its block


def test_a_stop_outside_a_loop_is_at_once_and_not_swallowed():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), stop_at_once(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loop_inside_takes_over_and_gives_back():
    with pytest.raises(Interrupted, match="what was finished is kept"), stop_at_once():
        with contextlib.suppress(Interrupted), graceful_stop():
            os.kill(os.getpid(), signal.SIGUSR1)
            saved = True
        assert saved
        os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_ignored_from_outside_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with graceful_stop():
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_where_ctrl_c_is_ignored_the_other_signals_stop():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(Interrupted), stop_at_once():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)


@pytest.mark.parametrize("verb", ["run", "demo", "sweep", "notebook", "bench"])
def test_the_help_says_what_stops_it(verb, capsys):
    main([verb, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "SIGTERM or SIGUSR1" in said and "nohup" in said


@pytest.mark.parametrize("work", [pretrained, trained])
def test_ctrl_c_leaves_everything_usable(tmp_path, work):
    wanted, steps = work(tmp_path / "undisturbed"), []

    def interrupt(_checkpointer, step, _snapshot):
        steps.append(step)
        if steps == [1, 2, 3]:
            os.kill(os.getpid(), signal.SIGINT)

    with before_each_save(interrupt):
        with pytest.raises(Interrupted, match="everything is saved"):
            work(tmp_path / "run")
        assert steps == [1, 2, 3] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert equal(work(tmp_path / "run"), wanted) and steps[3] == 4


@pytest.mark.parametrize(
    "place",
    [
        "runs.experiment.load",
        "runs.experiment.check_splits",
        "runs.experiment._evaluate",
        "report.page.write_html",
    ],
)
def test_a_stop_between_the_loops_is_at_once(tmp_path, toy, monkeypatch, place):
    def stopped(*_args, **_kw):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(f"diawork.{place}", stopped)
    argv = ["run", "--dataset", str(toy), "--methods", "pixel_knn", "--out", str(tmp_path / "out"), "--device", "cpu"]
    start = time.monotonic()
    assert main(argv) == 75 and time.monotonic() - start < 5
    states = [json.loads(path.read_text())["state"] for path in tmp_path.glob("out/toy*/status.json")]
    assert states == {"runs.experiment._evaluate": ["interrupted"], "report.page.write_html": ["done"]}.get(place, [])
    monkeypatch.undo()
    assert main(argv) == 0


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), graceful_stop():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_exit_codes_of_one_and_two_ctrl_c(tmp_path, toy, capsys):
    for times, code in ((1, 75), (2, 130)):

        def press(*_, times=times):
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

        with before_each_save(press):
            assert command(toy, tmp_path / "out") == code
        assert "the same command goes on" in capsys.readouterr().err.lower()


def test_a_stop_between_two_epochs_asks_the_hook_again(tmp_path):
    """The step is saved, the epoch's end is not: the validation score is neither lost nor counted twice."""
    asked, answer = [], iter([0.5, Interrupted("stop"), 0.7])

    def hook(epoch, _):
        asked.append(epoch)
        given = next(answer)
        if isinstance(given, Exception):
            raise given
        return given

    with pytest.raises(Interrupted):
        DIA(None, CFG).fit(IMAGES, folder=tmp_path, on_epoch=hook, progress=False)
    detector = DIA(None, CFG).fit(IMAGES, folder=tmp_path, on_epoch=hook, progress=False)
    assert asked == [1, 2, 2] and [row["score"] for row in detector.history.epochs] == [0.5, 0.7]


def test_a_finished_training_is_loaded(tmp_path, monkeypatch):
    wanted = trained(tmp_path)
    monkeypatch.setattr(contrastive, "fit", None)
    detector = DIA(None, CFG).fit(IMAGES, folder=tmp_path)
    assert torch.equal(torch.from_numpy(detector.anomaly_scores(TEST)), wanted["scores"])
    assert len(detector.history.steps) == 6 and 0 < detector.history.seconds < 60


def test_a_finished_training_of_format_1_is_loaded(tmp_path, monkeypatch):
    wanted = trained(tmp_path)
    as_format_1(tmp_path / "detector")
    monkeypatch.setattr(contrastive, "fit", None)
    detector = DIA(None, CFG).fit(IMAGES, folder=tmp_path)
    assert torch.equal(torch.from_numpy(DIA.load(tmp_path).anomaly_scores(TEST)), wanted["scores"])
    assert len(detector.history.steps) == 6 and 0 < detector.history.seconds < 60


KERNEL = """
from diawork.base.config import DiffusionConfig
from diawork.method.ddpm import pretrain_ddpm
from tests.conftest import make_images
def go(steps):
    cfg = DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=8, steps=steps, batch_size=4)
    return pretrain_ddpm(make_images(size=8), cfg, folder="kept", progress=False)
print("ready", flush=True)
"""


FAIL_AFTER_A_STEP = """
from diawork.base.checkpoints import Checkpointer
Checkpointer.after_step = lambda self, step, snapshot: int(f"at {step}")
"""


@pytest.mark.slow
def test_interrupting_a_kernel_leaves_it_usable(tmp_path, monkeypatch):
    jupyter = pytest.importorskip("jupyter_client.manager")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    manager, client = jupyter.start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        assert client.execute_interactive(KERNEL, timeout=100)["content"]["status"] == "ok"
        asked = client.execute("go(5000)")
        time.sleep(3)
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=30)
        assert reply["parent_header"]["msg_id"] == asked and reply["content"]["ename"] == "Interrupted"
        assert len(list((tmp_path / "kept").glob("step-*.safetensors"))) == 1
        script = (
            "from diawork.base.checkpoints import Checkpointer as c\nc.after_step = lambda c, n, s: int(f'at {n}')\n"
        )
        reply = client.execute_interactive(f"{script}go(5000)", timeout=30)["content"]
        assert reply["ename"] == "ValueError" and re.search("'at ([2-9]|1.)", reply["evalue"])  # it goes on from there
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
