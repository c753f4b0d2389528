"""A folder in the layout of the library diffusers: read and refused by its JSON files, before any weight is loaded.

Each component lies in a folder of its own (``unet``, ``scheduler``, ``vae``; for a prompt ``tokenizer`` and
``text_encoder``) or, as in the first releases, unet and scheduler beside each other. Weights are safetensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, model_validator

from diawork.base.errors import UsageError
from diawork.base.files import digest, read_json, sha256_file
from diawork.base.knobs import validated

INDEX, WEIGHTS = "model_index.json", "diffusion_pytorch_model"
VARIANTS = {"ema": None, "raw": "non_ema"}  # of the weights, by dissolve.weights
TOKENIZER, ENCODER = "tokenizer", "text_encoder"
MODEL_FILES = ["config.json", "scheduler_config.json", f"{WEIGHTS}.safetensors.index.json", f"{WEIGHTS}*.safetensors"]
TEXT_FILES = [
    "config.json", "model*.safetensors*", "vocab.json", "merges.txt", "tokenizer*.json", "special_tokens_map.json",
]  # fmt: skip
_SAVE = "Save it with diffusers' save_pretrained(folder), which writes safetensors."
_TAKEN = "diawork dissolves with an unconditional UNet2DModel, its own VAE included, or with Stable Diffusion 1 or 2."

Config = TypeVar("Config", bound=BaseModel)
Side = Annotated[int, Field(ge=1, le=4096)]
Channels = Annotated[int, Field(ge=1, le=8192)]
Layers = Annotated[int, Field(ge=1, le=64)]
Blocks = Annotated[list[Channels], Field(min_length=1, max_length=16)]


class UNet(BaseModel):
    """What must be so of a UNet: it reads steps, and no class or other condition but an empty prompt."""

    kind: Literal["UNet2DModel", "UNet2DConditionModel"] = Field(alias="_class_name")
    sample_size: Side | tuple[Side, Side]
    in_channels: Channels
    out_channels: Channels
    block_out_channels: Blocks = [1]
    layers_per_block: Layers | list[Layers] = 1
    cross_attention_dim: Any = None
    class_embed_type: None = None
    num_class_embeds: None = None
    addition_embed_type: None = None
    time_embedding_type: Literal["positional"] = "positional"

    @model_validator(mode="after")
    def _consistent(self) -> UNet:
        if not isinstance(self.sample_size, int) and len(set(self.sample_size)) > 1:
            raise ValueError(f"sample_size={list(self.sample_size)} is not square")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):  # twice: with a learned variance
            raise ValueError(f"out_channels={self.out_channels} does not fit in_channels={self.in_channels}")
        return self


class Scheduler(BaseModel):
    """What must be so of a noise schedule."""

    kind: Literal["DDPMScheduler", "DDIMScheduler", "PNDMScheduler"] = Field(alias="_class_name")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    num_train_timesteps: Annotated[int, Field(ge=1, le=10**6)] = 1000


class Vae(BaseModel):
    """What must be so of a latent model's VAE."""

    kind: Literal["AutoencoderKL"] = Field(alias="_class_name")
    in_channels: Channels
    latent_channels: Channels
    block_out_channels: Blocks
    layers_per_block: Layers = 1


class TextEncoder(BaseModel):
    """What must be so of a text encoder."""

    model_type: Literal["clip_text_model"]
    hidden_size: Channels
    num_hidden_layers: Layers = 1


def require_diffusers() -> None:
    """Refuse where the extra is not installed."""
    for name in ("diffusers", "transformers"):
        if find_spec(name) is None:
            what = f"dissolve.operator='diffusers' needs {name}, which is not installed."
            raise UsageError(what, hint='Install it with pip install "diawork[diffusers]".')


def is_pipeline(folder: Path | str) -> bool:
    """Say whether a folder has the layout of diffusers."""
    return any((Path(folder) / name).is_file() for name in (INDEX, "unet/config.json"))


def in_pipeline(path: Path) -> bool:
    """Say whether a file belongs to a model in the layout of diffusers."""
    return any((folder / INDEX).exists() for folder in path.parents[:2])


