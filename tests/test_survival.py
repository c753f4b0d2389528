"""Survival: killed, signalled or out of disk at any moment, a run ends as the undisturbed one does."""

import builtins
import contextlib
import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from diawork import checkpoints, diffusion, files, training
from diawork.checkpoints import Keeper, optimizer_state
from diawork.cli import main
from diawork.config import DiffusionConfig
from diawork.detectors import DIA, contrastive
from diawork.diffusion import load_ddpm, pretrain_ddpm
from diawork.encoder import Embedding
from diawork.errors import Interrupted, ResourceError
from diawork.experiment import run_experiment
from diawork.presets import preset
from diawork.seeding import isolated_rng
from diawork.stopping import graceful_stop, raise_if_stopping, stop_at_once
from tests.conftest import make_images

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
TINY = DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=8, steps=8, batch_size=4, lr=1e-3, ema_every=1)
IMAGES, TEST = make_images(size=8), make_images(6, 8, split="test", anomalous=3, seed=1)
CFG = preset("smoke").override({"dissolve.operator": "gaussian_blur", "train.batch_size": 4})


class Small(nn.Module):
    """An encoder of a few hundred weights, with BatchNorm."""

    def __init__(self, projection_dim):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.projection, self.shift = nn.Linear(8, projection_dim), nn.Linear(8, 4)

    def forward(self, x):
        h = self.body(x).mean((2, 3))
        return Embedding(h, self.projection(h), self.shift(h))


def small_encoder(cfg, *, seed=0):
    with isolated_rng(seed, "encoder", "init"):
        return Small(cfg.projection_dim)


class Eager(Keeper):
    """Saves after every step, whatever it costs."""

    def after_step(self, step, snapshot):
        self._last, self._cost, self.every_seconds = 0.0, 0.0, 0.0
        super().after_step(step, snapshot)


@pytest.fixture(autouse=True)
def small_and_single_threaded(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    monkeypatch.setattr(contrastive, "build_encoder", small_encoder)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(diffusion, "Keeper", Eager)
    monkeypatch.setattr(contrastive, "Keeper", Eager)


def child(work):
    """Do ``work`` in a forked process of a group of its own; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        signal.alarm(100)  # a child that hangs fails its test
        code = work() or 0
    finally:
        os._exit(code)


def ended(pid):
    """Wait for a child; return its exit code, negative for the signal that killed it. Nothing of it is left."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    return code


def disturbed(work, number, rng, longest):
    """Run ``work`` and send it a signal within ``longest`` seconds; return the exit code and how long it lived on."""
    while True:
        pid = child(work)
        time.sleep(rng.uniform(0, longest))
        sent = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        code = ended(pid)
        if code != 0:
            return code, time.monotonic() - sent
        longest *= 0.8  # it had finished


def duration(work):
    start = time.monotonic()
    assert ended(child(work)) == 0
    return time.monotonic() - start


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- kill -9 -----------------------------------------------------------------------------------------


def pretrained(folder):
    """Pretrain to the end; return raw, average and optimiser as tensors."""
    kept = {}
    result = diffusion._Trainer.result
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            diffusion._Trainer, "result", lambda self: kept.update(optimizer_state(self.optimizer)) or result(self)
        )
        ddpm = pretrain_ddpm(IMAGES, TINY, folder=folder, progress=False)
    losses = {"losses": torch.tensor(ddpm.losses)}
    return {f"{w}.{k}": v for w in ("raw", "ema") for k, v in ddpm.weights(w).state_dict().items()} | kept | losses


def trained(folder):
    """Train a detector to the end; return encoder, optimiser and scores as tensors."""
    kept = {}
    finish = training._Loop.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training._Loop, "finish", lambda self: kept.update(optimizer_state(self.optimizer)) or finish(self)
        )
        detector = DIA(None, CFG).fit(IMAGES, folder=folder, progress=False)
    scores = {"scores": torch.from_numpy(detector.anomaly_scores(TEST)), "bank": detector.bank.axes}
    return {**detector.encoder.state_dict(), **kept, **scores}


