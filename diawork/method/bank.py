"""Dissolved views made once and read from disk, behind the same face as the dissolver itself.

One value for each (image, mirrored or not, step of a grid), stored as uint8 with the scale of its
range mode and memory-mapped, so that seeds and ablation cells share it and training pays nothing for
dissolving. Another model, range, bridge, grid or data set has another digest and another bank.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diawork.base.errors import CheckpointError, UsageError
from diawork.base.files import digest, read_json, remove_orphans, sha256_file, write_array, write_json
from diawork.base.seeding import Draws, randint
from diawork.base.stopping import raise_if_stopping
from diawork.data.images import Images
from diawork.method.dissolve import Dissolver

SCALES = {"normalized": (0.0, 1.0), "released": (-1.0, 1.0)}  # what 0 and 255 mean
BATCH = 128


class DissolvedBank:
    """Looks up what ``dissolver`` would make of the images ``x`` (N, C, H, W), at ``steps`` steps of its range.

    Made on first use under ``folder`` and verified by its hash afterwards. Rows are named by their
    position in ``x``; values differ from the live ones by the grid and by at most half of 1/255 of the scale.
    """

    def __init__(
        self, dissolver: Dissolver, x: Images, folder: Path | str, *, steps: int, origin: dict[str, Any],
        progress: bool = True,
    ) -> None:  # fmt: skip
        low, high = dissolver.t_range
        if not 1 <= steps <= high - low + 1:
            raise UsageError(f"bank_steps={steps} outside [1, {high - low + 1}], the steps of t_range=[{low}, {high}].")
        self.ts = torch.linspace(low, high, steps).round().long()
        self.scale = SCALES[dissolver.cfg.range_mode]
        self.shape = (len(x), 2, steps, *x.shape[1:])
        self.spec = {
            "origin": origin,
            "dissolve": dissolver.cfg.identity(),
            "ts": self.ts.tolist(),
            "shape": list(self.shape),
        }
        self.path = Path(folder) / f"bank-{digest(self.spec)}.npy"
        self._per_image = dissolver.cfg.t_per == "image"
        if not self._verified():
            self._make(dissolver, x, progress)
        self.values = np.load(self.path, mmap_mode="r", allow_pickle=False)

    def _verified(self) -> bool:
        record = self.path.with_suffix(".json")
        if not record.exists():
            return False
        known = read_json(record)
        if known.get("spec") != self.spec or not self.path.exists() or sha256_file(self.path) != known.get("sha256"):
            raise CheckpointError("this bank of dissolved views is damaged.", path=self.path, hint="Remove it.")
        return True

    def _make(self, dissolver: Dissolver, x: Images, progress: bool) -> None:
        remove_orphans(self.path.parent)
        begun = time.perf_counter()
        values = np.empty(self.shape, np.uint8)
        low, high = self.scale
        dissolver.expect(2 * len(self.ts) * len(x), BATCH, progress=progress)
        starts = range(0, len(x), BATCH)
        bar = tqdm(total=2 * len(self.ts) * len(starts), desc="dissolved views", unit="batch", disable=not progress)
        with bar:
            for flip, start in ((f, s) for f in (0, 1) for s in starts):
                rows = x[start : start + BATCH]
                rows = rows.flip(-1) if flip else rows
                for i, t in enumerate(self.ts.tolist()):
                    raise_if_stopping()
                    y = (dissolver.at(rows, t).cpu() - low) / (high - low) * 255
                    values[start : start + len(rows), flip, i] = y.round().clamp(0, 255).byte().numpy()
                    bar.update()
        record = {"sha256": write_array(self.path, values), "spec": self.spec, "seconds": time.perf_counter() - begun}
        write_json(self.path.with_suffix(".json"), record)

    @property
    def seconds(self) -> float:
        """Return the seconds that making it took, NaN where they were not noted."""
        return float(read_json(self.path.with_suffix(".json")).get("seconds", math.nan))

    def __call__(self, x: Tensor, *, image: Tensor, flip: Tensor, generator: Draws) -> tuple[Tensor, Tensor]:
        """Return the stored views of images ``image`` (B,), mirrored where ``flip`` (B,), at random grid steps."""
        step = randint(generator, 0, len(self.ts), n=len(x), each=self._per_image)
        picked = torch.from_numpy(self.values[image.numpy(), flip.long().numpy(), step.numpy()])
        low, high = self.scale
        y = picked.to(x.device).float().mul_((high - low) / 255).add_(low)
        return (y.expand(-1, x.shape[1], -1, -1) if y.shape[1] != x.shape[1] else y), self.ts[step]
