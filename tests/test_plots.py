"""Figures: what they show and refuse; looks are judged by eye, meaning here."""

import io
import subprocess
import sys
from functools import partial

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from diawork import figures
from diawork.base.errors import DiaworkError
from diawork.base.registry import entry_of
from diawork.figures import charts, images
from diawork.figures.slider import GridFrames
from diawork.method.operators import OPERATORS

RNG = np.random.default_rng(0)
X = RNG.random((4, 8, 8), np.float32)
TS = [50, 100, 200]
STACKS = np.stack([X * f for f in (0.9, 0.6, 0.2)], 1)
STRIP = np.concatenate([X[:, None], STACKS], 1)
TRUTH = np.arange(40) >= 15
SCORES = RNG.standard_normal(40) + TRUTH


def drawn_in(figure):
    return [im for ax in figure.axes for im in ax.get_images()]


def texts_of(figure):
    texts = [artist.get_text() for artist in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return " | ".join(text for text in texts if text)


def within(box, edge, slack=2):
    return (
        box.x0 >= edge.x0 - slack
        and box.x1 <= edge.x1 + slack
        and box.y0 >= edge.y0 - slack
        and box.y1 <= edge.y1 + slack
    )


def pixels(png):
    return images.matplotlib.image.imread(images.io.BytesIO(png))


FIGURES = {
    "grid": lambda: figures.image_grid(X, ["a"] * 4, columns=3),
    "strip": lambda: figures.dissolve_strip(STRIP, TS, ["one"] * 4, difference=True),
    "frame": lambda: GridFrames(X, STACKS, TS).figure(),
    "one frame": lambda: GridFrames(X[:1], STACKS[:1], TS).figure(),
    "views": lambda: figures.views_grid(X[:, None].repeat(4, 1)[:3]),
    "neighbours": lambda: figures.nearest_neighbours(X, X[::-1], range(4), [True, False, "odd", True]),
    "pairs": lambda: figures.similarity_matrix(np.eye(6, dtype=int), list("abcdef"), block=2),
    "similarity": lambda: figures.similarity_matrix(np.eye(6)),
    "loss": lambda: figures.loss_curve([{"stage": "train", "step": i, "loss": 1 / (i + 1)} for i in range(5)]),
    "histogram": lambda: figures.score_histogram(SCORES, TRUTH, threshold=0.5),
    "roc": lambda: figures.roc({"DIA": [(SCORES, TRUTH)]}),
    "bars": lambda: figures.ablation_bars(pd.DataFrame({"detector": ["DIA"], "auroc": [0.9], "published": [0.8]})),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_and_shows_itself(name):
    png = FIGURES[name]()._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert pixels(png).std() > 0.01


@pytest.mark.parametrize("name", FIGURES)
def test_no_word_is_cut_off_at_the_edge(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    ticks = {tick for ax in figure.axes for tick in (*ax.get_xticklabels(), *ax.get_yticklabels())}
    words = [text for text in figure.findobj(Text) if text.get_text().strip() and text not in ticks]
    cut = [word.get_text() for word in words if not within(word.get_window_extent(), figure.bbox)]
    assert cut == []


def test_no_pyplot_figure_is_left_open_and_style_is_untouched():
    before = dict(images.matplotlib.rcParams)
    for make in FIGURES.values():
        make()
    assert images.matplotlib._pylab_helpers.Gcf.get_num_fig_managers() == 0
    assert dict(images.matplotlib.rcParams) == before


USERS = {"text.usetex": True, "image.origin": "lower", "savefig.bbox": "tight", "axes.titlesize": 40, "font.size": 3}


def test_what_a_user_asks_of_matplotlib_moves_no_figure_of_ours():
    def drawn():
        return [figures.png_bytes(FIGURES[name]()) for name in ("grid", "roc", "one frame")]

    plain, image = drawn(), RNG.random((6, 6, 3))
    upright = figures.pixels_png(image)
    with images.matplotlib.rc_context(
        USERS
    ):  # as their matplotlibrc does; without LaTeX the first would end the report
        assert drawn() == plain and figures.pixels_png(image) == upright


def test_plots_never_import_torch():
    code = "import sys, diawork.figures.charts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=images.__file__.rsplit("/", 2)[0]).returncode == 0


def test_grey_is_pinned_and_nearest():
    for image in drawn_in(figures.image_grid(X * 0.5)):
        assert image.get_clim() == (0, 1)
        assert (image.get_interpolation(), image.get_cmap().name) == ("nearest", "gray")


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (3, 8, 8), (8, 8, 3)])
def test_image_layouts(shape):
    drawn = drawn_in(figures.image_grid([RNG.random(shape)]))[0]
    assert drawn.get_array().shape[:2] == (8, 8)


def test_differences_diverge_around_zero_with_a_bar():
    figure = figures.dissolve_strip(STRIP, TS, difference=True)
    changes = [im for im in drawn_in(figure) if im.get_cmap().name == "RdBu_r"]
    assert len(changes) == 16
    assert {im.get_clim()[0] + im.get_clim()[1] for im in changes} == {0}
    assert "dissolved − input" in texts_of(figure)


def test_strip_headers_name_input_and_steps():
    said = texts_of(figures.dissolve_strip(STRIP, TS, ["r0", "r1", "r2", "r3"]))
    assert all(word in said for word in ("input", "t = 50", "t = 200", "dissolving step t", "r3"))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: figures.image_grid([]), "no image"),
        (lambda: figures.dissolve_strip(STRIP, [1]), "does not hold"),
        (lambda: GridFrames(X, STACKS[:2], TS), "do not hold 3 steps"),
        (lambda: figures.nearest_neighbours(X, X[:2], [1], ["a"]), "as many"),
        (lambda: figures.loss_curve([{"step": 1}]), "no row"),
        (lambda: figures.roc({"DIA": [(SCORES, np.ones(40, bool))]}), "all 40 images are anomalous"),
        (lambda: figures.roc({"DIA": [(SCORES * np.nan, TRUTH)]}), "40 of 40 scores are not finite"),
        (lambda: figures.score_histogram(SCORES * np.inf, TRUTH), "not finite"),
    ],
)
def test_refuses(call, says):
    with pytest.raises(DiaworkError, match=says):
        call()


