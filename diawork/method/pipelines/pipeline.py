"""A diffusion model of others, with all that ``dissolve`` asks of a DDPM: Eq. 4 at steps of equal noise level."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig, DissolveConfig
from diawork.base.errors import CheckpointError
from diawork.base.seeding import isolated_rng
from diawork.method.dissolve import Dissolver
from diawork.method.pipelines.folder import ENCODER, TOKENIZER, VARIANTS, PipelineFolder, place, require_diffusers
from diawork.method.unet import noise_levels

_AT_ONCE = 1000  # noise levels compared in one go


def nearest_steps(wanted: Tensor, levels: Tensor) -> Tensor:
    """Return for every ᾱ in ``wanted`` (T,) the step whose ᾱ in ``levels`` (S,) is nearest; one of ᾱ = 0 never is."""
    levels = levels.double().masked_fill(levels <= 0, torch.inf)
    parts = wanted.double().split(_AT_ONCE)
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

    unet = _loaded(getattr(diffusers, source.unet.kind), place(source.folder, "unet"), variant=VARIANTS[weights])
    vae = _loaded(diffusers.AutoencoderKL, place(source.folder, "vae")) if source.vae else None
    with _in_a_sentence(place(source.folder, "scheduler")):
        scheduler = getattr(diffusers, source.scheduler.kind)
        levels = scheduler.from_pretrained(str(place(source.folder, "scheduler")), local_files_only=True).alphas_cumprod
    prompt = empty_prompt(source.folder) if source.prompted else None
    return Pipeline(unet, source, levels, vae=vae, prompt=prompt, schedule=schedule).eval().requires_grad_(False)


def pipeline_dissolver(
    folder: Path | str | None, cfg: DissolveConfig, schedule: DiffusionConfig | None = None, *,
    compute: Compute | None = None,
) -> Dissolver:  # fmt: skip
    """Return the operator that a folder of diffusers' layout makes."""
    compute = replace(compute or Compute(), compile=False)  # when that pays was measured of our own UNet alone
    return Dissolver(open_pipeline(folder, schedule, weights=cfg.weights), cfg, compute=compute)


def empty_prompt(folder: Path) -> Tensor:
    """Return the embedding (1, tokens, width) of the empty prompt by the text encoder of a Stable Diffusion."""
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = _loaded(CLIPTextModel, folder / ENCODER, exactly=False)
    with _in_a_sentence(folder / TOKENIZER), torch.no_grad():
        tokenizer = CLIPTokenizer.from_pretrained(str(folder / TOKENIZER), local_files_only=True)
        tokens = tokenizer([""], padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
        return encoder.eval()(tokens.input_ids)[0]


def _loaded(kind: Any, folder: Path, *, exactly: bool = True, **how: Any) -> Any:
    """Return a component in fp32 with the weights that lie in its folder, and where asked exactly those."""
    with _in_a_sentence(folder), isolated_rng(0, "pipelines"):
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
