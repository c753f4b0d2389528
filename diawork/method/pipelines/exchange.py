"""A DDPM of ours in the layout of diffusers, and back bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialize_safetensors
from torch import Tensor

from diawork.base.checkpoints import load_weights, refuse_differences
from diawork.base.config import DiffusionConfig
from diawork.base.errors import CheckpointError, UsageError
from diawork.base.files import as_json, read_json, sha256_file, write_bytes, write_json
from diawork.base.knobs import validated
from diawork.method.ddpm import DDPM, build_ddpm
from diawork.method.pipelines.folder import INDEX, RECORD, TWIN, VARIANTS, WEIGHTS
from diawork.method.unet.plain import betas

FORMAT = 1
_INSIDE = "unet."  # the library's UNet in the class that diffusers loads


def export_ddpm(ddpm: DDPM, folder: Path | str) -> Path:
    """Write a DDPM in the layout of diffusers: averaged weights, and the raw ones as its variant ``non_ema``.

    What is there already and the same is left alone; the folder of something else is refused.
    """
    folder, cfg = Path(folder), ddpm.config
    weights = {which: _serialized(ddpm.weights(which).model.state_dict()) for which in VARIANTS}
    sums = {which: hashlib.sha256(data).hexdigest() for which, data in weights.items()}
    record = {"format": FORMAT, "sha256": sums, "config": cfg.model_dump(mode="json"), "data": ddpm.data}
    record = as_json(record | {"losses": ddpm.losses})
    known = (folder / RECORD).is_file() and read_json(folder / RECORD) == record
    if not known and folder.is_dir() and any(folder.iterdir()):
        raise UsageError("this folder holds something else.", path=folder, hint="Choose an empty or a new one.")
    write_json(folder / RECORD, record)  # first, so that an export that was cut short can be ended
    for which, data in weights.items():
        path = _file(folder, which)
        if not path.exists() or sha256_file(path) != sums[which]:
            write_bytes(path, data)
    for name, content in _configs(cfg).items():
        write_json(folder / name, content)
    return folder


def import_ddpm(folder: Path | str) -> DDPM:
    """Return the DDPM that ``export_ddpm`` wrote; anything else, and what is damaged, is refused."""
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        hint = "A model of others fills the slot as it is: dissolve.operator=diffusers, dissolve.model=FOLDER."
        raise UsageError(f"there is no {RECORD} in it: it holds no DDPM of ours.", path=folder, hint=hint)
    record = read_json(folder / RECORD)
    kinds = {"format": int, "sha256": dict, "config": dict, "data": dict, "losses": list}
    if not isinstance(record, dict) or any(not isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"not a record of format {FORMAT}.", path=folder / RECORD)
    try:
        cfg = validated(DiffusionConfig, record["config"])
    except UsageError as error:
        raise CheckpointError(f"its config is not one of ours ({error}).", path=folder / RECORD) from None
    for name, content in _configs(cfg).items():
        refuse_differences(folder / name, read_json(folder / name), content)
    models = {which: build_ddpm(cfg) for which in VARIANTS}
    for which, model in models.items():
        path = _file(folder, which)
        load_weights(model.model, _read_weights(path, record["sha256"].get(which)), path=path, prefix=_INSIDE)
        model.eval().requires_grad_(False)
    return DDPM(models["raw"], models["ema"], cfg, record["data"], record["losses"], folder)


def _configs(cfg: DiffusionConfig) -> dict[str, dict[str, Any]]:
    """Return what diffusers reads of a DDPM, the index last: a folder without it is not finished."""
    schedule: dict[str, Any] = {"num_train_timesteps": cfg.timesteps, "beta_schedule": "squaredcos_cap_v2"}
    variances = betas(cfg).tolist()
    if cfg.beta_schedule == "linear":
        schedule |= {"beta_schedule": "linear", "beta_start": variances[0], "beta_end": variances[-1]}
    elif cfg.beta_schedule == "sigmoid":  # another one than the library's of that name
        schedule |= {"beta_schedule": "linear", "trained_betas": variances}
    unet = {"sample_size": cfg.image_size, "in_channels": cfg.channels, "out_channels": cfg.channels, "dim": cfg.dim}
    scheduler = {"_class_name": "DDPMScheduler", "prediction_type": "epsilon", "clip_sample": True} | schedule
    parts = {"unet": [f"{__package__}.twin", TWIN], "scheduler": ["diffusers", "DDPMScheduler"]}
    return {
        "unet/config.json": {"_class_name": TWIN, "dim_mults": list(cfg.dim_mults)} | unet,
        "scheduler/scheduler_config.json": scheduler,
        INDEX: {"_class_name": "DDPMPipeline"} | parts,
    }


def _file(folder: Path, which: str) -> Path:
    parts = (WEIGHTS, VARIANTS[which], "safetensors")
    return folder / "unet" / ".".join(part for part in parts if part)


def _serialized(tensors: dict[str, Tensor]) -> bytes:
    inside = {f"{_INSIDE}{name}": value.detach().cpu().contiguous() for name, value in tensors.items()}
    return serialize_safetensors(inside, metadata={"format": "pt"})


def _read_weights(path: Path, wanted: object) -> dict[str, Tensor]:
    if not path.is_file() or sha256_file(path) != wanted:
        raise CheckpointError(
            "the file is missing or not the one that was exported.", path=path, hint="Export it anew."
        )
    tensors = parse_safetensors(path.read_bytes())
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"tensor {bad[0]!r} holds values that are not finite.", path=path)
    return tensors
