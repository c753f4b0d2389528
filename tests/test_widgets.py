"""The dissolving explorer: one stack an image, look-ups after that, still twins, and a widget that lives on."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diawork.base.errors import DataError, NumericError, UsageError
from diawork.figures import DissolveFrames
from diawork.figures.slider import energy_removed, radial_power
from diawork.method.ddpm import DDPM, build_ddpm
from diawork.widgets import DissolveExplorer
from diawork.widgets.stacks import ALL, KEPT, NOTHING, STEPS, Stacks
from tests.conftest import make_images
from tests.toys import TINY

TS = [0, 50, 100, 200, 400]
NAMES = np.array(["healthy", "lesion", "lesion"])
IMAGES = {
    name: (np.random.default_rng(i).random((3, 1, 8, 8), np.float32), NAMES) for i, name in enumerate(("val", "test"))
}


class Fading:
    """A stand-in for a model, which counts how often it is asked."""

    def __init__(self, strength=1):
        self.calls, self.strength = 0, strength

    def stack(self, x, ts, progress=None):
        self.calls += 1
        if progress:
            progress(0.5)
            progress(1.0)
        return torch.stack([x * (1 - self.strength * t / 1000) for t in ts])


class Answering:
    """A stand-in for a foreign model: its stack is whatever ``answer(x, ts)`` returns or raises."""

    def __init__(self, answer):
        self.answer = answer

    def stack(self, x, ts, progress=None):
        return self.answer(x, ts)


def absent():
    raise DataError("nowhere.npz was not found.")


@pytest.fixture
def model():
    return Fading()


@pytest.fixture
def explorer(model):
    return DissolveExplorer({"toy": IMAGES, "gone": absent}, {"DDPM": model, "blur": Fading(0.5)}, ts=TS)


@pytest.fixture
def live(explorer):
    explorer.widget  # noqa: B018
    return explorer


def test_forty_steps_fine_where_the_paper_works():
    assert len(STEPS) == 40 and set(range(20, 200, 10)) | {50, 100, 200, 400, 0, 999} <= set(STEPS)
    assert list(STEPS) == sorted(set(STEPS))


def test_opens_on_test_at_the_step_nearest_100(explorer):
    assert (explorer.dataset, explorer.split, explorer.class_name, explorer.t) == ("toy", "test", ALL, 100)
    assert (explorer.operator, explorer.beside) == ("DDPM", NOTHING)


def test_moving_the_slider_shows_other_pictures_without_the_model(live, model):
    seen = set()
    for t in TS:
        live.choose(t=t)
        seen.add(live.picture)
    assert len(seen) == len(TS) and model.calls == 1


def test_play_button_and_slider_are_linked_in_the_browser(live):
    play, slider = live.controls["play"], live.controls["t"]
    assert live.link.source == (play, "value") and live.link.target == (slider, "index")
    assert (play.value, play.max) == (TS.index(100), len(TS) - 1)


def test_every_control_has_a_label(live):
    assert all(control.description or control.tooltip for control in live.controls.values())


def test_controls_that_change_nothing_are_disabled(live):
    def disabled():
        return {name for name, control in live.controls.items() if getattr(control, "disabled", False)}

    assert disabled() == set()
    assert live.choose(show="strip of images") and disabled() == {"class_name", "beside"}
    one = {"test": (IMAGES["test"][0][:1], NAMES[:1])}
    live.stacks.add("one", one)
    live.controls["dataset"].options = list(live.stacks.sets)
    live.choose(show="one image", dataset="one")
    assert {"split", "index", "classes"} <= disabled()


def test_an_image_is_dissolved_once_an_operator_and_kept(live, model):
    for index in (1, 0, 1, 2):
        live.choose(index=index)
    assert model.calls == 3
    live.choose(beside="blur")
    assert (model.calls, live.stacks.operators["blur"].calls) == (3, 1)


def test_another_operator_stands_beside(live):
    alone = live.picture
    live.choose(beside="blur")
    assert live.picture != alone
    words = [t.get_text() for t in live.still().findobj(lambda a: hasattr(a, "get_text"))]
    assert {"DDPM", "blur", "dissolving step t = 100"} <= set(words)


def test_pickers_follow_one_another(live):
    live.choose(index=2)
    live.choose(class_name="lesion")
    assert (live.index, live.controls["index"].max) == (0, 1)
    live.choose(split="val")
    assert (live.split, live.class_name, live.controls["index"].max) == ("val", "lesion", 1)


def test_a_class_that_the_new_split_lacks_gives_way_to_all(model):
    images = {"train": (IMAGES["val"][0][:1], NAMES[:1]), **IMAGES}
    explorer = DissolveExplorer({"toy": images}, {"DDPM": model}, ts=TS, class_name="lesion")
    explorer.widget  # noqa: B018
    explorer.choose(split="train")
    assert (explorer.class_name, explorer.message) == (ALL, "")


def test_a_data_set_that_cannot_be_opened_is_said_and_not_chosen(live):
    live.choose(dataset="gone")
    assert live.message == "nowhere.npz was not found." and live.controls["dataset"].value == live.dataset == "toy"
    live.choose(index=1)
    assert live.message == ""


def test_the_strip_shows_the_chosen_classes(live):
    live.choose(show="strip of images")
    both = live.picture
    live.choose(classes=["lesion"])
    assert live.picture != both
    assert len(live.strip(["lesion"]).axes) == 2 * 5
    live.choose(classes=[])
    assert live.message == ""  # none chosen means all
    with pytest.raises(UsageError, match="Did you mean 'lesion'"):
        live.strip(["leson"])


def test_an_own_image_is_fitted_and_shown(live, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(64, dtype=np.uint16).reshape(8, 8) * 100)
    live.fit = lambda image: image[:, ::2, ::2]
    live.choose(path=str(tmp_path / "a.npy"))
    live.controls["open"].click()
    assert "it needs an intensity window" in live.message and live.dataset == "toy"
    live.choose(low="0")
    live.controls["open"].click()
    assert "needs two numbers" in live.message
    live.choose(high="3000")
    live.controls["open"].click()
    assert "a.npy: 33 of 64 values (51.56%) lie outside" in live.message
    assert (live.dataset, live.stacks.images("your own")["file"][0].shape) == ("your own", (1, 1, 4, 4))


def test_a_text_file_named_png_is_one_sentence(live):
    file = {"name": "x.png", "type": "image/png", "size": 5, "content": b"hello"}
    live.choose(upload=({**file, "last_modified": datetime.now(UTC)},))
    shown = live.picture
    live.controls["open"].click()
    assert live.message.startswith("x.png: this is no PNG, JPEG, TIFF, BMP, WebP,") and live.picture == shown


def test_another_model_is_put_beside_or_refused(live):
    live.choose(model="some/folder")
    live.controls["load"].click()
    assert "no model can be loaded here" in live.message
    live.open_model = lambda folder: Fading(0.2)
    live.controls["load"].click()
    assert (live.message, live.beside, live.controls["beside"].value) == ("", "some/folder", "some/folder")


def test_a_failing_model_becomes_a_sentence_and_the_widget_lives_on(live):
    whole = live.stacks.operators["DDPM"]
    live.stacks.operators["DDPM"] = Answering(lambda x, ts: 1 / 0)
    live.choose(index=1)
    assert "could not be shown (ZeroDivisionError" in live.message and live.picture == b""
    live.stacks.operators["DDPM"] = whole
    live.choose(index=2)
    assert live.message == "" and live.picture


def test_messages_are_escaped(live):
    def hostile(x, ts):
        raise DataError("<script>alert(1)</script>")

    live.stacks.operators["DDPM"] = Answering(hostile)
    live.choose(index=1)
    assert any("&lt;script&gt;" in str(child.value) for child in live.widget.children if hasattr(child, "value"))


@pytest.mark.parametrize(
    ("answer", "error"),
    [(lambda x, ts: x, DataError), (lambda x, ts: np.full((len(ts), *x.shape), np.nan), NumericError)],
)
def test_refuses_what_a_model_should_not_return(answer, error):
    with pytest.raises(error):
        DissolveExplorer({"toy": IMAGES}, {"DDPM": Answering(answer)}, ts=TS).still()


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"split": "tset"}, "Did you mean 'test'"), ({"class_name": "leson"}, "'lesion'"), ({"ts": []}, "at least one"),
        ({"dataset": "toi"}, "'toy'"), ({"beside": "DDPN"}, "'DDPM'"),
    ],
)  # fmt: skip
def test_refuses_a_wrong_choice(model, choice, says):
    with pytest.raises(UsageError, match=says):
        DissolveExplorer({"toy": IMAGES}, {"DDPM": model}, **{"ts": TS} | choice)


def test_an_empty_class_or_an_index_beyond_is_said(model):
    explorer = DissolveExplorer({"toy": IMAGES}, {"DDPM": model}, ts=TS, index=7)
    explorer.widget  # noqa: B018
    assert "there are 3" in explorer.message
    with pytest.raises(UsageError, match="nearest is 50"):
        explorer.still(51)
    with pytest.raises(DataError, match="no image 0 of 'cyst'"):
        explorer.stacks.row("toy", "test", "cyst", 0)


def test_the_cache_forgets_the_oldest_and_what_an_image_of_ones_own_may_change(model):
    images = {"test": (np.random.default_rng(0).random((KEPT + 1, 1, 4, 4), np.float32), np.full(KEPT + 1, "a"))}
    stacks = Stacks({"toy": images}, {"DDPM": model}, TS)
    for row in (*range(KEPT + 1), KEPT, 0):
        stacks.stack("toy", "test", row, "DDPM")
    assert model.calls == KEPT + 2
    stacks.add("toy", images)
    stacks.stack("toy", "test", 0, "DDPM")
    assert model.calls == KEPT + 3


def test_the_other_steps_are_drawn_while_the_kernel_waits(explorer):
    async def waiting():
        explorer.widget  # noqa: B018
        await asyncio.sleep(2)

    asyncio.run(waiting())
    assert all(explorer.frames().has(i) for i in range(len(TS)))


def test_of_takes_a_model_and_opens_other_sets_when_they_are_chosen(monkeypatch):
    monkeypatch.setattr("diawork.widgets.dissolving.load", lambda name, root: absent())
    ddpm = DDPM(build_ddpm(TINY).eval(), build_ddpm(TINY).eval(), TINY)
    images = make_images(size=8)
    data = SimpleNamespace(train=images, val=images, test=images, manifest=SimpleNamespace(name="toy"))
    explorer = DissolveExplorer.of(data, ddpm, ts=[0, 2, 4], t=2)
    assert next(iter(explorer.stacks.sets)) == "toy" and "blur" in explorer.beside
    assert explorer.picture.startswith(b"\x89PNG")
    assert explorer.choose(dataset="phantom").message == "nowhere.npz was not found."


def test_a_picture_has_one_or_two_operators_and_all_their_steps():
    x = IMAGES["test"][0][0]
    with pytest.raises(UsageError, match="1 or 2"):
        DissolveFrames(x, {}, TS)
    with pytest.raises(UsageError, match="do not hold 5 steps"):
        DissolveFrames(x, {"a": x[None]}, TS)


def test_energy_is_the_share_of_variance():
    x = np.array([[0.0, 1.0]])
    assert energy_removed(x, np.stack([x, x * 0 + 0.5])) == pytest.approx([0, 1])
    assert np.isfinite(energy_removed(x * 0, np.ones((1, 1, 2)))).all()


def test_a_wave_has_its_power_at_its_own_frequency():
    wave = np.cos(2 * np.pi * 3 * np.arange(16) / 16)[None].repeat(16, 0)
    frequency, power = radial_power(np.stack([wave, 0 * wave]))
    assert frequency[power[0].argmax()] == 3 / 16 and power[1].max() == 0 and power.shape == (2, 8)
    with pytest.raises(DataError, match="wanted 4 px"):
        radial_power(wave[:2])
