"""A finished run applied to loose files: the run's own scores again, bad files left out, stopped and continued."""

import base64
import csv
import gzip
import io
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import diawork
from diawork.base.errors import CheckpointError, UsageError
from diawork.base.files import write_json
from diawork.cli.main import main
from diawork.cli.score import map_name
from diawork.data.readers.listing import image_files
from diawork.data.readers.picture import Preprocessing, write_pngs
from diawork.detectors.base import Detector, Scores
from diawork.runs import predict as predicting
from diawork.runs.experiment import run_experiment
from diawork.runs.predict import Predictor, load_detector, read_scores, score_files
from diawork.runs.presets import preset
from diawork.runs.run import Run
from tests.test_folders import make_set, picture, save, written

COUNTS = {(s, c): n for s, n in (("train", 12), ("val", 6), ("test", 6)) for c in ("well", "ill")}
COUNTS |= {("train", "ill"): 2}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of PNG files, 20 × 16 px, that its manifest opens at 16 px."""
    make_set(tmp_path, counts=COUNTS, size=(16, 20))
    return written(tmp_path / "own.yaml", resize="crop")


def made(manifest, detector, tmp_path, **changes):
    cfg = preset("smoke", dataset=str(manifest)).override({"detector": detector, "train.batch_size": 4} | changes)
    return run_experiment(cfg, out=tmp_path / "runs", progress=False)


@pytest.fixture
def run(own, tmp_path):
    return made(own, "stats_knn", tmp_path)


class Mean(Detector):
    """Scores an image by its mean and forgets nothing."""

    name = "mean"
    has_map = True
    seen = ()

    def fit(self, train, **_):
        return self

    def score(self, images, **_):
        self.seen = (*self.seen, len(images))
        return Scores(images.images.mean((1, 2, 3)).numpy())

    def map_methods(self, dissolve, healthy):
        return {"itself": lambda images: images.images[:, 0].numpy()}

    def save(self, folder):
        pass

    @classmethod
    def load(cls, folder, *, compute=None):
        return cls()


@pytest.fixture
def fake(run):
    real = load_detector(run)
    return Predictor(run, Mean(), real.cfg, real.opening, real.calibration, real.alarm)


# --- as in the run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("detector", "changes"),
    [("stats_knn", {}), ("pixel_knn", {}), ("csi", {}), ("dia", {"dissolve.operator": "gaussian_blur"})],
)
def test_a_loose_file_scores_as_in_its_run(detector, changes, own, tmp_path, small):
    run = made(own, detector, tmp_path, **changes)
    scores, left_out = diawork.load_detector(run).predict(tmp_path / "set/test", progress=False)
    known = run.scores("test")
    files = diawork.load(own).test.files
    row_of = {str(tmp_path / "set" / file): i for i, file in enumerate(files)}
    wanted = known["score"].to_numpy()[[row_of[image] for image in scores["image"]]]
    np.testing.assert_allclose(scores["score"], wanted, rtol=2e-5)
    assert len(scores) == 12 and not left_out


def test_a_phantom_run_scores_its_images_saved_with_16_bits(toy, tmp_path, small):
    run = made(toy, "csi", tmp_path)
    test = diawork.load(toy).test
    for i, image in enumerate(test.images):
        np.save(tmp_path / f"{i:02d}.npy", image[0].numpy())
    predictor = load_detector(run)
    exact = Predictor(
        run, predictor.detector, predictor.cfg, predictor.opening._replace(intensity=(0.0, 1.0)), None, None
    )
    scores, _ = exact.predict([tmp_path / f"{i:02d}.npy" for i in range(len(test))], progress=False)
    np.testing.assert_allclose(scores["score"], run.scores("test")["score"], rtol=2e-5)


def test_share_p_value_and_alarm_are_those_of_healthy_validation_images(run, tmp_path):
    predictor = load_detector(run)
    scores, _ = predictor.predict(tmp_path / "set/val/well", progress=False)
    healthy = np.sort(predictor.calibration.scores)
    assert len(healthy) == 6 and scores["p_value"].min() == pytest.approx(2 / 7, rel=1e-5)
    order = scores.sort_values("score")
    np.testing.assert_allclose(order["share_below"], np.arange(6) / 6, atol=1e-5)
    assert predictor.alarm is None and scores["alarm"].isna().all()  # 6 images promise no rate below 1 in 7
    alarm, found = predictor.guarantees(scores["p_value"].to_numpy())
    assert "that takes 19 of them" in alarm and "nothing can be flagged here: that takes 9 or more" in found


def test_the_nearest_healthy_image_is_named_by_its_file(own, tmp_path, small):
    scores, _ = load_detector(made(own, "csi", tmp_path)).predict(tmp_path / "set/train/well", progress=False)
    itself = [image.endswith(f"/{nearest}") for image, nearest in zip(scores["image"], scores["nearest"], strict=True)]
    assert all((tmp_path / "set" / nearest).parent == tmp_path / "set/train/well" for nearest in scores["nearest"])
    assert sum(itself) > 6  # of twelve healthy images, most are nearest to themselves


def test_an_image_without_a_file_is_named_by_its_place(toy, tmp_path, small):
    save(tmp_path / "new/x.png", picture(1))
    predictor = load_detector(made(toy, "csi", tmp_path))
    name = predictor.predict(tmp_path / "new", progress=False).scores["nearest"][0]
    train = diawork.load(toy).train
    row = np.flatnonzero(train.index == int(name.removeprefix("train/")))[0]
    assert "training_images" not in vars(predictor)  # nothing was opened for it
    np.testing.assert_array_equal(predictor.neighbours([name])[name], train.images[row])


def test_a_run_of_an_earlier_version_opens_as_its_manifest_says(run, tmp_path):
    earlier = Run(shutil.copytree(run.folder, tmp_path / "earlier"))
    record = earlier.config()
    del record["data"]["opening"]
    write_json(earlier.folder / "config.json", record)
    assert load_detector(earlier).opening == load_detector(run).opening == (16, 1, "crop", None, None, 255, 0.01)


def test_resize_window_and_rounding_are_the_runs(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (24, 16), np.uint16)
    save(tmp_path / "x.png", values)
    opening = Preprocessing(16, 3, "crop", (0.0, 4095.0), None, 65_535)
    image = opening.read(tmp_path / "x.png").image
    np.testing.assert_allclose(image, np.repeat(values[None, 4:20] / 4095, 3, 0), atol=1 / 65_535)
    assert np.array_equal(image, (np.rint(image.astype(float) * 65_535) / 65_535).astype(np.float32))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_written_as_png_are_read_again(channels, tmp_path):
    images = np.stack([picture(i, (channels, 8, 8)) for i in range(3)]) / np.float32(255)
    folder = write_pngs(images, tmp_path / "new")
    read = [Preprocessing(8, channels, "squash").read(file).image for file in image_files([folder])]
    np.testing.assert_allclose(np.stack(read), images, atol=1e-6)


# --- what cannot be scored ----------------------------------------------------------------------------


def test_bad_files_are_left_out_with_their_reason(run, tmp_path):
    good = tmp_path / "good.png"
    save(good, picture(1))
    save(tmp_path / "deep.png", picture(3, dtype=np.uint16))
    (tmp_path / "torn.png").write_bytes(good.read_bytes()[:60])
    names = ["deep.png", "torn.png", "gone.png", "good.png"]
    scores, left_out = load_detector(run).predict([tmp_path / name for name in names], progress=False)
    assert list(scores["image"]) == [str(good)]
    reasons = [left_out[str(tmp_path / name)] for name in names[:3]]
    for reason, wanted in zip(reasons, ["intensity window", "damaged", "No such file"], strict=True):
        assert wanted in reason


def test_a_colour_picture_is_scored_in_grey_and_said(run, tmp_path, capsys):
    values = picture(2, (16, 16, 3))
    save(tmp_path / "colour.png", values)
    grey = np.rint(values.mean(-1)).astype(np.uint8)
    save(tmp_path / "grey.png", grey)
    assert (
        main(
            [
                "score",
                str(run.folder),
                *(str(tmp_path / f"{n}.png") for n in ("colour", "grey")),
                "--csv",
                str(tmp_path / "s.csv"),
            ]
        )
        == 0
    )
    assert "1 image: in colour, brought to grey" in capsys.readouterr().err
    coloured, plain = read_scores(tmp_path / "s.csv")["score"]
    assert coloured == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda run: (run.folder / "result.json").unlink(), "no finished run"),
     (lambda run: (run.folder / "detector.npz").unlink(), "missing")],
)  # fmt: skip
def test_what_is_no_finished_run_is_refused(change, says, run):
    change(run)
    with pytest.raises((UsageError, CheckpointError), match=says):
        load_detector(run.folder)


def test_an_oracle_has_nothing_to_say_of_new_images(own, tmp_path):
    with pytest.raises(UsageError, match="new images have none"):
        load_detector(made(own, "oracle_statistic", tmp_path))


def test_a_detector_without_maps_says_so(run):
    with pytest.raises(UsageError, match="makes no anomaly maps"):
        load_detector(run).mapper()


# --- which files --------------------------------------------------------------------------------------


def test_files_folders_and_tables_name_images_once(tmp_path):
    for name in ("a.png", "sub/b.png", ".hidden.png"):
        save(tmp_path / "set" / name, picture(1))
    (tmp_path / "set/list.csv").write_text("id,path\n1,sub/b.png\n2,nowhere.png\n")
    files = image_files([tmp_path / "set/a.png", tmp_path / "set", tmp_path / "set/list.csv"])
    assert [file.removeprefix(f"{tmp_path}/set/") for file in files] == ["a.png", "sub/b.png", "nowhere.png"]
    (tmp_path / "bad.csv").write_text("id,what\n1,2\n")
    with pytest.raises(UsageError, match="no column is called"):
        image_files([tmp_path / "bad.csv"])


# --- many files ---------------------------------------------------------------------------------------


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_stopped_and_continued_no_row_is_doubled(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "BATCH", 4)
    whole, out = tmp_path / "whole.csv", tmp_path / "scores.csv"
    score_files(fake, [tmp_path / "set"], whole, progress=False)

    def stop(batch):
        if out.exists() and len(rows_of(out)) >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_files(fake, [tmp_path / "set"], out, on_batch=stop, progress=False)
    with open(out, "a") as f:
        f.write("set/train/torn.p")  # a kill in the middle of a line
    fake.detector.seen = ()
    score_files(fake, [tmp_path / "set"], out, progress=False)
    assert out.read_bytes() == whole.read_bytes() and sum(fake.detector.seen) == len(rows_of(whole)) - 16


def test_the_rows_of_another_run_are_not_continued(fake, run, tmp_path):
    score_files(fake, [tmp_path / "set/val"], tmp_path / "scores.csv", progress=False)
    other = Predictor(run, fake.detector, fake.cfg, fake.opening._replace(resize="pad"), None, None)
    with pytest.raises(UsageError, match="Name another with --csv"):
        score_files(other, [tmp_path / "set/val"], tmp_path / "scores.csv", progress=False)


def test_batches_stay_small_and_do_not_matter(fake, tmp_path, monkeypatch):
    one = fake.predict(tmp_path / "set", progress=False).scores
    monkeypatch.setattr(predicting, "BATCH", 3)
    fake.detector.seen = ()
    pd.testing.assert_frame_equal(one, fake.predict(tmp_path / "set", progress=False).scores)
    assert max(fake.detector.seen) == 3


# --- the command line ---------------------------------------------------------------------------------


def test_scores_maps_and_a_page(fake, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("diawork.runs.predict.load_detector", lambda *_, **__: fake)
    (tmp_path / "set/val/<b>.png").write_bytes(b"nothing")
    argv = ["score", str(run.folder), str(tmp_path / "set/val"), "--maps", "maps", "--html", "page.html"]
    assert main(argv) == 0
    scores, page = read_scores(tmp_path / "scores.csv"), (tmp_path / "page.html").read_text()
    assert len(scores) == 12 and "12 images in scores.csv" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "scores-left-out.csv")) == 1 and "&lt;b&gt;.png" in page and "<b>" not in page
    assert "trained for seconds, the numbers mean nothing" in page
    order = [page.index(image) for image in scores.sort_values("score", ascending=False)["image"]]
    assert order == sorted(order) and page.count("<img") == 12
    drawn = Image.open(tmp_path / "maps" / map_name(scores["image"][0]))
    assert drawn.size == (16, 16) and len(list((tmp_path / "maps").iterdir())) == 12


def test_the_page_shows_the_nearest_healthy_image(own, tmp_path, small, capsys):
    run = made(own, "csi", tmp_path)
    assert main(["score", str(run.folder), str(tmp_path / "set/test"), "--html", "page.html"]) == 0
    page, scores = (tmp_path / "page.html").read_text(), read_scores(tmp_path / "scores.csv")
    assert page.count("nearest healthy training image") == 1 + 12
    assert all(f"nearest healthy: {nearest}</figcaption>" in page for nearest in scores["nearest"])
    drawn = re.findall(r'base64,([^"]+)" alt="nearest healthy training image">', page)
    order = scores.sort_values("score", ascending=False, kind="stable")["nearest"]
    for data, nearest in zip(drawn, order, strict=True):
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
        wanted = Preprocessing(16, 1, "crop").read(tmp_path / "set" / nearest).image[0] * 255
        np.testing.assert_allclose(shown, wanted, atol=1)


@pytest.mark.filterwarnings("default:the run's training images")
def test_without_the_training_images_the_page_names_their_places(own, tmp_path, small, capsys):
    run = made(own, "csi", tmp_path)
    (tmp_path / "set/train").rename(tmp_path / "set/gone")
    assert main(["score", str(run.folder), str(tmp_path / "set/test"), "--html", "page.html"]) == 0
    assert "training images, which cannot be opened, stay out" in capsys.readouterr().err
    assert "nearest healthy: train/" in (tmp_path / "page.html").read_text()


def test_nothing_that_can_be_scored_is_a_data_error(run, tmp_path, capsys):
    assert main(["score", str(run.folder), "gone.png"]) == 3
    assert "left out: gone.png" in capsys.readouterr().err


def test_overlays_keep_cold_pixels_and_colour_hot_ones():
    from diawork import figures

    image, values = np.full((1, 4, 4), 0.5, np.float32), np.zeros((4, 4))
    values[0, 0] = 7
    drawn = figures.overlay(image, values)
    np.testing.assert_allclose(drawn[1:], 0.5)
    assert np.ptp(drawn[0, 0]) > 0.1


# --- what people's files are like --------------------------------------------------------------------------


@pytest.fixture
def call(fake, run, tmp_path, monkeypatch, capsys):
    """Run ``score`` on the folder "new" and return its exit status and what it said."""
    monkeypatch.setattr("diawork.runs.predict.load_detector", lambda *_, **__: fake)

    def scored(*argv):
        code = main(["score", str(run.folder), str(tmp_path / "new"), *argv])
        said = capsys.readouterr()
        return code, said.out + said.err

    return scored


def test_any_name_is_scored_mapped_and_shown(call, tmp_path):
    names = [
        "Screenshot 3.04.05\u202fPM.png",
        "x" * 240 + ".png",
        "=1+1.png",
        "+a.png",
        "-b.png",
        "@c.png",
        "é\u0301.png",
    ]
    for n, name in enumerate(names):
        save(tmp_path / "new" / name, picture(n))
    code, said = call("--maps", "maps", "--html", "page.html")
    assert code == 0 and "7 images" in said and len(list((tmp_path / "maps").iterdir())) == 7
    assert (tmp_path / "page.html").read_text().count("<img") == 7


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-b.png", "@c.png"])
def test_no_cell_is_a_formula(fake, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / name, picture(0))
    for _ in range(2):
        score_files(fake, [name], tmp_path / "scores.csv", progress=False)
    (row,) = rows_of(tmp_path / "scores.csv")
    assert row["image"] == f"./{name}" and fake.predict(name, progress=False).scores["image"][0] == f"./{name}"


def test_maps_of_finished_rows_are_made_once(call, fake, tmp_path):
    for n in range(3):
        save(tmp_path / f"new/{n}.png", picture(n))
    call()
    rows = (tmp_path / "scores.csv").read_bytes()
    assert call("--maps", "maps")[0] == 0 and len(list((tmp_path / "maps").iterdir())) == 3
    fake.detector.seen = ()
    call("--maps", "maps")
    assert not fake.detector.seen and (tmp_path / "scores.csv").read_bytes() == rows


@pytest.mark.parametrize(
    ("foreign", "content"),
    [("cases.json", '{"mine": 1}'), ("cases.json", "[]"), ("cases-left-out.csv", "case,why\n"), ("cases.csv", "a,b\n"),
     ("cases-volumes.csv", "")],
)  # fmt: skip
def test_no_file_of_another_is_replaced(call, tmp_path, foreign, content):
    save(tmp_path / "new/a.png", picture(0))
    (tmp_path / foreign).write_text(content)
    before = sorted(path.name for path in tmp_path.iterdir())
    code, said = call("--out", "cases.csv")
    assert code == 2 and foreign in said and (tmp_path / foreign).read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == before


def test_a_runs_own_records_are_never_replaced(call, run, tmp_path):
    save(tmp_path / "new/a.png", picture(0))
    result = (run.folder / "result.json").read_bytes()
    for name in ("result.csv", "config.csv", "result.json"):
        assert call("--out", str(run.folder / name))[0] == 2
    assert (run.folder / "result.json").read_bytes() == result
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert call("--html", "mine.html")[0] == 2 and (tmp_path / "mine.html").read_text() == "<p>mine</p>"


def test_files_that_are_no_images_are_counted_by_kind(call, tmp_path):
    save(tmp_path / "new/a.png", picture(0))
    for name in ("a.pdf", "b.pdf", "notes.txt", "DICOMDIR"):
        (tmp_path / "new" / name).write_text("text")
    code, said = call()
    assert code == 0 and "2 files, first" in said and "not used: file .pdf" in said and "file DICOMDIR" in said
    assert len(rows_of(tmp_path / "scores-left-out.csv")) == 4


def test_what_lies_outside_the_runs_window_is_said_or_left_out(fake, run, tmp_path):
    fake = Predictor(run, fake.detector, fake.cfg, fake.opening._replace(intensity=(0.0, 1000.0)), None, None)
    for n, top in enumerate((900, 1010, 4000)):
        save(tmp_path / f"new/{n}.png", np.linspace(0, top, 400).reshape(20, 20).astype(np.uint16))
    outcome = score_files(fake, [tmp_path / "new"], tmp_path / "scores.csv", progress=False)
    (reason,) = outcome.left_out.values()
    assert "300 of 400 values (75.00%) lie outside" in reason and "intensity: [0, 4000]" in reason
    assert outcome.cut.n > 0 and len(rows_of(tmp_path / "scores.csv")) == 2


def test_a_volume_gets_a_score_from_its_slices(fake, run, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 255, (16, 16, 40)).astype(np.uint8)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/v.nii.gz").write_bytes(gzip.compress(nibabel.Nifti1Image(values, np.eye(4)).to_bytes()))
    save(tmp_path / "new/a.png", picture(0))
    for _ in range(2):
        score_files(fake, [tmp_path / "new"], tmp_path / "scores.csv", progress=False)
    rows, (volume,) = rows_of(tmp_path / "scores.csv"), rows_of(tmp_path / "scores-volumes.csv")
    own = sorted((float(row["score"]) for row in rows if "#" in row["image"]), reverse=True)
    assert len(rows) == 25 and [row["image"].split("#")[1] for row in rows if "#" in row["image"]] == [
        f"z{k}" for k in range(8, 32)
    ]
    assert volume["volume"].endswith("v.nii.gz") and volume["slices"] == "24"
    assert float(volume["score"]) == pytest.approx(np.mean(own[:3]), rel=1e-5)
    one = fake.predict(f"{tmp_path / 'new/v.nii.gz'}#z3", progress=False).scores
    assert one["score"][0] == pytest.approx(values[:, :, 3].mean() / 255, rel=1e-5)
    chosen = Predictor(run, fake.detector, fake.cfg, fake.opening._replace(frame="middle"), None, None)
    assert len(chosen.predict(tmp_path / "new/v.nii.gz", progress=False).scores) == 1
