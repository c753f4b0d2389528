"""Several processes for one training: one process's gradients, draws and end, whatever their number; stops, kills."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from diawork.base.checkpoints import Checkpointer
from diawork.base.compute import Compute
from diawork.base.config import LossConfig, TrainConfig, ViewsConfig
from diawork.base.distributed import ALONE, Team, launch, leave
from diawork.base.errors import Interrupted, NumericError, ProcessDied, UsageError
from diawork.base.files import read_json, write_json
from diawork.base.seeding import isolated_rng
from diawork.method.ddpm import pretrain_ddpm
from diawork.method.encoder import Embedding
from diawork.method.operators import AddNoise
from diawork.method.training import fit, train_step
from diawork.method.views import BranchBuilder
from diawork.runs.cores import count_processes
from tests.toys import IMAGES, SETTINGS, TINY

X = torch.rand(7, 1, 16, 16, generator=torch.Generator().manual_seed(0))  # shares of 3 and 4
TRAIN = TrainConfig(epochs=2, batch_size=3, warmup_epochs=0)


class Small(nn.Module):
    """A tiny encoder without BatchNorm, which on CPUs sees one process's rows alone."""

    def __init__(self, norm=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.Tanh())
        self.projection, self.shift = nn.Linear(8, 6), nn.Linear(8, 4)

    def forward(self, x):
        h = self.body(x).mean((2, 3))
        return Embedding(h, self.projection(h), self.shift(h))


def small(norm=False):
    with isolated_rng(0, "small"):
        return Small(norm).double()


def contrasted(group, *, mask="naive"):
    """One step of DIA on seven images: the loss and the gradients."""
    encoder, rows = small(), group.rows(len(X))
    builder = BranchBuilder(ViewsConfig(), AddNoise())
    views = builder(X[rows].double(), index=torch.arange(len(X)), seed=0, step=3, rows=rows)
    loss = train_step(encoder, views, LossConfig(mask=mask), compute=Compute(group=group))
    gradients = {name: p.grad for name, p in encoder.named_parameters()}
    return {"loss": torch.stack(loss), **gradients}


def diffused(group, steps):
    """A pretraining of the tiny DDPM: both sets of weights and the losses."""
    cfg = TINY.model_copy(update={"steps": steps, "batch_size": 5, "accumulate": 2})
    ddpm = pretrain_ddpm(IMAGES, cfg, compute=Compute(group=group), progress=False)
    weights = {f"{w}.{k}": v for w in ("raw", "ema") for k, v in ddpm.weights(w).state_dict().items()}
    return weights | {"losses": torch.tensor(ddpm.losses)}


class Eager(Checkpointer):
    """Saves after every step."""

    def after_step(self, step, snapshot):
        self._last, self._cost, self.every_seconds = 0.0, 0.0, 0.0
        super().after_step(step, snapshot)


def trained(group, folder, *, norm=False, interrupted_in=0, before_step=lambda _: None):
    """A whole training, or what is left of it; the last epoch's weights and the losses."""

    class Noticing(BranchBuilder):
        def __call__(self, x, **kw):
            before_step(kw["step"])
            return super().__call__(x, **kw)

    def hook(epoch, _):
        if epoch == interrupted_in:
            raise Interrupted("Stopped in the hook.")
        return float(epoch)

    encoder, checkpointer = small(norm).float(), Eager(folder, spec={"kind": "toy"}, group=group)
    history = fit(
        encoder, X, Noticing(ViewsConfig(), AddNoise()), train=TRAIN, loss=LossConfig(), checkpointer=checkpointer,
        compute=Compute(group=group), on_epoch=hook, progress=False,
    )  # fmt: skip
    return encoder.state_dict() | {"losses": torch.tensor([row["loss"] for row in history.steps])}


def listed(tensors):
    return {name: value.tolist() for name, value in tensors.items()}


def killed(asked, group):
    """Train; the second process is killed before the fourth step."""

    def before_step(step):
        if step == 3 and group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trained(group, Path(asked["folder"]) / "killed", norm=True, before_step=before_step)


