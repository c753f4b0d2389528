"""Diffusion models of others, in the layout of the library diffusers: read, refused, opened, dissolved with.

Each component lies in a folder of its own (``unet``, ``scheduler``, ``vae``; for a prompt ``tokenizer`` and
``text_encoder``) or, as in the first releases, unet and scheduler beside each other. Weights are safetensors. What a
folder holds is judged by its JSON files and by the headers of its weights, before anything is built.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, Field, model_validator
from safetensors import safe_open
from torch import Tensor, nn

from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig, validated
from diawork.base.errors import CheckpointError, UsageError
from diawork.base.files import digest, read_json, sha256_file
from diawork.base.seeding import isolated_rng
from diawork.method.unet import noise_levels

INDEX, WEIGHTS = "model_index.json", "diffusion_pytorch_model"
VARIANTS = {"ema": None, "raw": "non_ema"}  # of the weights, by dissolve.weights
MODEL_FILES = ["config.json", "scheduler_config.json", f"{WEIGHTS}.safetensors.index.json", f"{WEIGHTS}*.safetensors"]
TEXT_FILES = [
    "config.json", "model*.safetensors*", "vocab.json", "merges.txt", "tokenizer*.json", "special_tokens_map.json",
]  # fmt: skip
_SAVE = "Save it with diffusers' save_pretrained(folder), which writes safetensors."
_TAKEN = "diawork dissolves with an unconditional UNet2DModel, its own VAE included, or with Stable Diffusion 1 or 2."

# --- what is read before anything is built ---------------------------------------------------------

Config = TypeVar("Config", bound=BaseModel)
Side = Annotated[int, Field(ge=1, le=4096)]
Channels = Annotated[int, Field(ge=1, le=8192)]
Layers = Annotated[int, Field(ge=1, le=64)]
EachLayers = Layers | list[Layers | list[Layers]]  # of all blocks, of each, of each layer of each
Blocks = Annotated[list[Channels], Field(min_length=1, max_length=16)]


class UNet(BaseModel):
    """What must be so of a UNet: it reads steps, and no class or other condition but an empty prompt."""

    kind: Literal["UNet2DModel", "UNet2DConditionModel"] = Field(alias="_class_name")
    sample_size: Side | tuple[Side, Side]
    in_channels: Channels
    out_channels: Channels
    block_out_channels: Blocks = [1]
    layers_per_block: EachLayers = 1
    transformer_layers_per_block: EachLayers = 1
    reverse_transformer_layers_per_block: EachLayers | None = None
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
    num_train_timesteps: Annotated[int, Field(ge=1, le=10_000)] = 1000


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
    if missing := [name for name in ("diffusers", "transformers") if find_spec(name) is None]:
        what = f"dissolve.operator='diffusers' needs {missing[0]}, which is not installed."
        raise UsageError(what, hint='Install it with pip install "diawork[diffusers]".')


def is_pipeline(folder: Path | str) -> bool:
    """Say whether a folder has the layout of diffusers."""
    return any((Path(folder) / name).is_file() for name in (INDEX, "unet/config.json"))


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
            if not (folder / "tokenizer" / "vocab.json").is_file():
                raise _unfit("there is no tokenizer/vocab.json in this folder.", _SAVE, folder)
            width = _read(TextEncoder, folder, "text_encoder").hidden_size
            if width != unet.cross_attention_dim:
                what = f"its text encoder has width {width}, its UNet attends to {unet.cross_attention_dim!r:.40}."
                raise _unfit(what, _TAKEN, folder)
        for part, variant in {"unet": VARIANTS[weights], **({"vae": None} if latent else {})}.items():
            name = f"{WEIGHTS}.{variant}" if variant else WEIGHTS
            if not any(model.place(part).glob(f"{name}.safetensors*")):
                hint = "Use dissolve.weights='ema'." if variant else _SAVE
                raise _unfit(f"there is no {name}.safetensors in it.", hint, model.place(part))
        return model

    def place(self, component: str) -> Path:
        """Return where a component lies: in a folder of its own, or among the others."""
        return self.folder / component if (self.folder / component).is_dir() else self.folder

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
        parts |= dict.fromkeys(("tokenizer", "text_encoder"), TEXT_FILES) if self.prompted else {}
        found = (
            (part, path) for part, names in parts.items() for name in names for path in self.place(part).glob(name)
        )
        files = {(part, path.name): path for part, path in found}
        return digest([[*which, sha256_file(path)] for which, path in sorted(files.items())])

    def record(self) -> dict[str, Any]:
        """Return what a run's result says of it."""
        return {
            "folder": str(self.folder), "digest": self.digest(), "unet": self.unet.kind,
            "scheduler": self.scheduler.kind, "objective": self.scheduler.prediction_type,
            "image_size": self.image_size, "channels": self.channels, "latent": self.vae is not None,
        }  # fmt: skip


