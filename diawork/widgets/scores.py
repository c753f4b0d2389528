"""The images that a run scored, ranked, and the reasons for each score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd

from diawork import figures
from diawork.base.errors import DataError, DiaworkError, UsageError, did_you_mean
from diawork.base.registry import entry_of
from diawork.data.images import ImageSet, Splits
from diawork.detectors.maps import MAP_WORDS, AnomalyMaps, residuals
from diawork.method.views import SHIFT_NAMES
from diawork.runs.run import Run
from diawork.widgets.controls import BROAD, Explorer, line, menu, number, offer, row

FILTERS = ("all", "healthy", "anomalous", "errors")
AROUND = 5  # images of the list shown on either side
SCALE_IMAGES = 8  # images that set a map's colour scale
PARTS = ("similarity", "shift")


@dataclass(frozen=True)
class _Opened:
    """A run's scores of its primary split, and the anomaly maps that it allows."""

    images: ImageSet
    scores: pd.DataFrame  # a row an image, most anomalous first
    typical: dict[str, np.ndarray]  # part → (K,), median of healthy images
    threshold: float | None
    config: dict[str, Any]
    maps: AnomalyMaps
    problem: str  # why no map asks the score; "" where one does


class ScoreExplorer(Explorer):
    """Rank the images that a run scored; show of each its parts, its healthy neighbour, residual, map and mask.

    ``run`` is a run or its folder, ``operator`` the dissolver (or what stands in its place); without it
    the residual is left out. ``widget`` is the live face, ``still()`` the same picture as a figure.
    """

    def __init__(
        self, run: Run | Path | str, splits: Splits, operator: Any = None, *, detector: Any = None,
        show: str = "all", place: int = 1, method: str = "",
    ) -> None:  # fmt: skip
        if show not in FILTERS:
            raise UsageError(f"show={show!r} is not a filter.", hint=did_you_mean(show, FILTERS))
        self.folder = run.folder if isinstance(run, Run) else Path(run)
        self.splits, self.operator = splits, operator
        self._known = {self.folder: detector} if detector else {}  # run folder → its detector
        self.show, self.place, self.method = show, place, method
        self.remark = ""  # what the last picture had to leave out, and why
        self._read_once = lru_cache(1)(self._read)
        self._limits, self._drawn = cache(self._make_limits), cache(self._draw_map)

    # --- the run ---------------------------------------------------------------------------------------

    def opened(self) -> _Opened:
        """Return what the chosen run says, read once."""
        return self._read_once(self.folder)

    def _read(self, folder: Path) -> _Opened:
        run = Run(folder)
        result, config, scores = run.result(), run.config()["config"], run.scores()
        if not {*PARTS, "nearest"} <= set(run.parts()):
            raise DataError(
                f"its detector ({result.get('detector')}) has no parts to show.", path=folder,
                hint="Open a run of DIA, CSI or an alternative in the slot.",
            )  # fmt: skip
        images = getattr(self.splits, run.primary_split)
        if scores["anomalous"].tolist() != images.anomalous.tolist():
            raise DataError(
                f"it scored {len(scores)} images that are not these {len(images)} of {images.name!r}.", path=folder,
                hint="Load the data set of the run.",
            )  # fmt: skip
        validation = run.scores("val")
        known = scores if validation["anomalous"].all() else validation
        healthy = known[~known["anomalous"]]
        typical = {part: healthy.filter(regex=f"^{part}_").median().to_numpy() for part in PARTS}
        threshold = result["metrics"].get(run.primary_split, {}).get("threshold")
        scores = scores.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        scores = scores.assign(rank=np.arange(1, len(scores) + 1))
        try:
            detector, problem = self._known.get(folder) or entry_of(config["detector"]).load().load(folder), ""
        except DiaworkError as error:
            detector, problem = None, f"No map asks the score: {error}"
        maps = AnomalyMaps(detector, operator=self.operator, healthy=self.splits.train)
        return _Opened(images, scores, typical, threshold, config, maps, problem)

    def methods(self) -> list[str]:
        """Return the methods of anomaly maps that can be picked, the best first."""
        return self.opened().maps.methods

    # --- what is shown ---------------------------------------------------------------------------------

    def listed(self) -> pd.DataFrame:
        """Return the rows that the filter leaves, most anomalous first; errors are those beyond the threshold."""
        opened = self.opened()
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
        images = self.opened().images.images[near["index"].tolist()].numpy()
        ranks = list(zip(near["rank"], near["anomalous"], strict=True))
        return figures.score_figure(self.reasons(rows.iloc[self.place - 1]), images, ranks, self.place - 1 - first)

    def reasons(self, scored: pd.Series) -> figures.Reasons:
        """Return the reasons for one of the ``listed`` scores."""
        opened, i, healthy = self.opened(), int(scored["index"]), self.splits.train.normal()
        parts = {name: scored.filter(regex=f"^{name}_").to_numpy(float) for name in PARTS}
        best, names = int(parts["similarity"].argmin()), SHIFT_NAMES[opened.config["views"]["shift"]]
        nearest = int(scored[f"nearest_{best}"])
        if not 0 <= nearest < len(healthy):
            raise DataError(f"its bank held more healthy images than the {len(healthy)} here.", path=self.folder)
        x, masks, residual = opened.images.images[i : i + 1], opened.images.masks, None
        if self.operator is not None:
            residual = self._unless_refused("residual", lambda: residuals(self.operator, x)[0].numpy())
        return figures.Reasons(
            title=self._title(scored), image=x[0].numpy(), nearest=healthy.images[nearest].numpy(),
            nearest_shift=names[best], parts={name: values - opened.typical[name] for name, values in parts.items()},
            shift_names=names, residual=residual, mask=None if masks is None else masks[i, 0].numpy(),
            **self._map(i),
        )  # fmt: skip

    def _title(self, scored: pd.Series) -> str:
        role = "anomalous" if scored["anomalous"] else "healthy"
        kind = role if scored["class_name"] == role else f"{scored['class_name']} ({role})"
        rank = f"rank {scored['rank']} of {len(self.opened().scores)}"
        return f"{rank}: {kind}, score {scored['score']:.3f} (higher = more anomalous)"

    def sentence(self) -> str:
        """Return the picked image's score in words, and whether it is rightly called healthy or anomalous."""
        scored, threshold = self.listed().iloc[self.place - 1], self.opened().threshold
        p = scored["p_value"]
        text = self._title(scored) + ("" if np.isnan(p) else f"; p {p:.3g} among healthy images")
        if threshold is None:
            return f"{text}."
        right = "Rightly" if (scored["score"] > threshold) == scored["anomalous"] else "Wrongly"
        called = "anomalous" if scored["score"] > threshold else "healthy"
        return f"{text}. {right} called {called} at the threshold {threshold:.3f}."

    def _map(self, i: int) -> dict[str, Any]:
        """Return map, its name and its colour limits; without one, nothing and a remark."""
        method = self.method or next(iter(self.methods()), "")
        self.remark = self.remark or self.opened().problem
        if not method:
            return {}
        return self._unless_refused("anomaly map", lambda: self._drawn(self.folder, method, i)) or {}

    def _unless_refused(self, what: str, make: Callable[[], Any]) -> Any:
        """Return what ``make`` does, or None and a remark that says why not."""
        try:
            return make()
        except DiaworkError as error:
            self.remark = f"No {what}: {error}"
            return None

    def _make_limits(self, folder: Path, method: str) -> tuple[float, float]:
        """Return the colour scale for all images, from a few spread over the ranking."""
        order = self.opened().scores["index"].to_numpy()
        rows = order[np.linspace(0, len(order) - 1, min(SCALE_IMAGES, len(order))).round().astype(int)]
        return figures.map_limits(self.opened().maps(self.opened().images.images[rows], method))

    def _draw_map(self, folder: Path, method: str, i: int) -> dict[str, Any]:
        values = self.opened().maps(self.opened().images.images[i : i + 1], method)[0]
        return {"map": values, "map_name": MAP_WORDS[method], "map_limits": self._limits(folder, method)}

    # --- the live face ---------------------------------------------------------------------------------

    def _build(self) -> list[w.Widget]:
        self.controls = {
            "run": line("run folder", str(self.folder), layout=BROAD),
            "show": menu("images", FILTERS, self.show),
            "method": menu("map", [("best available", "")], ""),
            "place": number("place in the list", self.place, low=1, high=self.place, live=True, layout=BROAD),
        }
        return [self.controls["run"], row(self.controls["show"], self.controls["method"]), self.controls["place"]]

    def _follow(self, name: str) -> None:
        """Take over what was picked; another run or filter starts at the head of its list."""
        self._take_over("show", "method", "place")
        self.folder = Path(self.controls["run"].value)
        self.place = 1 if name in ("run", "show") else self.place

    def _draw(self) -> None:
        """Offer the maps and the places that the run has, and draw."""
        with self._settle():
            methods, places = self.methods(), self.controls["place"]
            self.method = self.method if self.method in methods else next(iter(methods), "")
            options = [(MAP_WORDS[name], name) for name in methods] or [("none available", "")]
            offer(self.controls["method"], options, self.method)
            places.max = max(len(self.listed()), 1)
            places.value = self.place
        super()._draw()
        self._say(self.remark)
