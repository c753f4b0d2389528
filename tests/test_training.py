"""Training: learning rates, optimisers, exact resume, isolation, refusals."""

import pytest
import torch

from diawork.base.checkpoints import Checkpointer
from diawork.base.config import LossConfig, TrainConfig, ViewsConfig
from diawork.base.errors import Interrupted, NumericError, UsageError
from diawork.base.stopping import _asked
from diawork.method.encoder import build_encoder
from diawork.method.scoring import extract_features
from diawork.method.training import build_optimizer, epoch_batches, fit, learning_rate
from diawork.method.views import BranchBuilder
from diawork.runs.presets import preset
from tests.toys import before_each_save

QUICK = TrainConfig(epochs=2, batch_size=4, warmup_epochs=0.5)
X = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def run(encoder=None, *, train=QUICK, x=X, **kw):
    encoder = encoder or build_encoder(seed=0)
    history = fit(encoder, x, BranchBuilder(ViewsConfig()), train=train, loss=LossConfig(), progress=False, **kw)
    return encoder, history


def same_weights(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.fixture(scope="module")
def undisturbed():
    return run()


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(1, 0.1876), (2, 0.2776), (5, 0.5476), (10, 0.9976), (50, 0.9961), (100, 0.9802), (400, 0.6694), (1000, 0.0003)],
)
def test_released_schedule_gives_the_published_rates(epoch, rate):
    fraction = (epoch - 1) + 37 / 38  # the last of 38 batches
    assert learning_rate(fraction, preset("repo2024").train) == pytest.approx(rate, abs=1e-4)


def test_warm_up_and_cosine_meet_at_the_peak_and_end_at_zero():
    cfg = TrainConfig(epochs=10, warmup_epochs=2, start_lr=0.01, peak_lr=0.1)
    assert [learning_rate(e, cfg) for e in (0, 2, 10)] == pytest.approx([0.01, 0.1, 0.0])
    assert learning_rate(0, TrainConfig(warmup_epochs=0, peak_lr=0.3)) == pytest.approx(0.3)


def test_lars_equals_the_formula_on_a_hand_worked_step():
    encoder = build_encoder(seed=0)
    optimizer = build_optimizer(encoder, TrainConfig(optimizer="lars", peak_lr=1.0, weight_decay=1e-6))
    p = encoder.shift.weight
    old, g = p.detach().clone(), torch.randn_like(p)
    p.grad = g.clone()
    optimizer.step()
    adapted = 0.001 * old.norm() / (g.norm() + 1e-6 * old.norm() + 1e-8)
    assert torch.allclose(p, old - adapted * (g + 1e-6 * old), atol=1e-7)


def test_lars_leaves_a_zero_tensor_unscaled():
    encoder = build_encoder(seed=0)
    optimizer = build_optimizer(encoder, TrainConfig(optimizer="lars", peak_lr=1.0))
    bias = encoder.backbone.bn1.bias
    bias.grad = torch.ones_like(bias)
    optimizer.step()
    assert torch.allclose(bias, -torch.ones_like(bias))


@pytest.mark.parametrize(
    ("mode", "n", "expected"),
    [("full", 1, [4] * 5), ("samples", 7, [4, 3]), ("samples", 18, [4] * 5), ("batches", 3, [4] * 3)],
)
def test_epoch_sizes(mode, n, expected):
    cfg = TrainConfig(batch_size=4, epoch_size=mode, epoch_n=n)
    order = epoch_batches(18, cfg, seed=0, epoch=0)
    assert [len(b) for b in order] == expected
    assert [b.tolist() for b in order] != [b.tolist() for b in epoch_batches(18, cfg, seed=0, epoch=1)]


def test_the_papers_epoch_holds_200_different_images():
    seen = torch.cat(epoch_batches(1214, preset("paper").train, seed=0, epoch=0))
    assert len(seen) == 200 == len(seen.unique())


def test_every_image_is_seen_in_a_full_epoch():
    seen = torch.cat(epoch_batches(18, TrainConfig(batch_size=4), seed=0, epoch=0))
    assert set(seen.tolist()) == set(range(18))


