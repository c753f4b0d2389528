"""On a CUDA device everything gives what the CPU gives, within rounding; skipped where there is none."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from diawork.base.compute import Compute
from diawork.base.config import EncoderConfig, LossConfig, ViewsConfig
from diawork.base.errors import Interrupted
from diawork.cli.main import main
from diawork.detectors.dia import DIA
from diawork.method.bank import DissolvedBank
from diawork.method.ddpm import build_ddpm, pretrain_ddpm
from diawork.method.dissolve import Dissolver
from diawork.method.encoder import build_encoder
from diawork.method.training import train_step
from diawork.method.views import BranchBuilder
from diawork.runs.presets import preset
from tests.toys import IMAGES, TEST, TINY, before_each_save

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is there"),
]
CARD, CPU = "cuda", Compute()
CFG = preset("smoke").override({"train.batch_size": 4, "dissolve.t_range": (0, 4), "dissolve.bridge": "none"})


@pytest.fixture
def card(monkeypatch):
    """The card in fp32, without the shortened mantissa that convolutions take by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return Compute.auto(CARD, "fp32")


def pretrained(compute, **more):
    return pretrain_ddpm(IMAGES, TINY, compute=compute, progress=False, **more)


def views(slot=None):
    return BranchBuilder(ViewsConfig(), slot)(IMAGES.images, index=torch.arange(len(IMAGES)), seed=0, step=0)


def test_ddpm_steps_are_those_of_the_cpu(card):
    assert pretrained(card).losses == pytest.approx(pretrained(CPU).losses, rel=1e-3)


def test_dissolving_is_that_of_the_cpu(card):
    ddpm, t = build_ddpm(TINY), torch.arange(len(IMAGES)) % 5
    there, here = (Dissolver(ddpm, compute=c, cfg=CFG.dissolve).at(IMAGES.images, t) for c in (card, CPU))
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=0)


def test_low_precision_dissolves_within_two_grey_levels(card):
    ddpm, t = build_ddpm(TINY), torch.arange(len(IMAGES)) % 5
    low = Dissolver(ddpm, compute=Compute.auto(CARD, "bf16"), cfg=CFG.dissolve).at(IMAGES.images, t)
    assert 255 * (low.cpu() - Dissolver(ddpm, cfg=CFG.dissolve).at(IMAGES.images, t)).abs().max() < 2


def test_a_training_step_is_that_of_the_cpu(card):
    losses, norms = [], []
    for compute in (card, CPU):
        encoder = compute.prepare(build_encoder(EncoderConfig())).train()
        losses.append(float(train_step(encoder, views(), LossConfig(), compute=compute).total))
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in encoder.parameters()])))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and norms[0] == pytest.approx(norms[1], rel=1e-2)


def test_dia_trains_with_live_dissolving_and_scores_as_the_cpu_does(card, tmp_path):
    there = DIA(pretrained(card), CFG, compute=card).fit(IMAGES, folder=tmp_path, progress=False)
    here = DIA.load(tmp_path, compute=CPU)
    scores = there.anomaly_scores(TEST), here.anomaly_scores(TEST)
    np.testing.assert_allclose(*scores, atol=1e-2 * scores[1].std())


def test_a_bank_holds_what_the_cpus_holds(card, tmp_path):
    ddpm, banks = build_ddpm(TINY), []
    for compute, folder in ((card, tmp_path / "card"), (CPU, tmp_path / "cpu")):
        slot = Dissolver(ddpm, CFG.dissolve, compute=compute)
        banks.append(DissolvedBank(slot, IMAGES.images, folder, steps=2, origin={}, progress=False))
    assert np.abs(banks[0].values.astype(int) - banks[1].values.astype(int)).max() <= 1


def test_a_stopped_training_goes_on_where_it_was(card, tmp_path):
    def stop(_checkpointer, step, _snapshot):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with before_each_save(stop), pytest.raises(Interrupted):
        pretrained(card, folder=tmp_path)
    assert pretrained(card, folder=tmp_path).losses == pytest.approx(pretrained(card).losses, rel=1e-4)


def test_a_run_and_its_report_are_made_on_it(small, toy, tmp_path, capsys):
    argv = ["run", "--dataset", str(toy), "--preset", "smoke", "--methods", "dia,csi", "--out", str(tmp_path / "runs")]
    assert main([*argv, "--device", CARD]) == 0
    assert "test AUROC" in capsys.readouterr().out


def test_bench_prints_its_table_against_the_cards_ceiling(tmp_path, capsys):
    page = tmp_path / "bench.html"
    assert main(["bench", "--quick", "--device", CARD, "--html", str(page)]) == 0
    costs, said = json.loads(page.with_suffix(".json").read_text()), capsys.readouterr().out
    assert costs["compute"]["device"].startswith(CARD) and costs["ceilings"]["conv_fp32"] > 1e9
    assert all(row["stage"] in said for row in costs["rows"]) and costs["machine"] in page.read_text()