def two(asked, group):
    """What two processes make of everything that the tests compare; the first writes it down."""
    folder = Path(asked["folder"])
    made = {mask: contrasted(group, mask=mask) for mask in ("naive", "shifted_removed")}
    made |= {name: trained(group, folder / name, norm=True) for name in ("undisturbed", "killed")}
    made |= {"ddpm": diffused(group, 3), "two": trained(group, folder / "two")}
    with pytest.raises(Interrupted):
        trained(group, folder / "passed on", interrupted_in=2)
    if group.leads:
        write_json(folder / "made.json", {name: listed(tensors) for name, tensors in made.items()})


@pytest.fixture(scope="module")
def death(tmp_path_factory):
    """What is raised where one of two processes is killed, and where it was."""
    folder = tmp_path_factory.mktemp("processes")
    with pytest.raises(ProcessDied) as death:
        launch(killed, {"folder": str(folder)}, processes=2, cuda=False, logs=folder / "logs")
    assert (folder / "killed" / "step-000000003.safetensors").exists()
    return folder, death.value


@pytest.fixture(scope="module")
def folder(death):
    """Where a training was begun by one process and gone on with by two, and what these made."""
    folder, _ = death
    with pytest.raises(Interrupted):
        trained(ALONE, folder / "passed on", interrupted_in=1)
    launch(two, {"folder": str(folder)}, processes=2, cuda=False, logs=folder / "logs")
    assert not list((folder / "logs").iterdir())
    return folder


@pytest.fixture(scope="module")
def made(folder):
    """What two processes made, as tensors by part and name."""

    def tensors(values):
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    return {part: tensors(values) for part, values in read_json(folder / "made.json").items()}


def assert_close(ours, wanted, **tolerance):
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, check_dtype=False, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


@pytest.mark.parametrize("mask", ["naive", "shifted_removed"])
def test_two_processes_have_the_gradients_of_one(made, mask):
    """In double precision, shares of 3 and 4 images."""
    assert_close(made[mask], contrasted(ALONE, mask=mask), rtol=1e-9, atol=1e-12)


def test_two_processes_pretrain_as_one(made):
    wanted = diffused(ALONE, 3)
    assert_close(made["ddpm"], wanted, rtol=1e-3, atol=2e-5)  # micro-batches of 5 and 2 images; Adam divides


