"""What a folder in the layout of diffusers says of its model: looked at without loading anything, and refused here.

Each component lies in a folder of its own (``unet``, ``scheduler``, ``vae``; where a prompt is wanted ``tokenizer``,
``text_encoder``) or, as in the first releases, unet and scheduler beside each other. Weights are safetensors; nothing
is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diawork.base.errors import CheckpointError, UsageError
from diawork.base.files import digest, read_json, sha256_file

INDEX, RECORD = "model_index.json", "diawork_ddpm.json"
WEIGHTS = "diffusion_pytorch_model"
VARIANTS = {"ema": None, "raw": "non_ema"}  # of the weights, by dissolve.weights
TWIN = "LibraryUNet"  # the class of a DDPM of ours that was exported
PROMPTED = "UNet2DConditionModel"  # of Stable Diffusion; it is told the empty prompt
TOKENIZER, ENCODER = "tokenizer", "text_encoder"
TEXT_FILES = (
    "config.json", "model*.safetensors*", "vocab.json", "merges.txt", "tokenizer*.json", "special_tokens_map.json",
)  # fmt: skip
UNETS, VAES = ("UNet2DModel", TWIN, PROMPTED), ("AutoencoderKL",)
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
OBJECTIVES = ("epsilon", "v_prediction", "sample")
_EXTRA = 'Install it with pip install "diawork[diffusers]".'
_SAVE = "Save it with diffusers' save_pretrained(folder), which writes safetensors."


def require_diffusers() -> None:
    """Refuse where the extra is not installed."""
    if find_spec("diffusers") is None:
        raise UsageError("dissolve.operator='diffusers' needs diffusers, which is not installed.", hint=_EXTRA)


def is_pipeline(folder: Path | str) -> bool:
    """Say whether a folder has the layout of diffusers."""
    return any((Path(folder) / name).is_file() for name in (INDEX, "unet/config.json"))


def in_pipeline(path: Path) -> bool:
    """Say whether a file belongs to a model in the layout of diffusers."""
    return any((folder / INDEX).exists() for folder in path.parents[:2])


@dataclass(frozen=True)
class PipelineFolder:
    """The configs of a model whose parts fit each other and the slot."""

    folder: Path
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    vae: dict[str, Any] | None  # of a latent model

    @classmethod
    def read(cls, folder: Path | str | None, *, weights: str = "ema") -> PipelineFolder:
        """Read the configs below ``folder``; ``UsageError`` for what cannot fill the slot."""
        if not folder or not Path(folder).is_dir():
            hint = "Name the folder of a diffusers pipeline on this disk; nothing is downloaded."
            what = f"{folder!s:.200} is no folder." if folder else "no folder is named."
            raise UsageError(what, field="dissolve.model", hint=hint)
        folder = Path(folder)
        unet = _config(folder, "unet", UNETS)
        scheduler = _config(folder, "scheduler", SCHEDULERS)
        latent = next((name for name in ("vae", "vqvae") if (folder / name).is_dir()), None)
        read = cls(folder, unet, scheduler, _config(folder, latent, VAES) if latent else None)
        read._refuse_conditions()
        read._refuse_misfits()
        for name, variant in (("unet", VARIANTS[weights]), *((("vae", None),) if latent else ())):
            _require_weights(read.place(name), variant)
        if read.prompted:
            read._refuse_encoder()
        return read

    def place(self, component: str) -> Path:
        """Return the folder of a component."""
        return _place(self.folder, component)

    @property
    def prompted(self) -> bool:
        """Whether its UNet is told a prompt: the empty one."""
        return self.unet["_class_name"] == PROMPTED

    @property
    def objective(self) -> str:
        """Return what the UNet predicts: the noise ("epsilon"), v, or the clean sample."""
        return self.scheduler.get("prediction_type", OBJECTIVES[0])

    @property
    def channels(self) -> int:
        """Return how many channels the images have that it takes."""
        return (self.vae or self.unet)["in_channels"]

    @property
    def image_size(self) -> int:
        """Return the side of the images that it takes, in px."""
        size = self.unet["sample_size"]
        side = size if isinstance(size, int) else size[0]
        return side * 2 ** (len(self.vae["block_out_channels"]) - 1) if self.vae else side

    def digest(self) -> str:
        """Return the identity of the model's content: configs and weights, wherever they lie."""
        parts = ("unet", "scheduler", *(("vae",) if self.vae else ()))
        files = {(part, path.name): path for part in parts for path in _files(self.place(part))}
        told = (TOKENIZER, ENCODER) if self.prompted else ()
        texts = [(part, path) for part in told for name in TEXT_FILES for path in (self.folder / part).glob(name)]
        files |= {(part, path.name): path for part, path in texts}
        return digest([[part, name, sha256_file(path)] for (part, name), path in sorted(files.items())])

    def record(self) -> dict[str, Any]:
        """Return what a run's result says of it."""
        classes = {part: config["_class_name"] for part, config in (("unet", self.unet), ("scheduler", self.scheduler))}
        facts = {"objective": self.objective, "image_size": self.image_size, "channels": self.channels}
        return {"folder": str(self.folder), "digest": self.digest(), **classes, **facts, "latent": self.vae is not None}

    def _refuse_conditions(self) -> None:
        config = self.unet
        if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
            raise self._unfit("its UNet is told a class", "The slot takes an unconditional UNet2DModel.")
        if config.get("addition_embed_type") is not None:
            raise self._unfit("its UNet is told more than a prompt", "The slot takes Stable Diffusion 1 and 2.")
        if config.get("time_embedding_type", "positional") != "positional":
            raise self._unfit("its UNet reads continuous noise levels", "The slot takes one that reads steps.")
        if self.objective not in OBJECTIVES:
            what = f"prediction_type={self.objective!r:.40} of its scheduler is not known"
            raise self._unfit(what, f"Allowed: {', '.join(OBJECTIVES)}.")

    def _refuse_misfits(self) -> None:
        unet, vae = self.unet, self.vae
        size, inside, outside = (unet.get(key) for key in ("sample_size", "in_channels", "out_channels"))
        sides = [size] if isinstance(size, int) else size
        if not isinstance(sides, list) or not sides or not all(isinstance(n, int) and n > 0 for n in sides):
            raise self._unfit(f"sample_size={size!r:.40} of its UNet names no size", "Write the px of its training.")
        if len(set(sides)) > 1:
            raise self._unfit(f"it was trained on images of {size} px", "The slot takes a model of square images.")
        if not isinstance(inside, int) or outside not in (inside, 2 * inside):
            raise self._unfit(
                f"its UNet makes {outside!r:.40} channels of {inside!r:.40}", "It takes as many as it makes."
            )
        if vae and (vae.get("latent_channels") != inside or not isinstance(vae.get("block_out_channels"), list)):
            what = f"its VAE has {vae.get('latent_channels')!r:.40} latent channels, its UNet {inside}"
            raise self._unfit(what, "Both must come from one training.")
        if (channels := (vae or unet).get("in_channels")) not in (1, 3):
            raise self._unfit(f"it takes images of {channels!r:.40} channels", "Allowed: 1, 3.")

    def _refuse_encoder(self) -> None:
        """Refuse a text encoder that is missing, no CLIP, or of another width than the UNet attends to."""
        for needed in (f"{ENCODER}/config.json", f"{TOKENIZER}/vocab.json"):
            if not (self.folder / needed).is_file():
                hint = "Save the whole pipeline with diffusers' save_pretrained(folder)."
                raise self._unfit(f"its UNet wants a prompt, and there is no {needed} in this folder", hint)
        config, width = read_json(self.folder / ENCODER / "config.json"), self.unet.get("cross_attention_dim")
        kind, size = map(config.get, ("model_type", "hidden_size")) if isinstance(config, dict) else (None, None)
        if kind != "clip_text_model" or size != width:
            what = f"its text encoder ({kind!r:.40} of width {size!r:.20}) does not speak to its UNet ({width!r:.20})"
            raise self._unfit(what, "The slot takes Stable Diffusion 1 and 2.")
        if find_spec("transformers") is None:
            raise self._unfit("its prompt needs transformers, which is not installed", _EXTRA)

    def _unfit(self, what: str, hint: str) -> UsageError:
        return UsageError(f"{what}.", path=self.folder, field="dissolve.model", hint=hint)


