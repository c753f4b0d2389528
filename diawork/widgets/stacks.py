"""What the dissolving explorer shows, without a widget: data sets, occupants, and the stacks kept of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diawork.base.errors import DataError, NumericError, UsageError, did_you_mean
from diawork.figures.frames import DissolveFrames

Images = Mapping[str, tuple[np.ndarray, np.ndarray]]  # split → images (N, [C,] H, W), class names (N,)
# (x (B, [C,] H, W), T steps, progress) → (T, B, [C,] H, W)
Occupant = Callable[..., np.ndarray]
# forty steps: fine where the paper works (10-400), coarse beyond
STEPS = (0, 5, 10, 15, *range(20, 200, 10), *range(200, 400, 20), 400, 450, 500, 600, 700, 800, 900, 999)
ALL, NOTHING = "all classes", "nothing"
KEPT = 48  # stacks, and half as many pictures


def split_images(data: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the splits of an opened data set that hold images."""
    if isinstance(data, Mapping):
        return dict(data)
    splits = {name: getattr(data, name) for name in ("train", "val", "test")}
    return {name: (s.images.numpy(), s.class_names) for name, s in splits.items() if len(s)}


def pick(choices: Mapping[str, Any], name: str, what: str) -> Any:
    """Return ``choices[name]``; an unknown name is refused with the nearest one."""
    if name not in choices:
        raise UsageError(f"{name!r} is not a {what} here.", hint=did_you_mean(name, choices))
    return choices[name]


class Stacks:
    """Opens data sets when first asked, dissolves an image once an occupant, and only looks up after that."""

    def __init__(self, sets: Mapping[str, Any], slots: Mapping[str, Occupant], ts: Sequence[int]) -> None:
        if not sets or not slots or not len(ts):
            raise UsageError("an explorer needs a data set, an occupant of the slot and at least one step.")
        self._sets, self.slots, self.ts = dict(sets), dict(slots), [int(step) for step in ts]
        self.names = list(self._sets)
        self._opened: dict[str, Images] = {}
        self._kept: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._frames: OrderedDict[tuple, DissolveFrames] = OrderedDict()
        self.on_progress: Callable[[float], None] | None = None

    def images(self, dataset: str) -> Images:
        """Return the splits of a data set, opened now where it came as a callable."""
        if dataset not in self._opened:
            given = pick(self._sets, dataset, "data set")
            self._opened[dataset] = split_images(given() if callable(given) else given)
        return self._opened[dataset]

    def add(self, dataset: str, images: Images) -> None:
        """Add a data set, or replace one; what was kept of it is forgotten."""
        self._sets[dataset] = self._opened[dataset] = images
        self.names = list(self._sets)
        for kept in (self._kept, self._frames):
            for key in [key for key in kept if key[0] == dataset]:
                del kept[key]

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
        if not len(rows):
            raise DataError(f"there is no image of {class_name!r} in {split!r}.")
        if not 0 <= index < len(rows):
            raise DataError(f"image {index} of {class_name!r} in {split!r}: there are {len(rows)}.")
        return int(rows[index])

    def stack(self, dataset: str, split: str, row: int, slot: str) -> np.ndarray:
        """Return (T, [C,] H, W): one image in the hands of an occupant at every step."""
        key = (dataset, split, row, slot)
        if key not in self._kept:
            x = np.asarray(self.images(dataset)[split][0][row], np.float32)
            self._kept[key] = self.dissolved(x[None], self.ts, slot)[:, 0]
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def dissolved(self, x: np.ndarray, ts: Sequence[int], slot: str) -> np.ndarray:
        """Return (T, B, [C,] H, W) and refuse what a model should not return."""
        found = np.asarray(pick(self.slots, slot, "occupant of the slot")(x, ts, self.on_progress), np.float32)
        if found.shape != (len(ts), *x.shape):
            raise DataError(f"the model returned {found.shape} for {len(ts)} steps of images {x.shape}.")
        if not np.isfinite(found).all():
            raise NumericError("the dissolved image holds values that are not finite.")
        return found

    def frames(self, dataset: str, split: str, row: int, slots: tuple[str, ...]) -> DissolveFrames:
        """Return the picture of one image in the hands of one or two occupants."""
        key = (dataset, split, row, slots)
        if key not in self._frames:
            x = np.asarray(self.images(dataset)[split][0][row], np.float32)
            stacks = {slot: self.stack(dataset, split, row, slot) for slot in slots}
            self._frames[key] = DissolveFrames(x, stacks, self.ts)
            while len(self._frames) > KEPT // 2:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        return self._frames[key]

    def strip(self, dataset: str, split: str, rows: Sequence[int], slot: str, ts: Sequence[int]) -> np.ndarray:
        """Return (n, 1 + T, [C,] H, W): images as they are, then dissolved at ``ts``, in batched passes."""
        x = np.stack([np.asarray(self.images(dataset)[split][0][row], np.float32) for row in rows])
        return np.concatenate([x[None], self.dissolved(x, ts, slot)]).swapaxes(0, 1)
