"""What runs share because it is expensive, found by digest: the pretrained DDPM, and the bank of dissolved views."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from diawork.base.checkpoints import has_checkpoint
from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig, ExperimentConfig, validated
from diawork.base.distributed import Group, Work, launch
from diawork.base.errors import UsageError
from diawork.base.files import digest, read_json, sha256_file, write_json
from diawork.base.locks import locked
from diawork.data.datasets import load
from diawork.data.images import ImageSet, Splits
from diawork.method.bank import DissolvedBank
from diawork.method.ddpm import DDPM, pretrain_ddpm
from diawork.method.dissolve import Dissolver
from diawork.method.operators import matched
from diawork.method.pipelines import Pipeline, PipelineFolder, open_pipeline
from diawork.runs.context import Context, Surroundings
from diawork.runs.resolve import Resolved, resolve
from diawork.runs.run import Run, runs_root, slug

SECONDS = "seconds.json"  # of a DDPM's pretraining


def diffusion_data(cfg: ExperimentConfig, splits: Splits, data_root: Path | str | None = None) -> Splits:
    """Return the data set that the DDPM learns: the run's own unless ``diffusion.dataset`` names another."""
    other = resolve(cfg, splits).diffusion.dataset
    return load(other, data_root) if other else splits


def shared_ddpm(cfg: ExperimentConfig, splits: Splits, **surroundings: Unpack[Surroundings]) -> DDPM:
    """Return the DDPM of this config on this data: found by digest, continued, or pretrained.

    Where another process is pretraining the same one, it is waited for. A config that could not run afterwards is
    refused first. ``surroundings``: out, data_root, compute, processes, progress.
    """
    return ddpm_in(Context.of(**surroundings), resolve(cfg, splits), splits)


def ddpm_in(context: Context, cfg: Resolved, splits: Splits) -> DDPM:
    """Return the DDPM of a config that was checked; the same as ``shared_ddpm``."""
    progress = context.progress
    settings, train, bridge = _pretraining(cfg, splits, context.data_root)
    folder = ddpm_folder(train, settings, bridge=bridge, out=context.out)
    with contextlib.nullcontext() if has_checkpoint(folder / "ddpm") else locked(folder, wait=True):
        in_one_go, start = not any(folder.glob("*.safetensors")), time.perf_counter()
        if context.processes > 1 and not has_checkpoint(folder / "ddpm"):
            train_together(pretrain_share, cfg, folder, context)
            progress = False
        ddpm = pretrain_ddpm(train, settings, bridge=bridge, compute=context.compute, folder=folder, progress=progress)
        if in_one_go:  # of a continued one the time before is not known
            write_json(folder / SECONDS, time.perf_counter() - start)
        return ddpm


def _pretraining(cfg: Resolved, splits: Splits, data_root: Path | str | None) -> tuple[DiffusionConfig, ImageSet, str]:
    """Return how the DDPM of a config is pretrained, on what, and through which bridge."""
    source = diffusion_data(cfg, splits, data_root)
    same = source.identity == splits.identity
    bridge = (cfg.dissolve.bridge if same else None) or source.manifest.bridge
    settings = cfg.diffusion.but(dataset=None)  # the images' identity says it
    return settings, source.train, bridge


def ddpm_folder(train: ImageSet, cfg: DiffusionConfig, *, bridge: str, out: Path | str | None = None) -> Path:
    """Return the folder below ``out`` in which runs look for the DDPM that ``pretrain_ddpm`` makes of the same."""
    return runs_root(out) / f"ddpm-{slug(train.name)}-{digest([cfg.identity(), bridge, train.identity])}"


def identity_with_models(cfg: Resolved, splits: Splits, data_root: Path | str | None = None) -> str:
    """Return the identity of all that a run is made from: its data, another set's, a model of others by its content."""
    identity = splits.identity
    if cfg.needs_ddpm and cfg.diffusion.dataset:
        identity = digest([identity, diffusion_data(cfg, splits, data_root).train.identity])
    if folder := cfg.slot_folder:
        identity = digest([identity, PipelineFolder.read(folder).digest()])
    return identity


def run_dissolver(
    cfg: ExperimentConfig, ddpm: DDPM | None, splits: Splits | None = None, *, compute: Compute | None = None
) -> Dissolver:
    """Return the dissolver of a config, the one that bank, training, maps and pictures of its run share.

    What the config leaves open is settled by the facts of ``splits``. Without a ``ddpm`` the config names a folder.
    """
    cfg = resolve(cfg, splits) if splits else cfg
    settings = cfg.dissolve
    if folder := cfg.slot_folder:
        return Dissolver(open_pipeline(folder, cfg.diffusion, weights=settings.weights), settings, compute=compute)
    if ddpm is None:
        raise UsageError("this run dissolves with its own model, and none is at hand.", hint="See shared_ddpm.")
    return Dissolver(ddpm, settings, compute=compute)


