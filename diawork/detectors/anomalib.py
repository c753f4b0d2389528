"""The image models of anomalib, by the library's names: its networks, losses and training; our images and scoring.

The library's data sets, thresholds and metrics are not used: a model trains on our healthy images, and its raw score
is judged as any other detector's. Models that timm builds take their weights as our backbones do; a few others
(EfficientAD, DSR, AnomalyVFM, WinCLIP, UniNet) fetch weights or pictures of their own, as the library does.
"""

from __future__ import annotations

import json
import logging
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from diawork.base.checkpoints import Checkpoint, Checkpointer
from diawork.base.config import Count, Frozen, Listed
from diawork.base.errors import UsageError, did_you_mean
from diawork.base.loop import History, Progress, read_history
from diawork.base.seeding import key
from diawork.base.stopping import raise_if_stopping
from diawork.data.images import Images
from diawork.detectors.backbones import timm_weights
from diawork.detectors.learned import Learned

HELD_OUT = 10  # every tenth healthy image, where a model asks for validation images (EfficientAD's quantiles)
EPOCHS = 100  # of a model that names no number of its own
BATCH_SIZE = 32
BY_BATCH = ("cflow",)  # whose map is relative to the batch's maximum: scored one image at a time
ONE_AT_A_TIME = ("efficient_ad",)  # which the library trains with one image a step


def library(name: str) -> Any:
    """Import a module of the library; without it, say what to install."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about parts of its own that it will drop
            return import_module(name)
    except ImportError as error:
        what = f"this detector is a model of anomalib, which is not installed ({error})."
        raise UsageError(what, hint="pip install 'diawork[anomalib]'.") from None


def models() -> dict[str, Any]:
    """Return the library's image models by name: ``reverse_distillation`` → its Lightning module."""
    module = library("anomalib.models.image")
    words = {kind: re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind) for kind in module.__all__}
    return {word.lower(): getattr(module, kind) for kind, word in words.items()}


def _value(text: str) -> Any:
    """Return the number, list or truth that an option's text stands for, or the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


class Anomalib(Learned):
    """A model of anomalib as the library makes it, but for ``anomalib.options``, e.g. ``("backbone=resnet18",)``.

    Training is not resumed: an interrupted one begins anew.
    """

    name = "anomalib"
    label = "anomalib"
    uses = ("data", "backbone", "anomalib")
    extra = "anomalib"
    length = "epochs"
    sizes: ClassVar = {"smoke": {"epochs": 1}}
    requires_weights = True

    class Section(Frozen):
        """A model of anomalib; None is the library's own setting."""

        model: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")] = "padim"  # the library's name of it
        options: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z0-9_]+=.+$")], ...], Listed] = ()  # to make it
        epochs: Count | None = None
        batch_size: Count | None = None

    def _prepare(self) -> None:
        known, model = models(), self.hp.model
        if model not in known:
            raise UsageError(f"anomalib has no model {model!r}.", hint=did_you_mean(model, known))
        side = self.cfg.backbone.image_size or 256  # the library's
        options: dict[str, Any] = dict.fromkeys(("post_processor", "evaluator", "visualizer"), False)
        options |= {name: _value(text) for name, _, text in (option.partition("=") for option in self.hp.options)}
        for chatty in ("anomalib", "lightning.pytorch"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        with timm_weights(self.cfg.backbone) as weights, self._library_at_work("make"):
            options["pre_processor"] = known[model].configure_pre_processor((side, side))
            self.module = known[model](**options)
        self.net = self.module.model
        self.weights = ", ".join(weights) or f"random, seed {self.cfg.seed}"

    @contextmanager
    def _library_at_work(self, verb: str) -> Iterator[None]:
        """Seed the library's draws, which are global, and turn its errors into one sentence."""
        seeding = library("lightning.pytorch.utilities.seed")
        with seeding.isolate_rng(), warnings.catch_warnings(action="ignore"):
            library("lightning.pytorch").seed_everything(key(self.cfg.seed, "anomalib", verb) % 2**32, verbose=False)
            try:
                yield
            except (TypeError, ValueError, RuntimeError, OSError) as error:  # such as weights that cannot be fetched
                reason = " ".join(str(error).split())[:300]
                raise UsageError(f"anomalib cannot {verb} its {self.hp.model}: {reason}.") from error

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        lightning, options = library("lightning.pytorch"), dict(self.module.trainer_arguments)
        self.history, began = History(), time.perf_counter()
        rows = self.history.steps

        class Watch(lightning.Callback):  # type: ignore[name-defined]
            """Stops where a stop is asked for, and notes the loss of each step."""

            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
                raise_if_stopping()
                loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
                if loss is None:  # a model with several optimisers returns none
                    loss = next((value for name, value in trainer.callback_metrics.items() if "loss" in name), None)
                if loss is not None:
                    rows.append({"loss": float(loss)})

        device = self.compute.device
        options |= {"max_epochs": self.hp.epochs or options.get("max_epochs", EPOCHS)}
        options |= {"accelerator": "gpu" if device.type == "cuda" else device.type, "devices": 1}
        with self._library_at_work("train"):
            trainer = lightning.Trainer(
                logger=False, enable_checkpointing=False, enable_model_summary=False,
                enable_progress_bar=progress is True, callbacks=[Watch()], **options,
            )  # fmt: skip
            trainer.fit(self.module, datamodule=self._data(x))
        self.history.seconds = time.perf_counter() - began

    def _data(self, x: Images) -> Any:
        """Return our healthy images as the library asks for them."""
        lightning, batch = library("lightning.pytorch"), library("anomalib.data").ImageBatch
        size = 1 if self.hp.model in ONE_AT_A_TIME else self.hp.batch_size or BATCH_SIZE
        seed = key(self.cfg.seed, "anomalib", "order")

        def collated(rows: Any) -> Any:
            return batch(image=x[rows].expand(-1, 3, -1, -1), gt_label=torch.zeros(len(rows), dtype=torch.int64))

        def loader(rows: Any, *, shuffle: bool) -> Any:
            order = torch.Generator().manual_seed(seed)
            return torch.utils.data.DataLoader(
                rows, batch_size=size, shuffle=shuffle, collate_fn=collated, generator=order,
                drop_last=shuffle and len(rows) % size == 1 and len(rows) > 1,  # BatchNorm takes no batch of one
            )  # fmt: skip

        class Healthy(lightning.LightningDataModule):  # type: ignore[name-defined]
            train_batch_size = size

            def train_dataloader(self) -> Any:
                return loader(list(range(len(x))), shuffle=True)

            def val_dataloader(self) -> Any:
                return loader(list(range(0, len(x), HELD_OUT)), shuffle=False)

        return Healthy()

    def _restore(self, checkpoint: Checkpoint) -> Self:
        """Load what was saved; a memory bank takes the size that it was saved with."""
        net = {k.removeprefix("net."): value for k, value in checkpoint.tensors.items() if k.startswith("net.")}
        self.net.load_state_dict(net)
        self.history = read_history(checkpoint)
        return self

    @torch.no_grad()
    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self.module.to(self.compute.device).eval()
        x = x.expand(-1, 3, -1, -1)
        if self.hp.model in BY_BATCH:
            scores, maps = zip(*(self._judged(row[None]) for row in x), strict=True)
            return torch.cat(scores), torch.cat(maps)
        return self._judged(x)

    def _judged(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        found = self.module(x)
        maps = found.anomaly_map
        if maps is not None:
            maps = maps.reshape(len(x), *maps.shape[-2:])
        score = maps.amax((1, 2)) if found.pred_score is None else found.pred_score.reshape(len(x))
        return score, maps
