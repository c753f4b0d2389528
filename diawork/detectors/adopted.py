"""Models of anomalib behind our face: their layers and losses, our images, weights, seeds, training and threshold.

Only healthy training images go in; the library's data modules, whose validation split comes from the test set,
its thresholds and its downloads are not used. A model looks through our own backbone in place of the library's.
"""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diawork.base.checkpoints import Checkpointer
from diawork.base.errors import UsageError
from diawork.base.loop import Progress, Row, descend
from diawork.base.seeding import isolated_rng
from diawork.data.images import Images
from diawork.detectors.backbones import Backbone, resized
from diawork.detectors.learned import SeesThrough

EXTRA = "diawork[anomalib]"
IMAGE = "anomalib.models.image"


def model_of(path: str) -> Any:
    """Import a part of anomalib's image models, e.g. ``"fastflow.torch_model"``; without it, say what to install."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of its own deprecated parts
            return import_module(f"{IMAGE}.{path}")
    except ImportError as error:
        what = f"this detector is a model of anomalib, which is not installed ({error})."
        raise UsageError(what, hint=f"pip install '{EXTRA}'.") from None


def weights_folder() -> Path:
    """Return where anomalib keeps weights that it has downloaded."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anomalib" / "pre_trained"


@contextmanager
def standing_in(owner: Any, **parts: Any) -> Iterator[None]:
    """Let names of a module or class stand for other things while a model is being made."""
    before = {name: getattr(owner, name) for name in parts}
    for name, part in parts.items():
        setattr(owner, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(owner, name, part)


class Aside(nn.Module):
    """A frozen network that a model uses and does not own: it is neither trained, switched nor saved with it."""

    def __init__(self, network: nn.Module, *, by_number: bool = False) -> None:
        super().__init__()
        self._held, self._by_number = (network,), by_number  # a tuple, which registers nothing

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattribute__("_held")[0], name)

    def forward(self, x: Tensor) -> Any:
        """Return what the network returns: maps, in a list or by number."""
        maps = self._held[0](x)
        return dict(enumerate(maps)) if self._by_number else maps


class Adopted(SeesThrough):
    """A model of anomalib, in fp32, with the library's loss; epochs, batch size and rate where the config says none.

    The library leaves epochs and batch size to its caller: the ones here are ours and no measured choice. A subclass
    makes the model and says its loss; a model with two optimisers, or none, says its step or its bank.
    """

    section = "anomalib"
    strides: ClassVar[tuple[int, ...]] = (4, 8, 16)
    epochs: ClassVar[int] = 100
    steps_in_all: ClassVar[int | None] = None  # where the length is given in steps
    batch_size: ClassVar[int] = 32
    lr: ClassVar[float] = 1e-3

    def _prepare(self) -> None:
        super()._prepare()
        self._make()

    def _make(self) -> None:
        with isolated_rng(self.cfg.seed, self.name, "init"):
            self.net = self.compute.prepare(self._model())

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the model sees."""
        return self.cfg.backbone.image_size, self.cfg.backbone.image_size

    def _looked_through(self) -> Backbone:
        return Backbone(self.cfg.backbone, self.own.strides or self.strides, seed=self.cfg.seed)

    @abstractmethod
    def _model(self) -> nn.Module:
        """Return the library's model, with our backbone aside."""

    def _loss(self, x: Tensor, step: int) -> Tensor:
        """Return the loss of prepared images x (B, 3, H, W); asked of no model that says its step or its bank."""
        raise NotImplementedError

    def _optimizers(self, lr: float) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimisers by name."""
        return {"optimizer": torch.optim.Adam(self._trained(), lr=lr, weight_decay=1e-5)}

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.net.parameters() if p.requires_grad]

    def _rate(self, step: int, steps: int) -> float:
        """Return the share of the learning rate at a step."""
        return 1.0

    def _seen(self, x: Tensor) -> Tensor:
        """Return images (B, 3, H, W) as the backbone's weights want them."""
        x = resized(self.compute.to(x), self.cfg.backbone.image_size).expand(-1, 3, -1, -1)
        return (x - self.backbone.mean) / self.backbone.std

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        lr = self.own.lr or self.lr
        optimizers = self._optimizers(lr)
        size = self.own.batch_size or self.batch_size
        steps = self._length(-(-len(x) // size))

        def take_step(step: int, index: Tensor) -> Row:
            with isolated_rng(self.cfg.seed, self.name, step):  # of dropout and of the library's own draws
                return self._step(self._seen(x[index]), step, optimizers)

        self._train(
            take_step, optimizers, checkpointer, n=len(x), batch_size=size, steps=steps,
            rate=lambda step: lr * self._rate(step, steps), progress=progress,
        )  # fmt: skip

    def _length(self, per_epoch: int) -> int:
        if self.steps_in_all and not self.own.epochs:
            return self.steps_in_all
        return (self.own.epochs or self.epochs) * per_epoch

    def _step(self, x: Tensor, step: int, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, float]:
        """Take one step on prepared images and return what to note of it."""
        return descend(self._loss(x, step), optimizers["optimizer"])

    @torch.no_grad()
    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        predicted = self.net(self._seen(x))
        heat = predicted.anomaly_map
        return predicted.pred_score.reshape(len(x)), None if heat is None else heat.reshape(len(x), *heat.shape[-2:])

    def _prepared(self, x: Images) -> Iterator[Tensor]:
        """Yield all images, prepared, batch by batch."""
        for rows in x.split(self.own.batch_size or self.batch_size):
            yield self._seen(rows)
