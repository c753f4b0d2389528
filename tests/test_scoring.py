"""Scoring: golden values, parts, invariances, and that it changes nothing."""

from dataclasses import replace

import pytest
import torch

from diawork.base.config import ScoreConfig, ViewsConfig
from diawork.base.errors import NumericError, UsageError
from diawork.method import scoring
from diawork.method.encoder import build_encoder
from diawork.method.scoring import FeatureBank, Features, extract_features, score

K, SAMPLES = 4, 2


def golden(n: int, dim: int, offset: float) -> torch.Tensor:
    """Return (K, n, dim): the spec's features, averaged over samples; t runs shift by shift."""
    i, t, c = torch.meshgrid(*map(torch.arange, (n, K * SAMPLES, dim)), indexing="ij")
    values = torch.sin(0.9 * i + 0.37 * t + 1.1 * c + offset) + 0.25 * torch.cos(0.5 * i * c + offset)
    return values.reshape(n, K, SAMPLES, dim).mean(2).transpose(0, 1)


@pytest.fixture(scope="module")
def bank():
    return FeatureBank.fit(Features(golden(5, 6, 0.0), golden(5, 4, 0.3) + 1.5))


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(seed=0).eval()


def features_of(encoder, x, **changes):
    settings = {"views": ViewsConfig(), "score": ScoreConfig(samples=2), "seed": 0} | changes
    return extract_features(encoder, x, **settings)


def test_agrees_with_the_golden_values(bank):
    assert bank.weight_similarity.tolist() == pytest.approx([0.519745, 0.550120, 0.600691, 0.651338], abs=1e-6)
    assert bank.weight_shift.tolist() == pytest.approx([0.498864, 0.794542, 0.741620, 0.528363], abs=1e-6)
    scores = score(Features(golden(3, 6, 0.8), golden(3, 4, 1.1) + 1.5), bank)
    assert (-scores.total).tolist() == pytest.approx([2.047936, 1.824573, 1.816035], abs=1e-6)


def test_parts_add_up_and_can_be_left_out(bank):
    features = Features(golden(3, 6, 0.8), golden(3, 4, 1.1) + 1.5)
    both, similarity, shift = (score(features, bank, parts=p) for p in ("both", "similarity", "shift"))
    assert torch.allclose(both.total, (both.similarity + both.shift).mean(1))
    assert torch.allclose(similarity.total + shift.total, both.total)


def test_nearest_is_the_bank_image_with_the_largest_product(bank):
    features = Features(golden(5, 6, 0.0), golden(5, 4, 0.3) + 1.5)
    products = torch.einsum("knd,kmd->knm", features.z, bank.axes)
    assert torch.equal(score(features, bank, block=2).nearest, products.argmax(2).T)


def test_undefined_weight_falls_back_to_the_probability():
    logits = torch.zeros(K, 5, K)
    logits[1, :, 1] = 2.0
    bank = FeatureBank.fit(Features(golden(5, 6, 0.0), logits))
    assert bank.undefined_shifts == [0, 2, 3]
    scores = score(Features(golden(2, 6, 0.5), logits[:, :2]), bank)
    assert scores.shift[0].tolist() == pytest.approx([-0.25, -1.0, -0.25, -0.25])


def test_bank_survives_its_tensors(bank):
    again = FeatureBank.from_tensors(bank.tensors())
    assert torch.equal(again.axes, bank.axes) and torch.equal(again.weight_shift, bank.weight_shift)


def test_refuses_features_that_are_not_finite(bank):
    broken = golden(3, 6, 0.8)
    broken[1, 2, 0] = torch.nan
    for use in (lambda features: score(features, bank), FeatureBank.fit):
        with pytest.raises(NumericError, match="not finite for 1 of 3 images, first 2"):
            use(Features(broken, golden(3, 4, 1.1)))
    with pytest.raises(NumericError, match="collapsed"):
        FeatureBank.fit(Features(torch.zeros(4, 3, 6), torch.ones(4, 3, 4)))
    with pytest.raises(NumericError, match="score of image 0 is not finite"):
        score(
            Features(golden(3, 6, 0.8), golden(3, 4, 1.1)), replace(bank, weight_similarity=torch.full((4,), torch.inf))
        )
    with pytest.raises(UsageError, match="parts='norm'"):
        score(Features(golden(3, 6, 0.8), golden(3, 4, 1.1)), bank, parts="norm")


def test_features_have_their_shapes_and_do_not_depend_on_the_batch(encoder):
    x = torch.rand(6, 1, 16, 16)
    whole, pieces = features_of(encoder, x), features_of(encoder, x, batch=4)
    assert whole.z.shape == (4, 6, 128) and whole.shift_logits.shape == (4, 6, 4)
    assert torch.allclose(whole.z, pieces.z, atol=1e-4)


def test_seeds_draw_differently(encoder):
    x = torch.rand(3, 1, 28, 28)
    assert not torch.allclose(features_of(encoder, x).z, features_of(encoder, x, seed=1).z)


def test_scoring_changes_nothing(encoder):
    encoder.train()
    weights = {k: v.clone() for k, v in encoder.state_dict().items()}
    before = torch.get_rng_state()
    features_of(encoder, torch.rand(0, 1, 16, 16).new_ones(3, 1, 16, 16))
    assert encoder.training and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, weights[k]) for k, v in encoder.state_dict().items())
    encoder.eval()


def test_the_score_of_an_image_does_not_depend_on_its_company(encoder):
    x = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    bank = FeatureBank.fit(features_of(encoder, x[:6]))
    total = score(features_of(encoder, x), bank).total
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))
    alone = torch.cat([score(features_of(encoder, x[i : i + 1]), bank).total for i in range(12)])
    for other in (alone, score(features_of(encoder, x, batch=5), bank).total):
        assert (other - total).abs().max() < 1e-4 * total.std()
    shuffled = score(features_of(encoder, x[order]), bank).total
    assert (shuffled - total[order]).abs().max() < 1e-4 * total.std()


@pytest.mark.parametrize("flip_per", ["copy", "shift"])
def test_a_copy_is_mirrored_once_or_once_a_shift(encoder, flip_per, monkeypatch):
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen, augment = [], scoring.augment
    monkeypatch.setattr(scoring, "augment", lambda rows, drawn: seen.append(rows) or augment(rows, drawn))
    features_of(encoder, x, score=ScoreConfig(samples=1, flip_per=flip_per))
    mirrored = torch.stack([(rows.rot90(-k, (2, 3)) != x).flatten(1).any(1) for k, rows in enumerate(seen)])
    assert mirrored.any() and not mirrored.all()
    assert (mirrored == mirrored[:1]).all() == (flip_per == "copy")