@dataclass(frozen=True)
class PipelineFolder:
    """A model in the layout of diffusers whose parts fit each other and Eq. 4."""

    folder: Path
    unet: UNet
    scheduler: Scheduler
    vae: Vae | None  # of a latent model

    @classmethod
    def read(cls, folder: Path | str | None, *, weights: str = "ema") -> PipelineFolder:
        """Read the JSON files below ``folder``; ``UsageError`` for what cannot dissolve."""
        if not folder or not Path(folder).is_dir():
            what = f"{folder!s:.200} is no folder." if folder else "no folder is named."
            raise _unfit(what, "Name the folder of a diffusers pipeline on this disk; nothing is downloaded.")
        folder = Path(folder)
        latent = next((name for name in ("vae", "vqvae") if (folder / name).is_dir()), "")
        unet, scheduler = _read(UNet, folder, "unet"), _read(Scheduler, folder, "scheduler")
        model = cls(folder, unet, scheduler, _read(Vae, folder, latent) if latent else None)
        if model.vae and model.vae.latent_channels != unet.in_channels:
            made = f"its VAE makes {model.vae.latent_channels} channels, its UNet takes {unet.in_channels}."
            raise _unfit(made, _TAKEN, folder)
        if model.channels not in (1, 3):
            raise _unfit(f"it takes images of {model.channels} channels.", "Allowed: 1, 3.", folder)
        if model.prompted:
            if not (folder / TOKENIZER / "vocab.json").is_file():
                raise _unfit(f"there is no {TOKENIZER}/vocab.json in this folder.", _SAVE, folder)
            width = _read(TextEncoder, folder, ENCODER).hidden_size
            if width != unet.cross_attention_dim:
                what = f"its text encoder has width {width}, its UNet attends to {unet.cross_attention_dim!r:.40}."
                raise _unfit(what, _TAKEN, folder)
        for part, variant in {"unet": VARIANTS[weights], **({"vae": None} if latent else {})}.items():
            name = f"{WEIGHTS}.{variant}" if variant else WEIGHTS
            if not any(place(folder, part).glob(f"{name}.safetensors*")):
                hint = "Use dissolve.weights='ema'." if variant else _SAVE
                raise _unfit(f"there is no {name}.safetensors in it.", hint, place(folder, part))
        return model

    @property
    def prompted(self) -> bool:
        """Whether its UNet reads a prompt: the empty one."""
        return self.unet.kind == "UNet2DConditionModel"

    @property
    def channels(self) -> int:
        """How many channels its images have."""
        return (self.vae or self.unet).in_channels

    @property
    def image_size(self) -> int:
        """The side of its images, in px."""
        size = self.unet.sample_size
        side = size if isinstance(size, int) else size[0]
        return side * 2 ** (len(self.vae.block_out_channels) - 1) if self.vae else side

    def digest(self) -> str:
        """Return the identity of the model's content: configs and weights, wherever they lie."""
        parts = dict.fromkeys(("unet", "scheduler", "vae") if self.vae else ("unet", "scheduler"), MODEL_FILES)
        parts |= dict.fromkeys((TOKENIZER, ENCODER), TEXT_FILES) if self.prompted else {}
        files = {
            (part, path.name): path
            for part, patterns in parts.items()
            for pattern in patterns
            for path in place(self.folder, part).glob(pattern)
        }
        return digest([[part, name, sha256_file(path)] for (part, name), path in sorted(files.items())])

    def record(self) -> dict[str, Any]:
        """Return what a run's result says of it."""
        return {
            "folder": str(self.folder), "digest": self.digest(), "unet": self.unet.kind,
            "scheduler": self.scheduler.kind, "objective": self.scheduler.prediction_type,
            "image_size": self.image_size, "channels": self.channels, "latent": self.vae is not None,
        }  # fmt: skip


def place(folder: Path, component: str) -> Path:
    """Return where a component lies: in a folder of its own, or among the others."""
    return folder / component if (folder / component).is_dir() else folder


def _read(kind: type[Config], folder: Path, component: str) -> Config:
    """Return the config of a component."""
    path = place(folder, component) / ("scheduler_config.json" if component == "scheduler" else "config.json")
    if not path.is_file():
        raise _unfit(f"there is no {component}/{path.name} in this folder.", _SAVE, folder)
    try:
        return validated(kind, read_json(path))
    except UsageError as error:
        raise UsageError(error.what, path=path, field=error.field, hint=_TAKEN) from None


def _unfit(what: str, hint: str, path: Path | None = None) -> UsageError:
    return UsageError(what, path=path, field="dissolve.model", hint=hint)