def _read(kind: type[Config], folder: Path, component: str) -> Config:
    """Return the config of a component."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    path = (folder / component if (folder / component).is_dir() else folder) / name
    if not path.is_file():
        raise _unfit(f"there is no {component}/{path.name} in this folder.", _SAVE, folder)
    try:
        return validated(kind, read_json(path))
    except UsageError as error:
        raise UsageError(error.what, path=path, field=error.field, hint=_TAKEN) from None


def _unfit(what: str, hint: str, path: Path | None = None) -> UsageError:
    return UsageError(what, path=path, field="dissolve.model", hint=hint)


# --- the model -------------------------------------------------------------------------------------


def nearest_steps(wanted: Tensor, levels: Tensor) -> Tensor:
    """Return for every ᾱ in ``wanted`` (T,) the step whose ᾱ in ``levels`` (S,) is nearest; one of ᾱ = 0 never is."""
    levels = levels.double().masked_fill(levels <= 0, torch.inf)
    parts = wanted.double().split(1000)  # compared with all levels in one go
    return torch.cat([(part[:, None] - levels).abs().argmin(1) for part in parts])


class Pipeline(nn.Module):
    """A UNet with its noise schedule and, in a latent model, its VAE; ``t`` is a step of ``schedule``.

    A UNet that reads a prompt gets ``prompt`` (1, tokens, width). ``model``, ``num_timesteps``, ``image_size`` and
    ``channels`` are what ``dissolve`` asks of a DDPM, ``predict_start`` what it asks of a model of others.
    """

    steps: Tensor  # (T,) ours → the model's own
    levels: Tensor  # ᾱ (S,) of the model's steps
    shift: Tensor  # (1, C or 1, 1, 1) of latents
    scale: Tensor
    prompt: Tensor | None

    def __init__(
        self, unet: nn.Module, source: PipelineFolder, levels: Tensor, *, vae: Any = None, prompt: Tensor | None = None,
        schedule: DiffusionConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.vae, self.source = unet, vae, source
        self.channels, self.image_size = source.channels, (source.image_size, source.image_size)
        wanted = noise_levels(schedule or DiffusionConfig())
        self.num_timesteps = len(wanted)
        self.register_buffer("steps", nearest_steps(wanted, levels))
        self.register_buffer("levels", levels.float())
        self.register_buffer("prompt", prompt)
        mean, sd, shift, factor = (
            getattr(vae.config, name, None) if vae else None
            for name in ("latents_mean", "latents_std", "shift_factor", "scaling_factor")
        )
        shift, scale = mean or shift or 0.0, (1.0 if factor is None else factor) / torch.tensor(sd or 1.0)
        self.register_buffer("shift", torch.tensor(shift).float().reshape(1, -1, 1, 1))
        self.register_buffer("scale", scale.reshape(1, -1, 1, 1))

    def predict_start(self, x: Tensor, t: Tensor, compute: Compute) -> Tensor:
        """Return x̂ (B, C, S, S) of x in [-1, 1] at our steps t (B,): one reverse step, no noise added (Eq. 4).

        By what the UNet predicts. Noise: x̂ = √(1/ᾱ)·x − √(1/ᾱ − 1)·ε; v: x̂ = √ᾱ·x − √(1 − ᾱ)·v; else x̂ itself.
        """
        z, step = x, self.steps[t]
        if self.vae is not None:  # the mean of the latents, as the UNet was trained to see them
            z = (self.vae.encode(x).latent_dist.mode() - self.shift) * self.scale
        dtype = next(self.model.parameters()).dtype
        said = {} if self.prompt is None else {"encoder_hidden_states": self.prompt.to(dtype).expand(len(z), -1, -1)}
        with compute.autocast(self.model):
            output = self.model(z.to(dtype), step, **said).sample
        output = output[:, : z.shape[1]].float()  # a learned variance comes after it
        alpha_bar = self.levels[step].view(-1, 1, 1, 1)
        match self.source.scheduler.prediction_type:
            case "epsilon":
                z = (1 / alpha_bar).sqrt() * z - (1 / alpha_bar - 1).sqrt() * output
            case "v_prediction":
                z = alpha_bar.sqrt() * z - (1 - alpha_bar).sqrt() * output
            case "sample":
                z = output
        return z if self.vae is None else self.vae.decode(z / self.scale + self.shift).sample


def open_pipeline(
    folder: Path | str | None, schedule: DiffusionConfig | None = None, *, weights: str = "ema"
) -> Pipeline:
    """Return the model in a folder of diffusers' layout, ready to dissolve.

    Its steps are those of ``schedule`` (the published cosine), each the model's own of nearest ᾱ; ``weights`` "raw" are
    the variant ``non_ema``. Nothing is downloaded and nothing unpickled.
    """
    require_diffusers()
    source = PipelineFolder.read(folder, weights=weights)
    import diffusers

    unet = _loaded(getattr(diffusers, source.unet.kind), source.place("unet"), variant=VARIANTS[weights])
    vae = _loaded(diffusers.AutoencoderKL, source.place("vae")) if source.vae else None
    with _in_a_sentence(place := source.place("scheduler")):
        scheduler = getattr(diffusers, source.scheduler.kind)
        levels = scheduler.from_pretrained(str(place), local_files_only=True).alphas_cumprod
    prompt = empty_prompt(source) if source.prompted else None
    return Pipeline(unet, source, levels, vae=vae, prompt=prompt, schedule=schedule).eval().requires_grad_(False)


def empty_prompt(source: PipelineFolder) -> Tensor:
    """Return the embedding (1, tokens, width) of the empty prompt by the text encoder of a Stable Diffusion."""
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = _loaded(CLIPTextModel, source.place("text_encoder"), exactly=False)
    with _in_a_sentence(place := source.place("tokenizer")), torch.no_grad():
        tokenizer = CLIPTokenizer.from_pretrained(str(place), local_files_only=True)
        tokens = tokenizer([""], padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
        return encoder.eval()(tokens.input_ids)[0]


def _loaded(kind: Any, folder: Path, *, exactly: bool = True, **how: Any) -> Any:
    """Return a component in fp32 with the weights that lie in its folder, and where asked exactly those."""
    with _in_a_sentence(folder), isolated_rng(0, "pipelines"):
        held = 0
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as header:
                held += sum(math.prod(header.get_slice(name).get_shape()) for name in header.keys())  # noqa: SIM118
        with torch.device("meta"):  # shapes alone
            if hasattr(kind, "load_config"):
                like = kind.from_config(kind.load_config(str(folder)))
            else:
                like = kind(kind.config_class.from_pretrained(str(folder)))
        if (wanted := sum(value.numel() for value in like.parameters())) > held:
            raise ValueError(f"its config makes a network of {wanted:,} weights, and its files hold {held:,}")
        model, info = kind.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True, **how
        )
    for what in ("missing", "unexpected", "mismatched") if exactly else ("missing",):
        if names := sorted(info[f"{what}_keys"]):
            raise CheckpointError(f"its weights are not those of its config: {what} {names[0]!r:.80}.", path=folder)
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise CheckpointError("its weights hold values that are not finite.", path=folder)
    return model.float()


@contextlib.contextmanager
def _in_a_sentence(folder: Path) -> Iterator[None]:
    """Refuse a damaged file or config in one sentence: diffusers, transformers and safetensors raise many types."""
    try:
        yield
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"it cannot be loaded ({first:.200}).", path=folder) from None
