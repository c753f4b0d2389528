"""A model from a diffusers folder behind the face of a DDPM of ours: the same Eq. 4, with steps of equal strength."""

from __future__ import annotations

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
from diawork.method.pipelines.folder import PROMPTED, TWIN, VARIANTS, PipelineFolder, require_diffusers
from diawork.method.pipelines.prompt import empty_prompt
from diawork.method.unet.frozen import frozen_unet
from diawork.method.unet.plain import noise_levels

_AT_ONCE = 1000  # noise levels compared in one go


def nearest_steps(wanted: Tensor, levels: Tensor) -> Tensor:
    """Return for every ᾱ in ``wanted`` (T,) the step whose ᾱ in ``levels`` (S,) is nearest; one of ᾱ = 0 never is."""
    levels = levels.double().masked_fill(levels <= 0, torch.inf)
    parts = wanted.double().split(_AT_ONCE)
    return torch.cat([(part[:, None] - levels).abs().argmin(1) for part in parts])


class Pipeline(nn.Module):
    """A UNet with its noise schedule and, in a latent model, its VAE; ``t`` is a step of ``schedule``.

    One that wants a prompt is ``told`` (1, tokens, width).

    ``model``, ``num_timesteps``, ``image_size`` and ``channels`` are what ``Dissolver`` asks of a DDPM.
    """

    steps: Tensor  # (T,) ours → the model's own
    levels: Tensor  # ᾱ (S,) of the model's steps
    shift: Tensor  # (1, C or 1, 1, 1) of latents
    scale: Tensor
    told: Tensor | None

    def __init__(
        self, unet: nn.Module, facts: PipelineFolder, levels: Tensor, *, vae: Any = None, told: Tensor | None = None,
        schedule: DiffusionConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.vae, self.facts, self.objective = unet, vae, facts, facts.objective
        self.channels, self.image_size = facts.channels, (facts.image_size, facts.image_size)
        wanted = noise_levels(schedule or DiffusionConfig())
        self.num_timesteps = len(wanted)
        self.register_buffer("steps", nearest_steps(wanted, levels))
        self.register_buffer("levels", levels.float())
        self.register_buffer("told", told)
        for name, value in _normalisation(facts.vae or {}).items():
            self.register_buffer(name, value)

    def predict_start(self, x_t: Tensor, t: Tensor, compute: Compute) -> Tensor:
        """Return x̂_0 (B, C, S, S) of x_t in [-1, 1] at our steps t (B,): one reverse step, no noise added (Eq. 4).

        Predicted noise: x̂_0 = √(1/ᾱ)·x − √(1/ᾱ − 1)·ε; v: x̂_0 = √ᾱ·x − √(1 − ᾱ)·v; a predicted sample is x̂_0.
        """
        z, step = self._encode(x_t), self.steps[t]
        dtype = next(self.model.parameters()).dtype
        prompt = {} if self.told is None else {"encoder_hidden_states": self.told.to(dtype).expand(len(z), -1, -1)}
        with compute.autocast(self.model):
            output = self.model(z.to(dtype), step, **prompt).sample
        output = output[:, : z.shape[1]].float()  # a learned variance comes after it
        level = self.levels[step].view(-1, 1, 1, 1)
        if self.objective == "epsilon":
            z = (1 / level).sqrt() * z - (1 / level - 1).sqrt() * output
        elif self.objective == "v_prediction":
            z = level.sqrt() * z - (1 - level).sqrt() * output
        else:
            z = output
        return self._decode(z)

    def _encode(self, x: Tensor) -> Tensor:
        """Return the mean of the latents, as the UNet was trained to see them."""
        return x if self.vae is None else (self.vae.encode(x).latent_dist.mode() - self.shift) * self.scale

    def _decode(self, z: Tensor) -> Tensor:
        return z if self.vae is None else self.vae.decode(z / self.scale + self.shift).sample


def _normalisation(vae: dict[str, Any]) -> dict[str, Tensor]:
    """Return what is taken from latents and what they are multiplied by: a VAE's own factor, and no other."""
    mean, sd = (vae.get(f"latents_{name}") for name in ("mean", "std"))
    shift = mean if mean is not None else vae.get("shift_factor") or 0.0
    scale = vae.get("scaling_factor", 1.0) / torch.tensor(1.0 if sd is None else sd)
    return {"shift": torch.tensor(shift).float().reshape(1, -1, 1, 1), "scale": scale.reshape(1, -1, 1, 1)}


def open_pipeline(
    folder: Path | str | None, schedule: DiffusionConfig | None = None, *, weights: str = "ema"
) -> Pipeline:
    """Return the model in a folder of diffusers' layout, behind the face of a DDPM.

    Its steps are those of ``schedule`` (the published cosine), each the model's own of nearest ᾱ; ``weights`` "raw" are
    the variant ``non_ema``. Nothing is downloaded and nothing unpickled.
    """
    require_diffusers()
    facts = PipelineFolder.read(folder, weights=weights)
    import diffusers

    from diawork.method.pipelines.twin import LibraryUNet

    kinds = {TWIN: LibraryUNet, "UNet2DModel": diffusers.UNet2DModel, PROMPTED: diffusers.UNet2DConditionModel}
    unet = _loaded(kinds[facts.unet["_class_name"]], facts.place("unet"), VARIANTS[weights])
    if isinstance(unet, LibraryUNet):
        unet.unet = frozen_unet(unet.unet)
    vae = _loaded(diffusers.AutoencoderKL, facts.place("vae")) if facts.vae else None
    scheduler = getattr(diffusers, facts.scheduler["_class_name"])
    try:
        levels = scheduler.from_config(facts.scheduler).alphas_cumprod
    except Exception as error:  # settings that no scheduler can be made of
        raise CheckpointError(f"its scheduler cannot be made ({error}).", path=facts.place("scheduler")) from None
    told = empty_prompt(facts.folder) if facts.prompted else None
    return Pipeline(unet, facts, levels, vae=vae, told=told, schedule=schedule).eval().requires_grad_(False)


def pipeline_dissolver(
    folder: Path | str | None,
    cfg: DissolveConfig,
    schedule: DiffusionConfig | None = None,
    *,
    compute: Compute | None = None,
) -> Dissolver:
    """Return the occupant of the slot that a folder of diffusers' layout makes."""
    compute = replace(compute or Compute(), compile=False)  # when that pays was measured of our own UNet alone
    return Dissolver(open_pipeline(folder, schedule, weights=cfg.weights), cfg, compute=compute)


def _loaded(kind: Any, place: Path, variant: str | None = None) -> Any:
    """Return a component with exactly the weights that lie in its folder, in fp32."""
    try:
        with isolated_rng(0, "diffusers"):
            model, info = kind.from_pretrained(
                str(place), local_files_only=True, use_safetensors=True, variant=variant, torch_dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # a damaged file or config: diffusers, safetensors and torch raise many types
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"diffusers cannot load it ({first:.200}).", path=place) from None
    for what in ("missing", "unexpected", "mismatched"):
        if names := info[f"{what}_keys"]:
            raise CheckpointError(f"its weights are not those of its config: {what} {names[0]!r:.80}.", path=place)
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise CheckpointError("its weights hold values that are not finite.", path=place)
    return model