def kills(work, n, folder, seed=0):
    """Kill ``work`` n times at random moments, resume it each time; return how many ended as if undisturbed."""
    rng, wanted = random.Random(seed), work(folder / "undisturbed")
    longest = duration(lambda: work(folder / "timed") and None)
    survived, within_a_save = 0, 0
    for i in range(n):
        place = folder / str(i)
        code, _ = disturbed(lambda place=place: work(place) and None, signal.SIGKILL, rng, longest)
        within_a_save += len(list(place.glob(".*.tmp"))) + len(unpaired(place))
        survived += code == -signal.SIGKILL and equal(work(place), wanted)
        assert not list(place.glob(".*.tmp")) and not unpaired(place)
    print(f"{survived} of {n} kills of {work.__name__} resumed to the same end, {within_a_save} had hit a save")
    return survived


def unpaired(folder):
    return [p for p in folder.glob("*.safetensors") if not p.with_suffix(".json").exists()]


@pytest.mark.parametrize("work", [pretrained, trained])
def test_two_kills_change_nothing(tmp_path, eager, work):
    assert kills(work, 2, tmp_path) == 2


@pytest.mark.slow
@pytest.mark.parametrize("work", [pretrained, trained])
def test_fifty_kills_change_nothing(tmp_path, eager, work):
    assert kills(work, 25, tmp_path, seed=1) == 25


def save_for_ever(folder, pipe):
    keeper = Keeper(folder, spec={"kind": "toy"})
    found = keeper.restore()
    for step in range(found.state["step"] + 1 if found else 0, 10**6):
        keeper.save(step, lambda step=step: ({"w": torch.full((50_000,), float(step))}, {"same": step}))
        os.write(pipe, step.to_bytes(4, "big"))


def save_loop(n, folder, seed=0):
    """Kill a save loop n times; each time the newest committed save must be there, whole."""
    rng, orphans = random.Random(seed), 0
    for _ in range(n):
        reading, writing = os.pipe()
        pid = child(lambda writing=writing: save_for_ever(folder, writing))
        os.close(writing)
        told = os.read(reading, 4)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        with os.fdopen(reading, "rb") as pipe:
            told += pipe.read()
        left = {p.name for p in folder.iterdir()}
        found = Keeper(folder, spec={"kind": "toy"}).restore()
        step = found.state["step"]
        assert step >= int.from_bytes(told[-4:], "big") and found.state["same"] == step
        assert torch.equal(found.tensors["w"], torch.full((50_000,), float(step)))
        orphans += len(left - {p.name for p in folder.iterdir()})
        assert len(list(folder.iterdir())) <= 6 and not unpaired(folder)  # the older one may not be pruned yet
    print(f"{n} kills in a save loop: {n} loadable, 0 torn; {orphans} orphans in all, none after the restart")


@pytest.mark.filterwarnings("error")  # not even a fall back to the older one
def test_ten_kills_in_a_save_loop_lose_nothing(tmp_path):
    save_loop(10, tmp_path / "loop")


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_two_hundred_kills_in_a_save_loop_lose_nothing(tmp_path):
    save_loop(200, tmp_path / "loop", seed=1)


def crash_points(work, folder, step):
    """Crash at every ``step``-th rename of ``work``, just before and just after it; resume; return how many points."""
    wanted, replace, points = work(folder / "undisturbed"), os.replace, 0
    for n in range(1, 100, step):
        for after in (False, True):
            place = folder / f"{n}-{after}"
            count = iter(range(1, 1000))

            def crash(a, b, *, n=n, after=after, count=count):
                here = next(count) == n
                if here and not after:
                    os._exit(137)
                replace(a, b)
                if here:
                    os._exit(137)

            def until_the_crash(place=place, crash=crash):
                files.os.replace = crash
                work(place)

            if ended(child(until_the_crash)) == 0:
                return points
            points += 1
            assert equal(work(place), wanted), f"crash {'after' if after else 'before'} rename {n}"
    return points


def test_some_crash_points_of_a_pretraining(tmp_path, eager):
    assert crash_points(pretrained, tmp_path, 7) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("work", [pretrained, trained])
def test_every_crash_point(tmp_path, eager, work):
    points = crash_points(work, tmp_path, 1)
    print(f"{points} crash points of {work.__name__}")
    assert points >= 28


