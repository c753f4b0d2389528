"""Operators: what may dissolve an image, a diffusion model by Eq. 4 or one of the paper's heuristic alternatives.

An operator declares all that the package knows of it: to add one, write a class here and list it in ``OPERATORS``.
Torch is imported where an operator works: tables and sweeps read the declarations without it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diawork.base.config import NO_STEP, DiffusionConfig, DissolveConfig
from diawork.base.errors import UsageError, pick

if TYPE_CHECKING:
    from torch import Tensor

    from diawork.base.compute import Compute
    from diawork.base.seeding import Draws


class Operator(ABC):
    """Something that dissolves images: at random in training, step by step for the eye."""

    name: ClassVar[str]  # in configs and on the command line
    title: ClassVar[str]  # in pictures; names in braces are knobs of ``dissolve``
    color: ClassVar[str] = ""  # in figures; "": its detector's
    diffusion: ClassVar[bool] = False  # whether a pretrained model dissolves
    limits: ClassVar[dict[str, Callable[[int], int]]] = {}  # knob → its largest value for images of some px
    figure: ClassVar[tuple[str, tuple[Any, ...]] | None] = None  # knob and values of Fig. 5, weak to strong
    # its strength: a continuous knob between two values, or a whole one and its values for images of some px
    dial: ClassVar[tuple[str, float, float] | None] = None
    options: ClassVar[tuple[str, Callable[[int], Iterable[int]]] | None] = None

    @classmethod
    @abstractmethod
    def build(cls, cfg: DissolveConfig, ddpm: Any, schedule: DiffusionConfig | None, compute: Compute | None) -> Any:
        """Return the operator of a config; only a diffusion model needs more than the config."""

    @classmethod
    def label(cls, cfg: DissolveConfig) -> str:
        """Return what a table calls a run with it; "": as its detector."""
        return f"{cls.name.replace('_', ' ')} in the slot"

    @classmethod
    def settings(cls, strength: float, side: int) -> dict[str, Any]:
        """Return the knobs that set a strength for images of ``side`` px."""
        knob = (cls.dial or cls.options or ("",))[0]
        return {knob: strength}

    @classmethod
    def refuse(cls, cfg: DissolveConfig, height: int, width: int) -> None:
        """Refuse settings that do not fit images of height × width px."""
        if cfg.match == "ddpm":  # matching sets the strength
            if not (cls.dial or cls.options):
                what = f"dissolve.match='ddpm' sets a strength, and dissolve.operator={cls.name!r} has none."
                raise UsageError(what, hint="Use dissolve.match='none'.")
            return
        for knob, largest in cls.limits.items():
            value, most = getattr(cfg, knob), largest(min(height, width))
            if value > most:
                what = f"{value} px do not fit images of {height}×{width} px."
                raise UsageError(what, hint=f"Allowed: up to {most}.", field=f"dissolve.{knob}")

    @property
    def timesteps(self) -> int:
        """The number of steps there are; 1: it knows no step."""
        return 1

    @abstractmethod
    def __call__(self, x: Tensor, *, image: Tensor, flip: Tensor, generator: Draws) -> tuple[Tensor, Tensor]:
        """Return x̂ (B, C, H, W) of ``x`` in [0, 1], and the steps ``t`` (B,), -1 where there is none.

        ``image`` (B,) are the images' indices, ``flip`` (B,) says whether a row is mirrored.
        """

    @abstractmethod
    def stack(self, x: Tensor, ts: Sequence[int], *, progress: Callable[[float], None] | None = None) -> Tensor:
        """Return (T, B, C, H, W) on the CPU: all images at all steps; ``progress`` hears the share done."""


# --- diffusion models (Eq. 4) ----------------------------------------------------------------------


class Diffusion(Operator):
    """A pretrained DDPM of ours; ``method.dissolve.Dissolver`` does the work."""

    name, title, diffusion = "ddpm", "DDPM", True

    @classmethod
    def build(cls, cfg: DissolveConfig, ddpm: Any, schedule: DiffusionConfig | None, compute: Compute | None) -> Any:
        if ddpm is None:
            raise UsageError(f"operator={cls.name!r} needs a pretrained model.", hint="See diawork.pretrain_ddpm.")
        return _imported("diawork.method.dissolve:Dissolver")(ddpm, cfg, compute=compute)

    @classmethod
    def label(cls, cfg: DissolveConfig) -> str:
        return ""


class Diffusers(Diffusion):
    """A model of others, from a folder in the layout of the library diffusers."""

    name, title = "diffusers", "{model}"

    @classmethod
    def build(cls, cfg: DissolveConfig, ddpm: Any, schedule: DiffusionConfig | None, compute: Compute | None) -> Any:
        opened = _imported("diawork.method.pipelines.pipeline:pipeline_dissolver")
        return opened(cfg.model, cfg, schedule, compute=compute)

    @classmethod
    def label(cls, cfg: DissolveConfig) -> str:
        return f"{Path(cfg.model or cls.name).name} in the slot"


def _imported(home: str) -> Any:
    """Return what "module:name" names."""
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)


# --- the paper's heuristic alternatives, and the plainest controls ---------------------------------


@dataclass(frozen=True)
class Heuristic(Operator):
    """An operator without steps; its fields are knobs of ``dissolve`` of the same name."""

    @classmethod
    def build(cls, cfg: DissolveConfig, *_: Any) -> Any:
        return cls(**{field.name: getattr(cfg, field.name) for field in fields(cls)})

    @abstractmethod
    def apply(self, x: Tensor, generator: Draws) -> Tensor:
        """Return what the operator makes of images (B, C, H, W)."""

    def __call__(self, x: Tensor, *, image: Tensor, flip: Tensor, generator: Draws) -> tuple[Tensor, Tensor]:
        return self.apply(x, generator), image.new_full((len(x),), NO_STEP)

    def stack(self, x: Tensor, ts: Sequence[int], *, progress: Callable[[float], None] | None = None) -> Tensor:
        """Return (T, B, C, H, W): the same at every step, made once, with draws keyed by an image's pixels."""
        import torch

        from diawork.base import seeding

        rows = zip(x.split(1), seeding.image_keys(x).tolist(), strict=True)
        made = [self.apply(row, seeding.generator(0, "stack", key)) for row, key in rows]
        return torch.cat(made).cpu().expand(len(ts), *x.shape)