def _place(folder: Path, component: str) -> Path:
    return folder / component if (folder / component).is_dir() else folder


def _config(folder: Path, component: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the config of a component, which must be of one of some classes."""
    path = _place(folder, component) / ("scheduler_config.json" if component == "scheduler" else "config.json")
    if not path.is_file():
        what = f"there is no {component}/{path.name} in this folder."
        raise UsageError(what, path=folder, field="dissolve.model", hint=_SAVE)
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError("this is no config of diffusers.", path=path, hint=_SAVE)
    name = str(config.get("_class_name"))
    if name not in classes:
        hint = f"The slot takes {' or '.join(classes)}."
        raise UsageError(f"its {component} is a {name:.60}.", path=folder, field="dissolve.model", hint=hint)
    return config


def _files(place: Path) -> list[Path]:
    """Return the files that make a component what it is."""
    names = ("config.json", "scheduler_config.json", f"{WEIGHTS}.safetensors.index.json")
    return [place / name for name in names if (place / name).is_file()] + sorted(place.glob(f"{WEIGHTS}*.safetensors"))


def _require_weights(place: Path, variant: str | None) -> None:
    name = f"{WEIGHTS}.{variant}" if variant else WEIGHTS
    if any((place / f"{name}.{end}").is_file() for end in ("safetensors", "safetensors.index.json")):
        return
    pickled = (place / f"{name}.bin").is_file()
    what = f"there is no {name}.safetensors in it" + (", and .bin files are never unpickled." if pickled else ".")
    hint = "Use dissolve.weights='ema'." if variant else _SAVE
    raise UsageError(what, path=place, field="dissolve.model", hint=hint)
