"""The explorer: one stack an image, look-ups after that, a still twin, and a widget that lives on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diawork.errors import DataError, NumericError, UsageError
from diawork.widgets import ALL, KEPT, DissolveExplorer, energy_removed

TS = [0, 50, 100]
NAMES = np.array(["healthy", "lesion", "lesion"])
IMAGES = {
    name: (np.random.default_rng(i).random((3, 8, 8), np.float32), NAMES) for i, name in enumerate(("val", "test"))
}


class Fading:
    """A stand-in for a model, which counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, ts):
        self.calls += 1
        return np.stack([x * (1 - t / 1000) for t in ts])


@pytest.fixture
def model():
    return Fading()


@pytest.fixture
def explorer(model):
    return DissolveExplorer(IMAGES, model, ts=TS)


def test_opens_on_test_at_the_step_nearest_100(explorer):
    assert (explorer.split, explorer.class_name, explorer.t) == ("test", ALL, 100)
    assert explorer.classes() == [ALL, "healthy", "lesion"]


def test_moving_the_slider_shows_other_pictures_without_the_model(explorer, model):
    explorer.widget  # noqa: B018
    seen = []
    for t in TS:
        explorer._steps.value = t
        seen.append(explorer._picture.value)
    assert len(set(seen)) == 3
    assert model.calls == 1


def test_the_widget_shows_what_frame_returns(explorer):
    explorer.widget  # noqa: B018
    explorer._steps.value = 50
    assert explorer._picture.value == explorer.frame()


def test_a_new_image_is_dissolved_once_and_kept(explorer, model):
    explorer.widget  # noqa: B018
    for index in (1, 0, 1, 2):
        explorer._images.value = index
    assert model.calls == 3


def test_pickers_follow_one_another(explorer):
    explorer.widget  # noqa: B018
    explorer._images.value = 2
    explorer._classes.value = "lesion"
    assert (explorer.index, explorer._images.max, list(explorer.rows())) == (0, 1, [1, 2])
    explorer._splits.value = "val"
    assert (explorer.split, explorer.class_name, explorer._images.max) == ("val", "lesion", 1)


def test_a_class_that_the_new_split_lacks_gives_way_to_all(model):
    explorer = DissolveExplorer(
        {"train": (IMAGES["val"][0][:1], NAMES[:1]), **IMAGES}, model, ts=TS, class_name="lesion"
    )
    explorer.widget  # noqa: B018
    explorer._splits.value = "train"
    assert (explorer.class_name, explorer._message.value) == (ALL, "")


def test_still_twin_needs_no_widget(explorer):
    said = [t.get_text() for t in explorer.still(50).findobj(lambda a: hasattr(a, "get_text"))]
    assert "dissolving step t = 50" in said
    assert explorer._widget is None


def test_a_failing_model_becomes_a_sentence_and_the_widget_lives_on(explorer, monkeypatch):
    explorer.widget  # noqa: B018
    whole = explorer._stack
    monkeypatch.setattr(explorer, "_stack", lambda x, ts: 1 / 0)
    explorer._images.value = 1
    assert "could not be dissolved (ZeroDivisionError" in explorer._message.value
    assert explorer._picture.layout.display == "none"
    monkeypatch.setattr(explorer, "_stack", whole)
    explorer._images.value = 2
    assert (explorer._message.value, explorer._picture.layout.display) == ("", None)


def test_messages_are_escaped(explorer, monkeypatch):
    def hostile(x, ts):
        raise DataError("<script>alert(1)</script>")

    explorer.widget  # noqa: B018
    monkeypatch.setattr(explorer, "_stack", hostile)
    explorer._images.value = 1
    assert "<script>" not in explorer._message.value


@pytest.mark.parametrize(
    ("answer", "error"),
    [(lambda x, ts: x[None], DataError), (lambda x, ts: np.full((3, *x.shape), np.nan), NumericError)],
)
def test_refuses_what_a_model_should_not_return(answer, error):
    with pytest.raises(error):
        DissolveExplorer(IMAGES, answer, ts=TS).still()


@pytest.mark.parametrize(
    ("choice", "says"),
    [({"split": "tset"}, "Did you mean 'test'"), ({"class_name": "leson"}, "'lesion'"), ({"ts": []}, "at least one")],
)
def test_refuses_a_wrong_choice(model, choice, says):
    with pytest.raises(UsageError, match=says):
        DissolveExplorer(IMAGES, model, **{"ts": TS} | choice)


def test_an_index_beyond_the_class_is_said_in_the_widget(model):
    explorer = DissolveExplorer(IMAGES, model, ts=TS, index=7)
    explorer.widget  # noqa: B018
    assert "there are 3" in explorer._message.value
    with pytest.raises(UsageError, match="nearest is 50"):
        explorer.still(51)


def test_the_cache_forgets_the_oldest(model):
    images = {"test": (np.random.default_rng(0).random((KEPT + 1, 4, 4), np.float32), np.full(KEPT + 1, "a"))}
    explorer = DissolveExplorer(images, model, ts=TS)
    for explorer.index in range(KEPT + 1):
        explorer._dissolved()
    assert len(explorer._kept) == KEPT
    assert ("test", 0) not in explorer._kept


def test_energy_is_the_share_of_variance():
    x = np.array([[0.0, 1.0]])
    assert energy_removed(x, np.stack([x, x * 0 + 0.5])) == pytest.approx([0, 1])
    assert np.isfinite(energy_removed(x * 0, np.ones((1, 1, 2)))).all()


def test_of_takes_splits_and_a_dissolver(images):
    class Stub:
        ddpm = SimpleNamespace(num_timesteps=300)

        def stack(self, x, ts):
            assert x.shape == (1, 1, 16, 16)
            return torch.stack([x * (1 - t / 300) for t in ts])

    data = SimpleNamespace(train=images, val=images, test=images.take([0, 1]))
    explorer = DissolveExplorer.of(data, Stub(), t=200)
    assert (max(explorer.ts), explorer.t, len(explorer.rows())) == (275, 200, 2)
    assert explorer.frame().startswith(b"\x89PNG")