@dataclass(frozen=True)
class GaussianBlur(Heuristic):
    """Blur with a Gaussian of ``kernel_size`` px, borders reflected; ``sigma`` px, by default 0.3((k−1)/2−1)+0.8."""

    name, title, color = "gaussian_blur", "Gaussian blur, {kernel_size} px", "#009E73"
    limits: ClassVar = {"kernel_size": lambda side: 2 * side - 1}
    figure = "kernel_size", (3, 5, 7, 9, 11, 15)
    dial = "sigma", 0.2, 8.0

    kernel_size: int = 7
    sigma: float | None = None

    @classmethod
    def settings(cls, strength: float, side: int) -> dict[str, Any]:
        """Return sigma with a window that ends at 3 sigma, or before the image does."""
        window = 2 * min(math.ceil(3 * strength), (side - 1) // 2) + 1
        return {"sigma": strength, "kernel_size": max(3, window)}

    def apply(self, x: Tensor, generator: Draws) -> Tensor:
        import kornia.filters as kf

        sigma = self.sigma or 0.3 * ((self.kernel_size - 1) / 2 - 1) + 0.8
        return kf.gaussian_blur2d(x, self.kernel_size, (sigma, sigma))


@dataclass(frozen=True)
class MedianBlur(Heuristic):
    """Take the median of a window of ``kernel_size`` px, borders reflected."""

    name, title, color = "median_blur", "median, {kernel_size} px", "#CC79A7"
    limits: ClassVar = {"kernel_size": lambda side: 2 * side - 1}
    figure = "kernel_size", (3, 5, 7, 9, 11, 15)
    options = "kernel_size", lambda side: range(3, side - 1 + side % 2, 2)

    kernel_size: int = 7

    def apply(self, x: Tensor, generator: Draws) -> Tensor:
        import kornia.filters as kf
        import torch.nn.functional as F

        half = self.kernel_size // 2
        return kf.median_blur(F.pad(x, (half,) * 4, mode="reflect"), self.kernel_size)[..., half:-half, half:-half]


@dataclass(frozen=True)
class ResizeOnly(Heuristic):
    """Shrink to ``resize_to`` px and enlarge again, bilinear without antialias."""

    name, title, color = "resize", "resize to {resize_to} px", "#56B4E9"
    limits: ClassVar = {"resize_to": lambda side: side}
    figure = "resize_to", (24, 20, 16, 14, 10, 7)
    options = "resize_to", lambda side: range(side - 1, 0, -1)

    resize_to: int = 14

    def apply(self, x: Tensor, generator: Draws) -> Tensor:
        import torch.nn.functional as F

        small = F.interpolate(x, (self.resize_to, self.resize_to), mode="bilinear")
        return F.interpolate(small, (x.shape[-2], x.shape[-1]), mode="bilinear")


@dataclass(frozen=True)
class AddNoise(Heuristic):
    """Add white Gaussian noise of standard deviation ``noise_sd`` and clamp to [0, 1]."""

    name, title, color = "noise", "noise, sd {noise_sd:g}", "#882255"
    figure = "noise_sd", (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    dial = "noise_sd", 0.001, 1.0

    noise_sd: float = 0.1

    def apply(self, x: Tensor, generator: Draws) -> Tensor:
        from diawork.base import seeding

        noise = seeding.randn(generator, *x.shape).to(x.device)
        return (x + self.noise_sd * noise).clamp(0, 1)


@dataclass(frozen=True)
class Identity(Heuristic):
    """Leave the image as it is: what is left of the third branch without any dissolving."""

    name, title, color = "identity", "as it is", "#999933"

    def apply(self, x: Tensor, generator: Draws) -> Tensor:
        return x


# --- the list --------------------------------------------------------------------------------------

OPERATORS: dict[str, type[Operator]] = {
    kind.name: kind for kind in (Diffusion, Diffusers, GaussianBlur, MedianBlur, ResizeOnly, AddNoise, Identity)
}


def operator_class(cfg: DissolveConfig) -> type[Operator]:
    """Return the class of the operator that a config names; an unknown name is refused with the nearest one."""
    return pick(OPERATORS, cfg.operator, "operator")


def build_operator(
    cfg: DissolveConfig, ddpm: Any = None, *, schedule: DiffusionConfig | None = None, compute: Compute | None = None
) -> Operator:
    """Return the operator of a config: "ddpm" takes a pretrained model, "diffusers" opens ``cfg.model``.

    ``schedule`` is the one that the config's steps belong to, where the opened model has another.
    """
    return operator_class(cfg).build(cfg, ddpm, schedule, compute)
