"""The identity of a run: what was made before the house grew is found again, and no new knob orphans it."""

import shutil
from pathlib import Path

import pytest

from diawork.base.config import ExperimentConfig, Frozen, later
from diawork.data.manifests import load_manifest
from diawork.runs.experiment import run_experiment
from diawork.runs.methods import method_config
from diawork.runs.presets import preset
from diawork.runs.resolve import resolve

OLD_RUN = next((Path(__file__).parent / "runs_of_0.1").iterdir())


@pytest.mark.parametrize(
    ("name", "method", "digest"),
    [  # printed by version 0.1.0 before any room moved
        ("smoke", "dia", "b4cd3758f137"), ("smoke", "csi", "87148bdd2217"), ("smoke", "noise", "fce7adac6f04"),
        ("demo", "dia", "b2277f732c7f"), ("demo", "pixel_knn", "e62f35baf978"), ("cpu", "dia", "248376efd731"),
        ("cpu", "csi", "603889229e88"), ("paper", "dia", "3f5d2c15516e"), ("repo2023", "dia", "69664bcac6f6"),
        ("repo2024", "noise", "8592e7726c2b"), ("repo2024", "csi", "95a35a7186c2"),
    ],
)  # fmt: skip
def test_runs_of_version_0_1_keep_their_digest(name, method, digest):
    since = {"diffusion.precision": "run", "score.flip_per": "copy"}  # turned by the published presets since then
    since |= {"loss.constant": "paper"} if name == "paper" else {}
    cfg = method_config(preset(name).override(since), method)
    assert resolve(cfg, load_manifest("phantom")).digest("data") == digest


def test_a_run_folder_of_version_0_1_is_found_again(tmp_path):
    shutil.copytree(OLD_RUN, tmp_path / OLD_RUN.name)
    with pytest.warns(UserWarning, match="was made with"):
        run = run_experiment(method_config(preset("smoke"), "stats_knn"), out=tmp_path, progress=False)
    assert (
        run.folder.name == OLD_RUN.name
        and (run.folder / "scores.csv").read_bytes() == (OLD_RUN / "scores.csv").read_bytes()
    )


class Grown(ExperimentConfig):
    """Today's config with a section and a knob that joined later."""

    class Section(Frozen):
        """A section of its own, grown once more."""

        depth: int = 3
        width: int = later(7, ge=1)

    rival: Section = later(Section())
    shape: str = later("round")


def test_a_knob_that_joins_later_orphans_nothing():
    assert Grown().digest("data") == ExperimentConfig().digest("data")
    assert "rival" not in Grown().identity() and Grown().model_dump()["rival"]["width"] == 7


def test_a_knob_that_joined_later_counts_once_it_is_turned():
    plain, wide = Grown(rival={"depth": 4}), Grown(rival={"depth": 4, "width": 8})
    assert len({plain.digest(), wide.digest(), Grown().digest(), Grown(shape="square").digest()}) == 4
    assert plain.identity()["rival"] == {"depth": 4}
