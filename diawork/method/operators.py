"""Operators: what may dissolve an image, a diffusion model by Eq. 4 or one of the paper's heuristic alternatives.

An operator declares all that the package knows of it: to add one, write a class here and list it in ``OPERATORS``.
An alternative is compared with the dissolver at equal strength: a table of strong and weak changes compares strengths.
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

from scipy.optimize import brentq

from diawork.base.config import NO_STEP, DiffusionConfig, DissolveConfig
from diawork.base.errors import UsageError, pick

if TYPE_CHECKING:
    from torch import Tensor

    from diawork.base.compute import Compute
    from diawork.base.seeding import Draws
    from diawork.data.images import Images


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
        opened = _imported("diawork.method.pipelines:open_pipeline")(cfg.model, schedule, weights=cfg.weights)
        return super().build(cfg, opened, schedule, compute)

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


# --- equal strength --------------------------------------------------------------------------------

MOST_IMAGES = 512  # evenly spaced; more would move the mean by nothing visible


def preview(operator: Operator, x: Tensor, *, seed: int = 0) -> Tensor:
    """Return what an operator makes of (B, C, H, W) in training, with draws that depend on ``seed`` alone."""
    import torch

    from diawork.base import seeding

    rows = torch.arange(len(x))
    return operator(x, image=rows, flip=rows < 0, generator=seeding.generator(seed, "preview"))[0]


def mean_squared_change(operator: Operator, x: Tensor) -> float:
    """Return the mean of (x̂ − x)² over images (N, C, H, W), with draws that depend on nothing but the position."""
    import torch

    changes = (preview(operator, part, seed=64 * i).cpu() - part for i, part in enumerate(x.split(64)))
    return float(torch.cat([change.square().flatten(1) for change in changes]).mean())


def matched_operator(name: str, dissolver: Operator, healthy: Images) -> tuple[Operator, dict[str, Any]]:
    """Return an alternative as strong as ``dissolver`` on healthy images, e.g. "gaussian_blur", and what was found."""
    cfg = DissolveConfig.model_validate({"operator": name})
    found = matched(cfg, dissolver, healthy)
    return build_operator(cfg.but(**found["settings"])), found


def matched(cfg: DissolveConfig, dissolver: Operator, healthy: Images) -> dict[str, Any]:
    """Return the settings of ``cfg.operator`` that match ``dissolver`` on healthy images, and what both change.

    A continuous dial meets the target; of whole numbers the nearest is taken and its own change recorded.
    """
    import torch

    rows = torch.linspace(0, len(healthy) - 1, min(len(healthy), MOST_IMAGES)).round().long()
    x, kind = healthy[rows], operator_class(cfg)
    target, side = mean_squared_change(dissolver, x), x.shape[-1]

    def change(strength: float) -> float:
        return mean_squared_change(build_operator(cfg.but(**kind.settings(strength, side))), x)

    if kind.dial:
        _, low, high = kind.dial
        weakest, strongest = change(low), change(high)
        if not weakest <= target <= strongest:
            raise UsageError(
                f"{kind.name} changes images by {weakest:.2g} to {strongest:.2g} (mean square); "
                f"the dissolver's {target:.2g} is out of its reach.",
                hint="Choose another dissolve.t_range, or match='none'.",
            )
        found = brentq(lambda value: change(_rounded(value)) - target, low, high, xtol=1e-4 * high)
        strength = _rounded(found)
    elif kind.options:
        strength = _nearest(kind.options[1](side), target, change)
    else:
        raise UsageError(f"operator={kind.name!r} has no strength to match.", hint="Use match='none'.")
    return {"settings": kind.settings(strength, side), "mean_squared_change": change(strength), "wanted": target}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _nearest(options: Iterable[int], target: float, change: Callable[[int], float]) -> int:
    """Return the option whose change is nearest in ratio; they grow stronger, so the first above ends the search."""
    distances: dict[int, float] = {}
    for option in options:
        ratio = max(change(option), 1e-12) / max(target, 1e-12)
        distances[option] = abs(math.log(ratio))
        if ratio > 1:
            break
    return min(distances, key=lambda option: distances[option])
