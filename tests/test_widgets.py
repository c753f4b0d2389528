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
from diawork.widgets import DissolveExplorer
from diawork.widgets.slots import ALL, KEPT, NOTHING, STEPS, Stacks

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


def said(live):
    return live._message.value.removeprefix("<p role='alert'>").removesuffix("</p>")


def test_forty_steps_fine_where_the_paper_works():
    assert len(STEPS) == 40 and set(range(20, 200, 10)) | {50, 100, 200, 400, 0, 999} <= set(STEPS)
    assert list(STEPS) == sorted(set(STEPS))


def test_opens_on_test_at_the_step_nearest_100(explorer):
    assert (explorer.dataset, explorer.split, explorer.class_name, explorer.t) == ("toy", "test", ALL, 100)
    assert (explorer.slot, explorer.beside) == ("DDPM", NOTHING)


def test_moving_the_slider_shows_other_pictures_without_the_model(live, model):
    seen = set()
    for t in TS:
        live._steps.value = t
        seen.add(live._picture.value)
        assert live._picture.value == live.frame()
    assert len(seen) == len(TS) and model.calls == 1


def test_play_button_and_slider_are_linked_in_the_browser(live):
    assert live._link.source == (live._play, "value") and live._link.target == (live._steps, "index")
    assert (live._play.value, live._play.max) == (TS.index(100), len(TS) - 1)


def test_every_control_has_a_label(live):
    controls = [live._datasets, live._splits, live._classes, live._images, live._slots, live._besides, live._steps]
    controls += [live._strip.classes, live._strip.n, live._strip.change, live._own.path, live._own.low, live._own.open]
    assert all(control.description for control in controls) and live._play.tooltip


def test_an_image_is_dissolved_once_an_occupant_and_kept(live, model):
    for index in (1, 0, 1, 2):
        live._images.value = index
    assert model.calls == 3
    live._besides.value = "blur"
    assert (model.calls, live.stacks.slots["blur"].calls) == (3, 1)


def test_another_occupant_stands_beside(live):
    alone = live._picture.value
    live._besides.value = "blur"
    assert live._picture.value != alone
    words = [t.get_text() for t in live.still().findobj(lambda a: hasattr(a, "get_text"))]
    assert {"DDPM", "blur", "dissolving step t = 100"} <= set(words)


def test_pickers_follow_one_another(live):
    live._images.value = 2
    live._classes.value = "lesion"
    assert (live.index, live._images.max) == (0, 1)
    live._splits.value = "val"
    assert (live.split, live.class_name, live._images.max) == ("val", "lesion", 1)


def test_a_class_that_the_new_split_lacks_gives_way_to_all(model):
    images = {"train": (IMAGES["val"][0][:1], NAMES[:1]), **IMAGES}
    explorer = DissolveExplorer({"toy": images}, {"DDPM": model}, ts=TS, class_name="lesion")
    explorer.widget  # noqa: B018
    explorer._splits.value = "train"
    assert (explorer.class_name, said(explorer)) == (ALL, "")


def test_a_data_set_that_cannot_be_opened_is_said_and_not_chosen(live):
    live._datasets.value = "gone"
    assert said(live) == "nowhere.npz was not found." and live._datasets.value == live.dataset == "toy"
    live._images.value = 1
    assert said(live) == ""


def test_the_strip_shows_the_chosen_classes(live):
    live._show.value = "strip of images"
    both = live._picture.value
    live._strip.classes.value = ["lesion"]
    assert live._picture.value != both
    assert len(live.strip(["lesion"]).axes) == 2 * 5
    live._strip.classes.value = []
    assert said(live) == ""  # none chosen means all
    with pytest.raises(UsageError, match="Did you mean 'lesion'"):
        live.strip(["leson"])


def test_an_own_image_is_fitted_and_shown(live, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(64, dtype=np.uint16).reshape(8, 8) * 100)
    live._fit = lambda image: image[:, ::2, ::2]
    live._own.path.value = str(tmp_path / "a.npy")
    live._own.open.click()
    assert "it needs an intensity window" in said(live) and live.dataset == "toy"
    live._own.low.value = "0"
    live._own.open.click()
    assert "needs two numbers" in said(live)
    live._own.high.value = "3000"
    live._own.open.click()
    assert "33 of 64 values of a.npy lie outside" in said(live)
    assert (live.dataset, live.stacks.images("your own")["file"][0].shape) == ("your own", (1, 1, 4, 4))


def test_a_text_file_named_png_is_one_sentence(live):
    file = {"name": "x.png", "type": "image/png", "size": 5, "content": b"hello"}
    live._own.upload.value = ({**file, "last_modified": datetime.now(UTC)},)
    shown = live._picture.value
    live._own.open.click()
    assert (
        said(live).startswith("x.png: this is no PNG, JPEG, TIFF, npy, DICOM or NIfTI file")
        and live._picture.value == shown
    )


def test_another_model_is_put_beside_or_refused(live):
    live._own.model.value = "some/folder"
    live._own.load.click()
    assert "no model can be loaded here" in said(live)
    live._open_model = lambda folder: Fading(0.2)
    live._own.load.click()
    assert (said(live), live.beside, live._besides.value) == ("", "some/folder", "some/folder")


def test_a_failing_model_becomes_a_sentence_and_the_widget_lives_on(live):
    whole = live.stacks.slots["DDPM"]
    live.stacks.slots["DDPM"] = Answering(lambda x, ts: 1 / 0)
    live._images.value = 1
    assert "could not be shown (ZeroDivisionError" in said(live) and live._picture.layout.display == "none"
    live.stacks.slots["DDPM"] = whole
    live._images.value = 2
    assert (said(live), live._picture.layout.display) == ("", None)


def test_messages_are_escaped(live):
    def hostile(x, ts):
        raise DataError("<script>alert(1)</script>")

    live.stacks.slots["DDPM"] = Answering(hostile)
    live._images.value = 1
    assert "<script>" not in live._message.value


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
    assert "there are 3" in said(explorer)
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
    assert all(explorer._frames().has(i) for i in range(len(TS)))


def test_of_opens_other_sets_when_they_are_chosen(model):
    images = SimpleNamespace(images=torch.from_numpy(IMAGES["test"][0]), class_names=NAMES, __len__=lambda: 3)
    images = type("Set", (), {**vars(images), "__len__": lambda self: 3})()
    data = SimpleNamespace(train=images, val=images, test=images, manifest=SimpleNamespace(name="toy"))
    explorer = DissolveExplorer.of(data, {"DDPM": model}, others={"toy": absent, "gone": absent}, ts=TS)
    assert list(explorer.stacks.sets) == ["toy", "gone"] and explorer.frame().startswith(b"\x89PNG")


def test_a_picture_has_one_or_two_occupants_and_all_their_steps():
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
