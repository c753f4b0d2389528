"""A run's test images ranked by score, and the reasons for each score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd

from diawork import figures
from diawork.base.config import K
from diawork.base.errors import DataError, DiaworkError, UsageError, did_you_mean
from diawork.data.images import Splits
from diawork.detectors.dia import CSI, DIA
from diawork.detectors.maps import MAP_WORDS, AnomalyMaps, residuals
from diawork.method.views import SHIFT_NAMES
from diawork.runs.run import Run
from diawork.widgets.shown import WIDE, Shown

FILTERS = ("all", "healthy", "anomalous", "errors")
AROUND = 5  # images of the list shown on either side
SCALE_IMAGES = 8  # images that set a map's colour scale
PARTS = ("similarity", "shift")


@dataclass
class _Opened:
    """A run's scores, and its maps once they are asked for."""

    scores: pd.DataFrame  # a row a test image, most anomalous first
    typical: dict[str, np.ndarray]  # part → (K,), median of healthy images
    threshold: float | None
    kind: type[DIA]
    shift: str
    maps: AnomalyMaps | None = None
    problem: str = ""  # why there are no maps
    drawn: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)


class ScoreExplorer:
    """Rank a run's test images by score; show of each its parts, its healthy neighbour, residual, map and mask.

    ``run`` is a run or its folder, ``operator`` the dissolver (or what stands in its place); without it
    the residual is left out. ``widget`` is the live face, ``still()`` the same picture as a figure.
    """

    def __init__(
        self, run: Run | Path | str, splits: Splits, operator: Any = None, *, detector: DIA | None = None,
        show: str = "all", place: int = 1, method: str = "",
    ) -> None:  # fmt: skip
        if show not in FILTERS:
            raise UsageError(f"show={show!r} is not a filter.", hint=did_you_mean(show, FILTERS))
        self.folder = run.folder if isinstance(run, Run) else Path(run)
        self.splits, self.operator, self._detector = splits, operator, detector
        self.show, self.place, self.method = show, place, method
        self.remark = ""  # what the last picture had to leave out, and why
        self._opened: tuple[Path, _Opened] | None = None
        self._widget: ipywidgets.Widget | None = None

    # --- the run ---------------------------------------------------------------------------------------

    def _open(self) -> _Opened:
        if self._opened is None or self._opened[0] != self.folder:
            self._opened = (self.folder, self._read())
        return self._opened[1]

    def _read(self) -> _Opened:
        run = Run(self.folder)
        result, settings = run.result(), run.config().get("config", {})
        kind = {"dia": DIA, "csi": CSI}.get(str(settings.get("detector")))
        if kind is None:
            raise DataError(
                f"its detector ({result.get('detector')}) has no parts to show.", path=self.folder,
                hint="Open a run of DIA, CSI or an alternative in the slot.",
            )  # fmt: skip
        scores = _read_scores(self.folder)
        test = scores[scores["split"] == "test"].sort_values("index", ignore_index=True)
        if test["anomalous"].tolist() != self.splits.test.anomalous.tolist():
            raise DataError(
                f"it scored {len(test)} images that are not these {len(self.splits.test)} of "
                f"{self.splits.test.name!r}.", path=self.folder, hint="Load the data set of the run.",
            )  # fmt: skip
        healthy = scores[~scores["anomalous"]]
        healthy = healthy[healthy["split"] == ("val" if (healthy["split"] == "val").any() else "test")]
        typical = {part: healthy[_columns(part)].median().to_numpy() for part in PARTS}
        threshold = result.get("metrics", {}).get("test", {}).get("threshold")
        test = test.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        shift = str(settings.get("views", {}).get("shift", "rotation"))
        return _Opened(test.assign(rank=np.arange(1, len(test) + 1)), typical, threshold, kind, shift)

    def maps(self) -> AnomalyMaps:
        """Return the maps that the run's detector, the operator and the healthy images allow."""
        opened = self._open()
        if opened.maps is None and not opened.problem:
            try:
                detector = self._detector or opened.kind.load(self.folder)
            except DiaworkError as error:
                detector, opened.problem = None, f"No map asks the score: {error}"
            opened.maps = AnomalyMaps(detector, operator=self.operator, healthy=self.splits.train)
        return opened.maps

    def methods(self) -> list[str]:
        """Return the methods of anomaly maps that can be picked, the best first."""
        return self.maps().methods

    # --- what is shown ---------------------------------------------------------------------------------

    def listed(self) -> pd.DataFrame:
        """Return the rows that the filter leaves, most anomalous first; errors are those beyond the threshold."""
        opened = self._open()
        scores, threshold = opened.scores, opened.threshold
        if self.show == "errors" and threshold is None:
            raise DataError("this run has no threshold, so no image is called wrong.", path=self.folder)
        kept = {
            "all": lambda: scores["rank"] > 0,
            "healthy": lambda: ~scores["anomalous"],
            "anomalous": lambda: scores["anomalous"],
            "errors": lambda: (scores["score"] > threshold) != scores["anomalous"],
        }[self.show]()
        return scores[kept].reset_index(drop=True)

    def still(self) -> figures.Figure:
        """Return the picture of the present choice."""
        rows, self.remark = self.listed(), ""
        if not 1 <= self.place <= len(rows):
            raise DataError(f"place {self.place} in the list of {self.show!r}: it holds {len(rows)} images.")
        first = max(0, min(self.place - 1 - AROUND, len(rows) - 2 * AROUND - 1))
        near = rows.iloc[first : first + 2 * AROUND + 1]
        images = self.splits.test.images[near["index"].to_numpy()].numpy()
        ranks = list(zip(near["rank"], near["anomalous"], strict=True))
        return figures.score_figure(self._reasons(rows.iloc[self.place - 1]), images, ranks, self.place - 1 - first)

    def _reasons(self, row: Mapping[str, Any]) -> figures.Reasons:
        opened, i = self._open(), int(row["index"])
        parts = {name: np.array([row[c] for c in _columns(name)], float) for name in PARTS}
        best, healthy, names = int(parts["similarity"].argmin()), self.splits.train.normal(), SHIFT_NAMES[opened.shift]
        nearest = int(row[f"nearest_{best}"])
        if not 0 <= nearest < len(healthy):
            raise DataError(f"its bank held more healthy images than the {len(healthy)} here.", path=self.folder)
        masks = self.splits.test.masks
        return figures.Reasons(
            title=self._title(row), image=self.splits.test.images[i].numpy(), nearest=healthy.images[nearest].numpy(),
            nearest_shift=names[best], parts={name: values - opened.typical[name] for name, values in parts.items()},
            shift_names=names, residual=self._residual(i), mask=None if masks is None else masks[i, 0].numpy(),
            **self._map(i),
        )  # fmt: skip

    def _title(self, row: Mapping[str, Any]) -> str:
        opened, role = self._open(), "anomalous" if row["anomalous"] else "healthy"
        kind = role if row["class_name"] == role else f"{row['class_name']} ({role})"
        text = f"rank {row['rank']} of {len(opened.scores)}: {kind}, score {row['score']:.3f} (higher = more anomalous)"
        if opened.threshold is None:
            return text
        called = "anomalous" if row["score"] > opened.threshold else "healthy"
        verdict = "rightly" if called == role else "wrongly"
        return f"{text}, {verdict} called {called} at the threshold {opened.threshold:.3f}"

    def _residual(self, i: int) -> np.ndarray | None:
        if self.operator is None:
            return None
        try:
            return residuals(self.operator, self.splits.test.images[i : i + 1])[0].numpy()
        except DiaworkError as error:
            self.remark = f"No residual: {error}"
            return None

    def _map(self, i: int) -> dict[str, Any]:
        """Return map, its name and its colour limit; without one, nothing and a remark."""
        opened, maps = self._open(), self.maps()
        method = self.method or next(iter(maps.methods), "")
        self.remark = self.remark or opened.problem
        if not method:
            return {}
        try:
            if method not in opened.limits:
                opened.limits[method] = self._limits(method)
            if (method, i) not in opened.drawn:
                opened.drawn[method, i] = maps(self.splits.test.images[i : i + 1], method)[0]
        except DiaworkError as error:
            self.remark = f"No anomaly map: {error}"
            return {}
        values, limits = opened.drawn[method, i], opened.limits[method]
        return {"map": values, "map_name": MAP_WORDS[method], "map_limits": limits}

    def _limits(self, method: str) -> tuple[float, float]:
        """Return the colour scale for all images, from a few spread over the ranking."""
        order = self._open().scores["index"].to_numpy()
        rows = order[np.linspace(0, len(order) - 1, min(SCALE_IMAGES, len(order))).round().astype(int)]
        return figures.map_limits(self.maps()(self.splits.test.images[rows], method))

    # --- the live face ---------------------------------------------------------------------------------

    @property
    def widget(self) -> ipywidgets.Widget:
        """The explorer as a widget: run folder, filter, place in the list, map, picture, message."""
        if self._widget is None:
            self._widget = self._build()
            self._changed(None)
        return self._widget

    def _build(self) -> ipywidgets.Widget:
        w = ipywidgets
        wide = {"layout": {"width": "100%", "max_width": "640px"}, "style": WIDE}
        self._runs = w.Text(value=str(self.folder), description="run folder", continuous_update=False, **wide)
        self._filters = w.Dropdown(options=FILTERS, value=self.show, description="images")
        self._places = w.IntSlider(value=self.place, min=1, max=max(self.place, 1), description="place in the list",
                                   **wide)  # fmt: skip
        self._methods = w.Dropdown(options=[("best available", "")], value="", description="map")
        self._shown = Shown("this score")
        for control in (self._runs, self._filters, self._places, self._methods):
            control.observe(self._changed, "value")
        pickers = w.HBox([self._filters, self._methods], layout={"flex_flow": "row wrap"})
        return w.VBox([self._runs, pickers, self._places, self._shown.box])

    def _changed(self, change: Any) -> None:
        """Take over what the user picked; another run or filter starts at the head of its list."""
        if getattr(self, "_settling", False):
            return
        self._settling = True
        try:
            if change is not None:
                self.folder, self.show = Path(self._runs.value), self._filters.value
                self.method = self._methods.value
                self.place = 1 if change.owner in (self._runs, self._filters) else self._places.value
            self._shown.show(self._settled, lambda: self.remark)
        finally:
            self._settling = False

    def _settled(self) -> figures.Figure:
        """Fit the controls to what the run offers, and draw."""
        methods = self.methods()
        self.method = self.method if self.method in methods else next(iter(methods), "")
        self._methods.options = [(MAP_WORDS[name], name) for name in methods] or [("none available", "")]
        self._methods.value = self.method
        self._places.max = max(len(self.listed()), 1)
        self._places.value = self.place
        return self.still()


def _columns(part: str) -> list[str]:
    return [f"{part}_{k}" for k in range(K)]


def _read_scores(folder: Path) -> pd.DataFrame:
    """Return ``scores.csv`` with the parts of the score."""
    wanted = ["split", "index", "class_name", "anomalous", "score"]
    wanted += [column for part in (*PARTS, "nearest") for column in _columns(part)]
    try:
        scores = pd.read_csv(folder / "scores.csv", usecols=wanted)
    except (OSError, ValueError) as error:
        raise DataError(f"scores.csv cannot be read ({error}).", path=folder) from None
    return scores.assign(anomalous=scores["anomalous"].astype(bool))