def test_loss_falls_and_every_step_is_recorded(undisturbed):
    history = undisturbed[1]
    assert [row["step"] for row in history.steps] == [0, 1, 2, 3]
    _, longer = run(train=TrainConfig(epochs=12, batch_size=8, warmup_epochs=0, peak_lr=0.05))
    losses = [row["loss"] for row in longer.steps]
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_stopped_training_goes_on_exactly(undisturbed, tmp_path, stop_after):
    def stop(_checkpointer, step, _snapshot):
        if step == stop_after:
            _asked.set()

    with before_each_save(stop), pytest.raises(Interrupted):
        run(checkpointer=Checkpointer(tmp_path, spec={}))
    encoder, history = run(checkpointer=Checkpointer(tmp_path, spec={}))
    assert same_weights(encoder, undisturbed[0]) and history.steps == undisturbed[1].steps


def test_scoring_between_epochs_changes_nothing(undisturbed):
    def score_in_between(epoch, encoder):
        torch.rand(50)
        extract_features(encoder, X, views=ViewsConfig(), score=preset("smoke").score)

    encoder, _ = run(on_epoch=score_in_between)
    assert same_weights(encoder, undisturbed[0])


def test_best_validation_epoch_is_kept(undisturbed):
    chosen = {}

    def first_is_best(epoch, encoder):
        chosen.setdefault("weights", {k: v.clone() for k, v in encoder.state_dict().items()})
        return -float(epoch)

    encoder, history = run(train=QUICK.model_copy(update={"select": "val"}), on_epoch=first_is_best)
    assert history.selected == 1 and not same_weights(encoder, undisturbed[0])
    assert all(torch.equal(v, chosen["weights"][k]) for k, v in encoder.state_dict().items())


def test_selection_without_a_score_is_refused():
    with pytest.raises(UsageError, match="needs a validation score"):
        run(train=QUICK.model_copy(update={"select": "val", "epochs": 1}))


def test_one_image_is_too_few():
    with pytest.raises(UsageError, match="at least 2 images, there is 1"):
        run(x=X[:1])


def test_divergence_names_the_batch():
    broken = X.clone()
    broken[3] = torch.nan
    with pytest.raises(
        NumericError, match=r"stopped being finite at step \d+: the views of these images hold NaN .*images \[.*3"
    ):
        run(x=broken)


def test_a_numeric_stop_leaves_a_sound_checkpoint(tmp_path, monkeypatch):
    """BatchNorm statistics included: nothing that is not finite was ever forwarded, or saved."""
    broken, encoder = X.clone(), build_encoder(seed=0)
    broken[epoch_batches(8, QUICK, seed=0, epoch=0)[1][2]] = torch.inf  # in the second batch
    with pytest.raises(NumericError, match="at step 1: the views of these images hold NaN or infinite values"):
        run(encoder, x=broken, checkpointer=Checkpointer(tmp_path, spec={}, every_seconds=0))
    found = Checkpointer(tmp_path, spec={}).restore()
    statistics = {k: v for k, v in found.tensors.items() if "running" in k}
    assert found.state["step"] == 1 and len(statistics) == 40
    assert all(torch.isfinite(v).all() for v in statistics.values())
    assert all(torch.isfinite(v).all() for v in encoder.state_dict().values())


@pytest.mark.parametrize("change", [{"optimizer": "lars"}, {"optimizer": "adamw"}, {"momentum": 0.0}])
def test_every_optimiser_resumes_exactly(tmp_path, change):
    train = QUICK.model_copy(update=change | {"peak_lr": 1e-2, "select": "val"})
    loss = LossConfig(shift_weight=0.0)  # a head without a loss has a state, too

    def go(epochs, folder, encoder=None):
        encoder, checkpointer = build_encoder(seed=0), Checkpointer(folder, spec={})
        builder, cut = BranchBuilder(ViewsConfig()), train.model_copy(update={"epochs": epochs})
        fit(
            encoder,
            X,
            builder,
            train=cut,
            loss=loss,
            checkpointer=checkpointer,
            on_epoch=lambda e, _: e,
            progress=False,
        )
        return encoder

    constant = {"warmup_epochs": 0.0, "decay_epochs": 10**6}  # so that two epochs begin as one does
    train = train.model_copy(update=constant)
    go(1, tmp_path / "a")
    assert same_weights(go(2, tmp_path / "a"), go(2, tmp_path / "b"))


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_other_optimisers_train(optimizer):
    encoder, history = run(train=QUICK.model_copy(update={"optimizer": optimizer, "peak_lr": 1e-3, "epochs": 1}))
    assert not same_weights(encoder, build_encoder(seed=0)) and history.selected == 1