# --- signals -----------------------------------------------------------------------------------------

TOY = """
name: toy
title: A toy phantom
kind: phantom
licence: Apache-2.0
citation: none
classes: {0: healthy, 1: lesion}
roles: {healthy: normal, lesion: anomalous}
counts:
  train: {healthy: 24, lesion: 0}
  val: {healthy: 8, lesion: 8}
  test: {healthy: 12, lesion: 12}
image: {size: 16, channels: 1}
t_range: [30, 130]
bridge: pad
phantom: {kind: lung, lesion: spot, lesion_size: 4.0, lesion_contrast: 0.3, seed: 0}
"""


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path / "toy.yaml"


SETTINGS = {"diffusion.steps": 25, "diffusion.image_size": 16, "diffusion.batch_size": 4, "train.epochs": 10,
            "train.batch_size": 4, "train.select": "val"}  # fmt: skip


def command(toy, out, log=None):
    """Do `diawork run` on the toy phantom; every step done leaves a byte in ``log``."""
    changes = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    argv = ["run", "--dataset", str(toy), "--preset", "smoke", "--methods", "dia", "--out", str(out), *changes]
    for kind in (diffusion._Trainer, training._Loop) if log else ():
        kind.one_step = logged(kind.one_step, log)
    return main([*argv, "--device", "cpu", "--precision", "fp32"])


def logged(one_step, log):
    def step(*args, **kw):
        row = one_step(*args, **kw)
        with open(log, "ab", buffering=0) as f:
            f.write(b".")
        return row

    return step


def scores_in(out):
    return next(out.glob("toy*/scores.csv")).read_bytes()


def stops(n, toy, folder, seed=0):
    """Stop `diawork run` n times at random moments; return when, by the share of the steps done."""
    rng, moments, slowest = random.Random(seed), [], 0.0
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


def test_three_stops_of_a_run_change_nothing(tmp_path, toy):
    assert len(stops(3, toy, tmp_path)) == 3


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


@pytest.mark.parametrize(("work", "kind"), [(pretrained, diffusion._Trainer), (trained, training._Loop)])
def test_ctrl_c_leaves_everything_usable(tmp_path, monkeypatch, work, kind):
    wanted, take_step, steps = work(tmp_path / "undisturbed"), kind.one_step, []

    def interrupted(self, *args, **kw):
        steps.append(self.step)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(self, *args, **kw)

    monkeypatch.setattr(kind, "one_step", interrupted)
    with pytest.raises(Interrupted, match="everything is saved"):
        work(tmp_path / "run")
    assert steps == [0, 1, 2] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    steps.append("again")
    assert equal(work(tmp_path / "run"), wanted) and steps[4] == 3


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), graceful_stop():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_exit_codes_of_one_and_two_ctrl_c(tmp_path, toy, monkeypatch, capsys):
    take_step = diffusion._Trainer.one_step
    for times, code in ((1, 75), (2, 130)):

        def press(self, x, times=times):
            take_step(self, x)
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(diffusion._Trainer, "one_step", press)
        assert command(toy, tmp_path / "out") == code and "the same command goes on" in capsys.readouterr().err.lower()


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
    assert len(detector.history.steps) == 6


KERNEL = """
from diawork.config import DiffusionConfig
from diawork.diffusion import pretrain_ddpm
from tests.conftest import make_images
def go(steps):
    cfg = DiffusionConfig(dim=8, dim_mults=(1, 2), image_size=8, steps=steps, batch_size=4)
    return pretrain_ddpm(make_images(size=8), cfg, folder="kept", progress=False)
print("ready", flush=True)
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
        assert len(list((tmp_path / "kept").glob("step-*.json"))) == 1
        script = "import diawork.diffusion as d\nd._Trainer.one_step = lambda s, x: 1 / 0 if s.step == 0 else 2 / 0\n"
        script += "go(5000)"
        reply = client.execute_interactive(script, timeout=30)["content"]
        assert reply["ename"] == "ZeroDivisionError" and "2 / 0" in "".join(reply["traceback"])  # it resumed
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# --- no space, no permission, no disk ----------------------------------------------------------------


class Full:
    """A file on a full disk: half of what is written arrives."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise self.error