def shared_bank(
    dissolver: Dissolver, ddpm: DDPM | None, splits: Splits, *, out: Path | str | None = None, progress: bool = True
) -> DissolvedBank:
    """Return the bank of dissolved healthy images, made once for all seeds and cells that share its settings."""
    if ddpm is None or isinstance(dissolver.ddpm, Pipeline):
        origin = {"pipeline": dissolver.ddpm.source.digest(), "images": splits.train.identity}
    else:
        if ddpm.folder is None:
            raise UsageError("a bank needs a saved model; this one has no folder.", hint="See diawork.save_ddpm.")
        origin = {"ddpm": sha256_file(ddpm.folder / "ddpm.safetensors"), "images": splits.train.identity}
    folder = runs_root(out) / "banks" / digest([origin, dissolver.cfg.identity()])
    x = splits.train.normal().images
    with locked(folder, wait=True):
        return DissolvedBank(
            dissolver, x, folder, steps=dissolver.cfg.bank_steps, origin=origin, progress=progress
        )  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """What a run puts into the dissolver's slot, and what its result says of it."""

    dissolver: Dissolver | None = None  # of a diffusion model, where one dissolves itself
    training: Any = None  # the dissolver or its bank
    strength: dict[str, Any] = field(default_factory=dict)  # settings of an alternative made as strong as the DDPM's
    facts: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)  # of what it is made with, shared by other runs


def fill_slot(run: Run, cfg: Resolved, splits: Splits, context: Context) -> Slot:
    """Return what fills the slot; the one place of a run that makes a dissolver."""
    if not (cfg.fills_slot or cfg.needs_ddpm):
        return Slot()
    ddpm = ddpm_in(context, cfg, splits) if cfg.needs_ddpm else None
    dissolver = run_dissolver(cfg, ddpm, compute=context.compute)
    facts: dict[str, Any] = {}
    cost: dict[str, float] = {}
    if isinstance(dissolver.ddpm, Pipeline):
        facts["pipeline"] = dissolver.ddpm.source.record()
    if ddpm is not None:
        facts["diffusion_images"] = ddpm.data["images"]
        seconds = ddpm.folder / SECONDS if ddpm.folder else None
        if seconds and seconds.exists():  # else it was continued, or made elsewhere
            cost["ddpm_seconds"] = float(read_json(seconds))
    if cfg.fills_slot:
        bank = None
        if cfg.dissolve.bank_steps:
            bank = shared_bank(dissolver, ddpm, splits, out=context.out, progress=bool(context.progress))
            cost["bank_seconds"] = bank.seconds
        return Slot(dissolver, dissolver if bank is None else bank, facts=facts, cost=cost)
    strength = run.decided("matched.json", lambda: matched(cfg.dissolve, dissolver, splits.train.normal().images))
    settings = {f"dissolve.{name}": value for name, value in strength["settings"].items()}
    return Slot(strength=settings, facts=facts | {"matched": strength}, cost=cost)


# --- trainings that several processes share ---------------------------------------------------------------


def train_together(work: Work, cfg: ExperimentConfig, folder: Path, context: Context) -> None:
    """Do a share of a training in each of the context's processes; its weights are then in ``folder``."""
    compute = context.compute
    share: dict[str, Any] = {"config": cfg.model_dump(mode="json"), "folder": str(folder), "out": str(context.out)}
    share |= {"data_root": str(context.data_root or ""), "progress": context.progress is True}
    share |= {"device": compute.device.type, "precision": compute.precision, "compile": compute.compile}
    launch(work, share, processes=context.processes, cuda=compute.device.type == "cuda", logs=folder)


def as_member(share: dict[str, Any], group: Group) -> tuple[Resolved, Splits, Context]:
    """Return config, data and context of a process of a group, from the share that ``train_together`` gave it."""
    cfg = validated(Resolved, share["config"])
    compute = Compute.auto(share["device"], share["precision"], compile=share["compile"], group=group)
    data_root = share["data_root"] or None
    context = Context(Path(share["out"]), compute, data_root, progress=share["progress"] and group.leads)
    return cfg, load(cfg, data_root), context


def pretrain_share(share: dict[str, Any], group: Group) -> None:
    """Pretrain a DDPM as one process of a group."""
    cfg, splits, context = as_member(share, group)
    settings, train, bridge = _pretraining(cfg, splits, context.data_root)
    pretrain_ddpm(
        train, settings, bridge=bridge, compute=context.compute, folder=share["folder"], progress=context.progress
    )  # fmt: skip