def test_a_training_goes_from_one_to_two_processes_and_back(folder, made):
    wanted = trained(ALONE, folder / "one")
    assert_close(made["two"], wanted, rtol=1e-3, atol=1e-5)
    assert_close(trained(ALONE, folder / "passed on"), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("per", ["image", "shift"])
@pytest.mark.parametrize("branches", ["third", "all"])
def test_views_are_the_same_by_image_whatever_the_number_of_processes(per, branches):
    builder = BranchBuilder(ViewsConfig(dissolve_per=per, dissolve_branches=branches), AddNoise())
    index = torch.arange(10, 17)
    whole = builder(X, index=index, seed=1, step=2)
    for rows in (slice(0, 2), slice(2, 7), slice(7, 7)):
        own = builder(X[rows], index=index, seed=1, step=2, rows=rows)
        mine = (whole.image >= rows.start) & (whole.image < rows.stop)
        for name, value in vars(own).items():
            assert torch.equal(value, getattr(whole, name)[mine]), name


def test_one_process_killed_ends_all_and_the_next_go_on(death, made):
    _, error = death
    assert "process 2 of 2 was ended by SIGKILL, and the others with it" in str(error) and error.exit_code == 137
    assert listed(made["killed"]) == listed(made["undisturbed"])  # to the bit


def stopped(asked, group):
    """Train, slowly; note the step that this process came to."""
    place = Path(asked["folder"]) / str(group.rank)

    def before_step(step):
        place.write_text(str(step))
        time.sleep(0.3)

    trained(group, Path(asked["folder"]), before_step=before_step)


def test_a_stop_is_passed_on_and_saved_once(tmp_path):
    def press():
        while not all((tmp_path / rank).exists() for rank in "01"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(Interrupted, match="everything is saved"):
        launch(stopped, {"folder": str(tmp_path)}, processes=2, cuda=False, logs=tmp_path)
    steps = {int((tmp_path / rank).read_text()) for rank in "01"}
    assert len(steps) == 1 and max(steps) < 5
    assert max(tmp_path.glob("step-*.safetensors")).stem == f"step-{max(steps) + 1:09d}"


class Ended:
    """A process that has ended."""

    def __init__(self, returncode):
        self.returncode = returncode

    def poll(self):
        return self.returncode


def left(folder, rank, error, monkeypatch):
    monkeypatch.setenv("RANK", str(rank))
    return Ended(leave(error, folder))


def trouble(folder, *members, stopped=False):
    team = Team()
    team.members, team.stopped = list(members), stopped
    return team.trouble(folder)


def test_the_first_failure_is_raised_and_its_echo_is_not(tmp_path, monkeypatch):
    first = left(tmp_path, 1, NumericError("no number.", hint="Lower it."), monkeypatch)
    echo = left(tmp_path, 0, RuntimeError("connection closed by peer"), monkeypatch)
    error = trouble(tmp_path, echo, first)
    assert type(error) is NumericError and str(error) == "no number. Lower it."
    assert "SIGKILL" in str(trouble(tmp_path, echo, Ended(-9)))
    assert type(trouble(tmp_path, echo, Ended(-15), stopped=True)) is NumericError  # it came before the stop
    assert trouble(tmp_path, Ended(0), Ended(0)) is None


def test_a_bug_and_a_silent_end_are_named(tmp_path, monkeypatch, capsys):
    assert "process 1 of 2 was ended by exit code 3" in str(trouble(tmp_path, Ended(3), Ended(0)))
    assert type(trouble(tmp_path, Ended(-15), Ended(1), stopped=True)) is Interrupted
    bug = left(tmp_path, 1, ValueError("no value"), monkeypatch)
    assert "process 2 of 2 was ended by a bug of ours (ValueError: no value)" in str(trouble(tmp_path, Ended(1), bug))
    assert "ValueError: no value" in capsys.readouterr().err  # the traceback
    memory = left(tmp_path, 1, MemoryError("4 GB"), monkeypatch)
    assert "train.batch_size" in str(trouble(tmp_path, Ended(1), memory))


def test_more_processes_than_cores_are_refused(monkeypatch):
    cpu = torch.device("cpu")
    assert count_processes(0, cpu) == 1
    with pytest.raises(UsageError, match=r"processes=5000 is more than the \d+ cores of this process"):
        count_processes(5000, cpu)
    with pytest.raises(UsageError, match="cuda:1, which is one device"):
        count_processes(2, torch.device("cuda:1"))
    monkeypatch.setenv("DIAWORK_PROCESSES", "many")
    with pytest.raises(UsageError, match="processes=many is not a number"):
        count_processes(0, cpu)


def started(toy, out, processes):
    """Start `diawork run` on the toy phantom in ``processes`` processes."""
    changes = [word for key, value in (SETTINGS | {"train.epochs": 12}).items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "diawork.cli.main", "run", "--dataset", str(toy), "--preset", "smoke"]
    command += ["--methods", "dia", "--out", str(out), "--device", "cpu", "--precision", "fp32", *changes]
    path = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen([*command, "--processes", str(processes)], env=path, stderr=subprocess.PIPE, text=True)


def second_member(parent):
    """Return the second process of a run's training, once it has worked for 4 s."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            own = (folder / "stat").read_text().rpartition(")")[2].split()
            asked = (folder / "cmdline").read_bytes()
            if int(own[1]) == parent and b"train_share" in asked and b"\0RANK=1\0" in (folder / "environ").read_bytes():
                return int(folder.name) if int(own[11]) > 4 * os.sysconf("SC_CLK_TCK") else None
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for a process in /proc")
def test_a_run_killed_in_one_process_ends_as_an_undisturbed_one(tmp_path, toy):
    def scores(out):
        return next((tmp_path / out).glob("toy*/scores.csv")).read_bytes()

    assert started(toy, tmp_path / "undisturbed", 2).wait() == 0
    run = started(toy, tmp_path / "killed", 2)
    while run.poll() is None and not (victim := second_member(run.pid)):
        time.sleep(0.05)
    os.kill(victim, signal.SIGKILL)
    _, said = run.communicate()
    assert run.returncode == 137 and "error[P900] process 2 of 2 was ended by SIGKILL" in said
    assert started(toy, tmp_path / "killed", 2).wait() == 0
    assert scores("killed") == scores("undisturbed")
    assert read_json(next((tmp_path / "killed").glob("toy*/result.json")))["processes"] == 2