LAYOUTS = {
    "one column": lambda: GridFrames(X[:1], STACKS[:1], TS),
    "a column an image": lambda: GridFrames(X, STACKS, TS),
    "one operator": lambda: figures.DissolveFrames(X[0], {"DDPM": STACKS[0]}, TS),
    "two operators": lambda: figures.DissolveFrames(X[0], {"DDPM": STACKS[0], "blur": STACKS[1]}, TS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_equal_the_figure_at_each_step(layout):
    frames = LAYOUTS[layout]()
    for at in (2, 0, 1):  # in any order
        still = figures.png_bytes(frames.figure(at), dpi=100)
        assert np.abs(pixels(frames.png(at))[..., :3] - pixels(still)[..., :3]).mean() < 1e-3
    assert len({frames.png(at) for at in range(3)}) == 3 and frames.has(1) and not frames.has(3)


def test_the_reports_frames_are_those_of_its_figure():
    assert figures.dissolve_frames(X, STACKS, TS) == [GridFrames(X, STACKS, TS).png(at) for at in range(3)]


def look(label):
    return figures.styles_of([label])[label]


def test_a_detector_has_one_colour_and_controls_are_grey():
    assert look("DIA")["color"] == look("dia")["color"] == entry_of("dia").color
    slot = figures.Named("gaussian blur in the slot", "gaussian_blur")
    assert figures.styles_of([slot])[slot.label]["color"] == OPERATORS["gaussian_blur"].color
    another = figures.Named("NN of another package", "theirs", control=True)
    looks = figures.styles_of(
        ["pixel_knn", "5-NN on statistics", "Mahalanobis on statistics", "oracle_statistic", another]
    )
    for name in looks:
        red, green, blue = (looks[name]["color"][i : i + 2] for i in (1, 3, 5))
        assert red == green == blue
    assert len({(one["color"], one["hatch"]) for one in looks.values()}) == len(looks)


VARIANTS = [figures.Named(f"DIA (t {t})", "dia", plain=False) for t in range(30)]


def test_variants_on_one_page_have_looks_of_their_own_whatever_their_order():
    looks = figures.styles_of(["CSI", "5-NN on pixels", *VARIANTS])
    assert looks == figures.styles_of([*VARIANTS[::-1], "CSI", "5-NN on pixels"])
    assert len({(one["color"], one["linestyle"]) for one in looks.values()}) == len(looks)
    assert len({one["color"] for one in figures.styles_of(VARIANTS[:14]).values()}) == 14
    assert looks["CSI"] == look("CSI") and looks["DIA (t 0)"]["color"] == entry_of("dia").color


def test_a_variant_has_one_colour_in_curves_bars_and_losses():
    looks = figures.styles_of(["DIA", *VARIANTS[:3]])
    name, color = VARIANTS[2].label, looks[VARIANTS[2].label]["color"]
    rows = [{"stage": "train", "step": i, "loss": 1.0} for i in range(3)]
    drawn = [
        figures.roc({name: [(SCORES, TRUTH)]}, styles=looks).axes[0].lines[-1].get_color(),
        figures.ablation_bars([{"detector": "DIA", "label": name, "auroc": 0.9}], styles=looks).axes[0].patches[0],
        figures.loss_curve({name: [rows]}, styles=looks).axes[0].lines[-1].get_color(),
        figures.auroc_curves({name: [(1, 0.5, 0)]}, {}, xlabel="t", styles=looks).axes[0].lines[0].get_color(),
    ]
    drawn[1] = to_hex(drawn[1].get_facecolor(), keep_alpha=False).upper()
    assert set(drawn) == {color} != {looks["DIA"]["color"]}


def test_the_axis_of_a_curve_names_its_split():
    draw = partial(figures.auroc_curves, {"DIA": [(1.0, 0.7, 0.1)]}, {"5-NN": 0.6}, xlabel="t")
    assert "test AUROC" in texts_of(draw()) and "validation AUROC" in texts_of(draw(split="validation"))


def test_a_range_is_drawn_from_end_to_end_and_joined_with_nothing():
    points = {"DIA": [((30, 130), 0.8, 0.1), ((10, 10), 0.7, 0.1)], "CSI": [(1, 0.5, np.nan), (3, 0.6, 0.1)]}
    (ax,) = figures.auroc_curves(points, {}, xlabel=figures.STEP_LABEL).axes
    dia, csi = ax.containers
    across = [bar[:, 0].tolist() for bar in dia[2][0].get_segments() if len(bar)]
    assert across == [[30, 130]] and dia[0].get_linestyle() == "None"
    assert csi[0].get_linestyle() == "-" and not any(len(bar) for bar in csi[2][0].get_segments())
    assert ax.get_xlabel() == "dissolving step t"


def test_unknown_names_keep_their_colour_from_one_process_to_the_next():
    assert look("Novel")["color"] == "#6699CC"
    assert look("Other one")["color"] == "#44AA99"


@pytest.mark.parametrize("figure", ["histogram", "roc", "neighbours"])
def test_score_plots_say_the_direction(figure):
    assert "higher = more anomalous" in texts_of(FIGURES[figure]())


def test_roc_legend_holds_the_exact_area_and_its_spread():
    curves = {
        "DIA": [([0, 1, 2, 3], [0, 0, 1, 1]), ([0, 2, 1, 3], [0, 0, 1, 1])],
        "CSI": [([1, 1, 1, 1], [0, 0, 1, 1])],
    }
    said = texts_of(figures.roc(curves))
    assert "0.875 ± 0.177  DIA" in said
    assert "0.500  CSI" in said


def test_roc_agrees_with_sklearn_on_ties():
    from sklearn.metrics import roc_auc_score

    scores = np.round(SCORES)
    false, true = charts._roc_points(scores, TRUTH)
    area = np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2)
    assert area == pytest.approx(roc_auc_score(TRUTH, scores)) and (false[0], true[0], false[-1], true[-1]) == (
        0,
        0,
        1,
        1,
    )


def test_pairs_are_coloured_by_code():
    image = drawn_in(figures.similarity_matrix(np.array([[0, 1], [2, 0]])))[0]
    assert len({image.cmap(image.norm(code)) for code in (0, 1, 2)}) == 3
    assert all(word in texts_of(FIGURES["pairs"]()) for word in ("excluded", "positive", "negative"))


def test_loss_panels_per_stage_and_one_legend_entry_a_detector():
    rows = [{"stage": s, "step": i, "loss": 1.0} for s in ("ddpm", "train") for i in range(3)]
    figure = figures.loss_curve({"DIA": [rows, rows], "CSI": [rows[3:]]})
    assert [ax.get_title() for ax in figure.axes] == ["diffusion model", "detector"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["DIA", "CSI"]


def test_constant_scores_still_draw():
    assert figures.png_bytes(figures.score_histogram(np.zeros(40), TRUTH))
    assert "0.500" in texts_of(figures.roc({"DIA": [(np.zeros(40), TRUTH)]}))


def test_bars_start_at_chance():
    bar = figures.ablation_bars([{"detector": "DIA", "auroc": 0.4}]).axes[0].patches[0]
    assert (bar.get_x(), bar.get_width()) == (0.5, pytest.approx(-0.1))


@pytest.mark.parametrize("text", [r"$\frac{", "a\x1b[31m", "\u202egnp"])
def test_hostile_names_are_drawn_as_text(text):
    assert figures.png_bytes(figures.roc({text: [(SCORES, TRUTH)]}, title=text))
    assert figures.png_bytes(figures.image_grid(X, [text] * 4))


def test_a_control_far_below_does_not_flatten_the_curve():
    points = [(1, 0.90, 0.01), (2, 0.92, 0.01)]
    figure = figures.auroc_curves({"DIA": points}, {"5-NN on pixels": 0.52, "CSI": 0.89}, xlabel="t")
    assert figure.axes[0].get_ylim()[0] == pytest.approx(0.85)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("0.520, below the axis" in label for label in labels)


def test_bars_of_very_different_lengths_stand_on_a_logarithmic_axis():
    def scale(*values):
        rows = [{"stage": str(i), "ratio": value} for i, value in enumerate(values)]
        return figures.cost_bars(rows, value="ratio", label="stage").axes[0].get_xscale()

    assert (scale(2, 5), scale(0, 5000), scale(2, 5000)) == ("linear", "linear", "log")


def test_every_public_figure_has_the_house_style():
    public = [getattr(figures, name) for name in figures.__all__]
    drawing = [one for one in public if getattr(one, "__annotations__", {}).get("return") == "Figure"]
    assert len(drawing) > 8
    plain = [one.__name__ for one in drawing if not hasattr(one, "__wrapped__")]
    assert plain == []


def test_a_thumbnail_is_the_mean_of_blocks():
    image = np.kron(np.array([[0.0, 1.0]]), np.ones((4, 440)))
    png = figures.pixels_png(np.repeat(image[..., None], 3, -1))
    small = matplotlib.image.imread(io.BytesIO(figures.thumbnail(png)))
    assert small.shape[:2] == (1, 220) and (small[0, :110, :3] == 0).all() and (small[0, 110:, :3] == 1).all()