def failing_from(n, number, patch, root):
    """Let every durable write from the n-th on fail; return the artefacts as they were at that moment."""
    error, before, count = OSError(number, os.strerror(number)), {}, iter(range(1, 10_000))

    def opening(path, mode="r", *args):
        if mode != "wb" or next(count) < n:
            return builtins.open(path, mode, *args)
        if not before:
            before.update(artefacts(root))
        if number == 13:
            raise error
        return Full(builtins.open(path, mode, *args), error)

    patch.setattr(files, "open", opening, raising=False)
    return before


def artefacts(root):
    found = (p for p in root.rglob("*") if p.is_file() and p.name != "lock.json")
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def write_failures(numbers, toy, folder):
    """Fail from each of these writes on, with each error in turn; nothing written may suffer."""
    cfg = preset("smoke", dataset=str(toy)).override(SETTINGS)
    wanted = run_experiment(cfg, root=folder / "undisturbed", progress=False).folder
    for n in numbers:
        root, number = folder / str(n), (28, 13, 5)[n % 3]  # no space, no permission, input/output
        (root / "old").mkdir(parents=True)
        (root / "old" / "artefact").write_bytes(b"of another run")
        with pytest.MonkeyPatch.context() as patch:
            before = failing_from(n, number, patch, root)
            with pytest.raises(ResourceError, match=rf"cannot write [\d,]+ bytes \({os.strerror(number)}\)"):
                run_experiment(cfg, root=root, progress=False)
        assert before and artefacts(root) == before
        again = run_experiment(cfg, root=root, progress=False).folder
        assert (again / "scores.csv").read_bytes() == (wanted / "scores.csv").read_bytes()
    print(f"{len(numbers)} failing writes: one error each, every artefact byte-identical, the same command goes on")


def test_failing_writes_harm_nothing(tmp_path, eager, toy):
    write_failures((2, 9, 40), toy, tmp_path)


@pytest.mark.slow
def test_each_of_the_first_forty_writes_may_fail(tmp_path, eager, toy):
    write_failures(range(1, 41), toy, tmp_path)


def test_a_full_disk_is_told_before_the_first_step(tmp_path, monkeypatch):
    usage = checkpoints.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    monkeypatch.setattr(diffusion._Trainer, "one_step", lambda *_: pytest.fail("it began"))
    with pytest.raises(ResourceError, match=r"1 MB are free; three checkpoints take \d+ MB.*free some space"):
        pretrain_ddpm(IMAGES, TINY, folder=tmp_path / "ddpm", progress=False)


def test_the_foreseen_size_is_the_true_one(tmp_path, monkeypatch, eager):
    asked = []
    monkeypatch.setattr(Eager, "require_space", lambda self, t, o: asked.append((t, checkpoints.expected_state(o))))
    monkeypatch.setattr(Eager, "clear", lambda self: None)
    pretrain_ddpm(IMAGES, TINY, folder=tmp_path, progress=False)
    foreseen = sum(value.nbytes for part in asked[0] for value in part.values())
    assert max(p.stat().st_size for p in tmp_path.glob("step-*.safetensors")) == pytest.approx(foreseen, rel=0.1)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ResourceError, match="cannot write"):
        pretrain_ddpm(IMAGES, TINY, folder=tmp_path, progress=False)


def test_the_record_tells_where_a_checkpoint_comes_from(tmp_path, eager, monkeypatch):
    monkeypatch.setattr(Eager, "clear", lambda self: None)
    pretrain_ddpm(IMAGES, TINY, folder=tmp_path, progress=False)
    record = json.loads(sorted(tmp_path.glob("step-*.json"))[-1].read_text())
    assert record["bytes"] == max(p.stat().st_size for p in tmp_path.glob("step-*.safetensors"))
    assert record["spec"]["data"]["identity"] == IMAGES.identity and record["spec"]["value_range"] == [-1, 1]
    assert record["versions"]["torch"] == torch.__version__
    assert load_ddpm(tmp_path, TINY).config == TINY
