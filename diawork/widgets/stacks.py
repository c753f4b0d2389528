"""The operators that an explorer shows, and the stacks they make: an image at every step, made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diawork import figures
from diawork.base.compute import Compute
from diawork.base.config import DissolveConfig
from diawork.base.errors import DataError, NumericError, UsageError, pick
from diawork.method.ddpm import DDPM, load_ddpm
from diawork.method.dissolve import Dissolver
from diawork.method.operators import OPERATORS
from diawork.method.pipelines import is_pipeline, open_pipeline

Images = Mapping[str, tuple[Any, np.ndarray]]  # split → images (N, [C,] H, W), class names (N,)
# forty steps: fine where the paper works (10-400), coarse beyond
STEPS = (0, 5, 10, 15, *range(20, 200, 10), *range(200, 400, 20), 400, 450, 500, 600, 700, 800, 900, 999)
ALL, NOTHING = "all classes", "nothing"
KEPT = 48  # stacks, and half as many pictures
RANGES = {"normalized": "[-1, 1] as trained", "released": "[0, 1] as released"}


def shown_operators(ddpm: DDPM, cfg: DissolveConfig, *, compute: Compute | None = None) -> dict[str, Any]:
    """Return name → operator, or what makes it: this model, its other weights and range, the alternatives of Fig. 5."""
    weights = "raw" if cfg.weights == "ema" else "ema"
    range_mode = "released" if cfg.range_mode == "normalized" else "normalized"
    models = {
        "DDPM": cfg,
        f"DDPM, {'EMA' if weights == 'ema' else 'raw'} weights": cfg.but(weights=weights),
        f"DDPM, range {RANGES[range_mode]}": cfg.but(range_mode=range_mode),
    }
    operators: dict[str, Any] = {
        name: cache(partial(Dissolver, ddpm, settings, compute=compute)) for name, settings in models.items()
    }
    alternatives = [kind for kind in OPERATORS.values() if kind.figure]
    return operators | {kind.title.format(**vars(cfg)): kind.build(cfg, None, None, compute) for kind in alternatives}


def saved_operator(
    folder: Path | str, like: DDPM, cfg: DissolveConfig, *, compute: Compute | None = None
) -> Dissolver:  # fmt: skip
    """Return the operator made of a saved model; one that sees another size or fewer steps than ``like`` is refused.

    The folder of a diffusers pipeline makes one, too: of any size, at the steps of ``like`` by their noise level.
    """
    if is_pipeline(folder):
        model = open_pipeline(folder, like.config, weights=cfg.weights)
        bridge = cfg.bridge if model.image_size[0] == like.config.image_size else "resize"
        return Dissolver(model, cfg.but(bridge=bridge), compute=compute)
    ddpm = load_ddpm(folder)
    for what, unit in (("image_size", "px"), ("timesteps", "steps")):
        value, wanted = getattr(ddpm.config, what), getattr(like.config, what)
        if value != wanted:
            raise UsageError(f"this checkpoint has {what}={value}; the explorer's model has {wanted} {unit}.",
                             path=folder, hint="Choose one trained at the same size and number of steps.")  # fmt: skip
    return Dissolver(ddpm, cfg, compute=compute)


class Stacks:
    """Opens data sets when first asked, dissolves an image once an operator, and only looks up after that."""

    def __init__(self, sets: Mapping[str, Any], operators: Mapping[str, Any], ts: Sequence[int]) -> None:
        if not sets or not operators or not len(ts):
            raise UsageError("an explorer needs a data set, an operator and at least one step.")
        self.sets, self.operators = dict(sets), dict(operators)
        self.ts = [int(step) for step in ts]
        self._opened: dict[str, Images] = {}
        self.on_progress: Callable[[float], None] | None = None
        self.stack = lru_cache(KEPT)(self._stack)
        self.frames = lru_cache(KEPT // 2)(self._frames)

    def images(self, dataset: str) -> Images:
        """Return the splits of a data set that hold images; one that came as a callable is opened now."""
        if dataset not in self._opened:
            data = pick(self.sets, dataset, "data set")
            data = data() if callable(data) else data
            if not isinstance(data, Mapping):
                splits = {name: getattr(data, name) for name in ("train", "val", "test")}
                data = {name: (part.images, part.class_names) for name, part in splits.items() if len(part)}
            self._opened[dataset] = data
        return self._opened[dataset]

    def add(self, dataset: str, images: Images) -> None:
        """Add a data set, or replace one; what was kept is forgotten."""
        self.sets[dataset] = self._opened[dataset] = images
        self.stack.cache_clear()
        self.frames.cache_clear()

    def classes(self, dataset: str, split: str) -> list[str]:
        """Return the names of the classes of a split, "all classes" first."""
        return [ALL, *sorted(set(map(str, pick(self.images(dataset), split, "split")[1])))]

    def rows(self, dataset: str, split: str, class_name: str = ALL) -> np.ndarray:
        """Return the positions of a class's images in its split."""
        names = np.asarray(pick(self.images(dataset), split, "split")[1]).astype(str)
        return np.arange(len(names)) if class_name == ALL else np.flatnonzero(names == class_name)

    def row(self, dataset: str, split: str, class_name: str, index: int) -> int:
        """Return the position of the ``index``-th image of a class."""
        rows = self.rows(dataset, split, class_name)
        if not 0 <= index < len(rows):
            raise DataError(f"there is no image {index} of {class_name!r} in {split!r}; there are {len(rows)}.")
        return int(rows[index])

    def x(self, dataset: str, split: str, rows: Sequence[int]) -> np.ndarray:
        """Return the images (n, [C,] H, W) at some positions of a split."""
        images = self.images(dataset)[split][0]
        return np.stack([np.asarray(images[row], np.float32) for row in rows])

    def dissolved(self, x: np.ndarray, ts: Sequence[int], operator: str) -> np.ndarray:
        """Return (T, B, [C,] H, W) and refuse what a model should not return."""
        stack = np.asarray(self.made(operator).stack(torch.from_numpy(x), ts, progress=self.on_progress), np.float32)
        if stack.shape != (len(ts), *x.shape):
            raise DataError(f"the model returned {stack.shape} for {len(ts)} steps of images {x.shape}.")
        if not np.isfinite(stack).all():
            raise NumericError("the dissolved image holds values that are not finite.")
        return stack

    def made(self, operator: str) -> Any:
        """Return an operator; one that came as a callable is made now, and until now took no room on the device."""
        chosen = pick(self.operators, operator, "operator")
        return chosen if hasattr(chosen, "stack") else chosen()

    def _stack(self, dataset: str, split: str, row: int, operator: str) -> np.ndarray:
        """Return (T, [C,] H, W): one image dissolved by an operator at every step."""
        return self.dissolved(self.x(dataset, split, [row]), self.ts, operator)[:, 0]

    def _frames(self, dataset: str, split: str, row: int, operators: tuple[str, ...]) -> figures.DissolveFrames:
        """Return the picture of one image dissolved by one or two operators."""
        stacks = {operator: self.stack(dataset, split, row, operator) for operator in operators}
        return figures.DissolveFrames(self.x(dataset, split, [row])[0], stacks, self.ts)
