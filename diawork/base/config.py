"""Every knob with its unit and legal range.

Configs are frozen and validated; results are never written into one. A run's identity digests config and data.
Nothing is turned into another type on the way: ``true`` is no 1, ``"0.1"`` no number and ``no`` no false.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from diawork.base.errors import UsageError, did_you_mean
from diawork.base.files import digest
from diawork.base.registry import DETECTORS, entry_of
from diawork.base.shown import Shown

Model = TypeVar("Model", bound=BaseModel)


def _whole(value: Any) -> Any:
    """Return a whole number written as 1e4, or made by numpy, as an int; everything else as it is."""
    whole = isinstance(value, Real) and not isinstance(value, bool) and value == value // 1
    return int(value) if whole else value


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _increasing(low: float, high: float, unit: str) -> AfterValidator:
    """Return the rule low ≤ bounds[0] ≤ bounds[1] ≤ high."""

    def rule(bounds: tuple) -> tuple:
        if not low <= bounds[0] <= bounds[1] <= high:
            raise ValueError(f"must hold {low} ≤ low ≤ high ≤ {high} {unit}")
        return bounds

    return AfterValidator(rule)


Listed = Field(strict=False)  # a list will do for a tuple; its numbers stay strict
Whole = Annotated[int, BeforeValidator(_whole)]
Channels = Annotated[Literal[1, 3], BeforeValidator(_no_truth)]
Count = Annotated[Whole, Field(ge=1)]
Factor = Annotated[Whole, Field(ge=1, le=64)]
Seed = Annotated[Whole, Field(ge=0, lt=2**31)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Area = Annotated[tuple[float, float], Listed, _increasing(0.01, 1, "of the area")]
Aspect = Annotated[tuple[float, float], Listed, _increasing(0.01, 100, "(width / height)")]
Shares = Annotated[tuple[float, float], Listed, _increasing(0, 1, "of the side")]
Strides = Annotated[tuple[Count, ...], Listed, Field(min_length=1, max_length=6)]  # of a network's stages
Stages = Annotated[tuple[Count, ...], Listed, Field(max_length=6)]  # strides of a network's stages; (): its head
Weight = Annotated[float, Field(ge=0)]
Steps = Annotated[tuple[Whole, Whole], Listed, _increasing(0, 10**6, "steps")]
LATER: dict[str, Any] = {"later": True}  # the mark of a knob that joined after runs had been made


def later(default: Any, **limits: Any) -> Any:
    """Return a knob that joined after runs had been made: at its default it is no part of a run's identity."""
    return Field(default, json_schema_extra=LATER, **limits)


def validated(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Build ``model`` from plain values; the first thing wrong becomes one ``UsageError``."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error" and isinstance(first["input"], dict):  # of several keys, which it names
            raise UsageError(f"{first['msg'].removeprefix('Value error, ')}.") from None
        field = ".".join(str(part) for part in first["loc"])
        value = f" (given: {first['input']!r:.80})"
        raise UsageError(f"{first['msg'].removeprefix('Value error, ')}{value}.", field=field) from None


class Frozen(BaseModel):
    """A section of a config, or a whole one."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="strings")

    def identity(self) -> dict[str, Any]:
        """Return the plain values that tell one piece of work from another; no new knob orphans a finished run."""
        plain = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.json_schema_extra == LATER and value == field.default:
                del plain[name]
            elif isinstance(value, Frozen):
                plain[name] = value.identity()
        return plain

    def but(self, **changes: Any) -> Self:
        """Return a validated copy with other values."""
        return validated(type(self), dict(iter(self)) | changes)


# --- sections ---------------------------------------------------------------------------------------

K = 4  # shifts, fixed by the method
DRAWS = 2  # the scheme by which scoring draws: 1 by an image's position in its split, 2 by its pixels
LINEAR_STEPS = 20  # the linear schedule ends at β = 20/T
NO_STEP = -1  # the dissolving step of a view that was not dissolved
T_RANGE = (30, 130)  # dissolving steps, where neither config nor manifest says any

Bridge = Literal["pad", "resize", "none"]
Stem = Literal["imagenet", "cifar"]


def bridgeable(bridge: str, size: int, height: int, width: int) -> bool:
    """Say whether a bridge brings images of height × width px to a model of size × size px."""
    padded = max(height, width) <= size and (size - height) % 2 == (size - width) % 2 == 0
    return (height, width) == (size, size) or bridge == "resize" or (bridge == "pad" and padded)


class DiffusionConfig(Frozen):
    """The DDPM and how it is pretrained (Eqs. 1-3; settings in the paper's §4)."""

    dim: Annotated[Whole, Field(ge=4, le=4096, multiple_of=2)] = 64  # channels of the first level; half are sines of t
    dim_mults: Annotated[tuple[Factor, ...], Listed, Field(min_length=1)] = (1, 2, 4, 8)  # of each level
    channels: Channels = 1  # 3 repeats grey
    image_size: Annotated[Whole, Field(ge=1, le=4096)] = 32  # px seen by the UNet
    timesteps: Annotated[Whole, Field(ge=1, le=10**6)] = 1000  # T
    objective: Literal["pred_noise"] = "pred_noise"  # Eq. 4 reads the predicted noise
    beta_schedule: Literal["cosine", "linear", "sigmoid"] = "cosine"
    loss: Literal["l1", "l2"] = "l1"
    steps: Annotated[Whole, Field(ge=0)] = 25_000  # optimiser steps
    precision: Literal["run", "fp32"] = later("run")  # in training and dissolving: as all of a run, or always fp32
    batch_size: Count = 32  # images a micro-batch
    accumulate: Count = 1  # micro-batches a step
    lr: Positive = 8e-5
    lr_schedule: Literal["constant", "cosine"] = "constant"
    betas: Annotated[tuple[Decay, Decay], Listed] = (0.9, 0.99)  # of Adam
    clip_norm: Positive = 1.0
    ema_decay: Probability = 0.995
    ema_every: Count = 10  # steps
    hflip: bool = True  # the only augmentation
    seed: Seed = 0  # of weights, draws and subset; all seeds of a run share one DDPM,
    per_seed: bool = later(False)  # unless every seed of a run has a DDPM of that seed
    data_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the healthy images (data-ratio table)
    dataset: Annotated[str, Field(min_length=1, max_length=200)] | None = None  # whose images; None: the run's own

    @model_validator(mode="after")
    def _can_be_built(self) -> DiffusionConfig:
        levels, size, timesteps = len(self.dim_mults), self.image_size, self.timesteps
        if size % 2 ** (levels - 1):
            raise ValueError(
                f"diffusion.image_size={size} must be a multiple of {2 ** (levels - 1)} for {levels} levels"
            )
        if self.beta_schedule == "linear" and timesteps <= LINEAR_STEPS:  # β would reach 1 or more
            raise ValueError(f"diffusion.timesteps={timesteps} must be above {LINEAR_STEPS} for the linear schedule")
        return self

    def architecture(self) -> dict[str, Any]:
        """Return what must agree before weights are loaded."""
        fields = ("dim", "dim_mults", "channels", "image_size", "timesteps", "objective", "beta_schedule")
        return self.model_dump(mode="json", include=set(fields))


class DataConfig(Frozen):
    """What a run changes about its data set, on purpose."""

    contamination: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # share of anomalous among the images called healthy
    lesion_size: Positive | None = None  # px, the phantom's; None: the manifest's
    lesion_contrast: Annotated[float, Field(ge=-1, le=1)] | None = None  # the phantom's; None: the manifest's
    normal_class: Annotated[str, Field(max_length=300)] | None = later(None)  # it against the rest; None: the roles
    drop_leaks: bool = later(False)  # leave out healthy training images that val or test shows, too
    size: Annotated[int, Field(ge=8, le=4096)] | None = later(None)  # px, by the manifest's resize; None: its own


class DissolveConfig(Frozen):
    """What fills the dissolver's slot, and how strongly (Eq. 4)."""

    operator: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")] = "ddpm"  # its name in method.operators
    t_range: Steps | None = None  # lowest and highest step, both drawn; None: the manifest's
    t_per: Literal["image", "batch"] = "image"  # one draw an image, or one a batch (released)
    range_mode: Literal["normalized", "released"] = "normalized"  # value range through the model
    weights: Literal["ema", "raw"] = "ema"
    bridge: Bridge | None = None  # image px ↔ model px; None: the manifest's
    antialias: bool = False  # of the resize bridge
    bank_steps: Annotated[Whole, Field(ge=0)] = 0  # steps of a bank of views made once; 0: dissolve live
    kernel_size: Annotated[Whole, Field(ge=3)] = 7  # px, odd; the blurs
    sigma: Annotated[float, Field(ge=0.01)] | None = None  # px; None: the rule 0.3((k−1)/2−1)+0.8
    noise_sd: Positive = 0.1  # of [0, 1]; additive noise
    resize_to: Count = 14  # px; the resize-only control
    model: str | None = later(None, min_length=1)  # folder of the model, for "diffusers"
    match: Literal["none", "ddpm"] = "none"  # an alternative's strength: as set, or changing images as the ddpm does

    def filled(self, t_range: tuple[int, int] = T_RANGE, bridge: Bridge = "pad") -> DissolveConfig:
        """Return the section with what it leaves open settled: by the manifest, or by the paper."""
        return self.but(t_range=self.t_range or t_range, bridge=self.bridge or bridge)

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value

    @model_validator(mode="after")
    def _comparable(self) -> DissolveConfig:
        if self.match == "ddpm" and self.range_mode == "released":
            raise ValueError(
                "dissolve.match='ddpm' compares images in [0, 1]; dissolve.range_mode='released' leaves that range"
            )
        return self


class ViewsConfig(Frozen):
    """Shifts, SimCLR augmentations and the order of the branches (§3-4 of the method)."""

    shift: Literal["rotation", "cutperm"] = "rotation"
    crop_scale: Area = (0.08, 1.0)  # share of the area
    crop_ratio: Aspect = (0.75, 4 / 3)  # width / height
    jitter_probability: Probability = 0.8
    brightness: Probability = 0.4  # factor 1 ± this
    contrast: Probability = 0.4
    saturation: Probability = 0.4  # 3 channels only
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1 * 255 / 360  # turns; 3 channels only
    grey_probability: Probability = 0.2  # 3 channels only
    hflip: bool = True
    third_source: Literal["image", "second_view"] = "image"  # what the third branch dissolves; "image": own flips
    dissolve_per: Literal["image", "shift"] = "image"  # one pass an image (Fig. 2) or one a shift (released)
    dissolve_branches: Literal["third", "all"] = "third"  # "all" is the released blur control


class EncoderConfig(Frozen):
    """ResNet18 and its two heads."""

    stem: Stem = "imagenet"  # 7×7 stride 2 + max-pool, or 3×3 stride 1
    channels: Channels = 1
    projection_dim: Annotated[Whole, Field(ge=1, le=65_536)] = 128  # of z


class LossConfig(Frozen):
    """Feature-amplified NT-Xent and the shift classifier (Eqs. 6-9)."""

    mask: Literal["naive", "shifted_removed"] = "naive"  # denominators: all others, or without (O_k, A_k)
    constant: Literal["mean", "repo", "paper"] = "repo"  # in front of the sum of Eq. 7
    temperature: Annotated[float, Field(ge=0.01, le=10)] = 0.5  # τ
    contrastive_weight: Annotated[float, Field(ge=0)] = 1.0
    shift_weight: Annotated[float, Field(ge=0)] = 1.0  # γ of Eq. 9
    classifier: Literal["shift", "shift_dissolved"] = "shift"  # K classes, or 2K: dissolved views apart


class TrainConfig(Frozen):
    """Optimiser and length of the contrastive training."""

    epochs: Count = 10
    batch_size: Annotated[Whole, Field(ge=2)] = 32  # images; 3BK views enter the loss
    epoch_size: Literal["full", "samples", "batches"] = "full"
    epoch_n: Count = 200  # images with "samples" (the last batch may be smaller), batches with "batches"
    optimizer: Literal["lars", "sgd", "adamw"] = "sgd"
    peak_lr: Positive = 0.1
    start_lr: Positive = 0.01  # at the first step of the warm-up
    warmup_epochs: Annotated[float, Field(ge=0)] = 2.0
    decay_epochs: Count | None = None  # half period of the cosine after the warm-up; None: the epochs left
    momentum: Probability = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6
    clip_norm: Positive | None = None
    select: Literal["last", "val", "pseudo"] = "last"  # fixed epoch, best validation AUROC or self-check; never test
    track_test: bool = False  # note the test AUROC of every epoch, for columns named oracle and nothing else


class ScoreConfig(Frozen):
    """Feature bank and anomaly score (Eq. 10)."""

    samples: Count = 10  # T′ augmented copies an image
    crop_scale: Area = (0.54, 0.54)  # fixed crop
    flip_per: Literal["copy", "shift"] = later("copy")  # one coin a copy, or one a shift of each (released)
    parts: Literal["both", "similarity", "shift"] = "both"
    evaluate: Literal["test", "val"] = "test"  # last split scored; val: a search's run, which never scores test


class BackboneConfig(Frozen):
    """The pretrained network that several detectors look through."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_.]{1,60}$")] = "tf_efficientnet_lite0"  # timm's
    weights: Annotated[str, Field(min_length=1)] = "pretrained"  # or "random", or the path of a file
    image_size: Count | None = None  # px that it sees; None: the detector's


@cache
def _holder(name: str, section: type[Frozen]) -> type[BaseModel]:
    """Return a model of one field, the section of this name: what is wrong in it is told with the name before it."""
    fields: dict[str, Any] = {name: (section, section())}
    return create_model(name, __config__=ConfigDict(strict=True), **fields)


class ExperimentConfig(Shown, Frozen, extra="allow"):
    """One run: a data set, a detector, a seed and all their knobs.

    A detector's own section is declared by the detector; it is here where the config's detector uses it or where it
    was set.
    """

    keeps_others: ClassVar[bool] = True  # sections that the detector does not use

    dataset: Annotated[str, Field(min_length=1, max_length=200)] = "phantom"
    detector: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")] = "dia"  # its name in the registry
    seed: Seed = 0
    preset: str | None = None  # by whose settings it began, for tables; no part of its identity
    data: DataConfig = DataConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    dissolve: DissolveConfig = DissolveConfig()
    views: ViewsConfig = ViewsConfig()
    encoder: EncoderConfig = EncoderConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    score: ScoreConfig = ScoreConfig()
    backbone: BackboneConfig = later(BackboneConfig())

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @model_validator(mode="before")
    @classmethod
    def _detectors_sections(cls, values: Any) -> Any:
        """Fill and validate the sections that detectors declare."""
        if not isinstance(values, dict):
            return values
        name = values.get("detector", cls.model_fields["detector"].default)
        used = [one for one in (DETECTORS[name].uses if name in DETECTORS else ()) if one not in cls.model_fields]
        given = [one for one in values if one not in cls.model_fields]
        checked = {one: values[one] for one in values if one in cls.model_fields}
        for one in dict.fromkeys([*used, *(given if cls.keeps_others else ())]):
            entry = entry_of(one) if one in DETECTORS else None
            if entry is None or entry.Section is None:
                raise ValueError(f"{one!r} is no section of a config")
            own = values.get(one, entry.sizes.get(str(values.get("preset")), {}))
            checked[one] = getattr(_holder(one, entry.Section).model_validate({one: own}), one)
        return checked

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        t_range = self.dissolve.t_range
        if t_range and t_range[1] >= self.diffusion.timesteps:
            raise ValueError(f"dissolve.t_range={list(t_range)} must lie in [0, {self.diffusion.timesteps})")
        if self.train.track_test and self.score.evaluate == "val":
            raise ValueError("train.track_test scores test after every epoch; score.evaluate='val' never does")
        return self

    def override(self, changes: Mapping[str, Any]) -> ExperimentConfig:
        """Return a copy with dotted keys changed, e.g. ``{"loss.temperature": 0.2}``.

        Raises ``UsageError`` for an unknown key (with the nearest name) or an illegal value.
        """
        values = self.model_dump()
        for dotted, value in changes.items():
            section, _, name = str(dotted).rpartition(".")
            declared = entry_of(section) if section not in values and section in DETECTORS else None
            if declared and declared.Section:
                values[section] = declared.Section(**declared.sizes.get(str(self.preset), {})).model_dump()
            place = values.get(section) if section else values
            if not isinstance(place, dict) or name not in place or isinstance(place[name], dict) or dotted == "preset":
                raise UsageError(f"{dotted!r} is not a parameter.", hint=did_you_mean(dotted, self.keys()))
            place[name] = value
        return validated(ExperimentConfig, values)

    def shown(self) -> tuple[str, Mapping[str, object]]:
        """Return what is asked for, and the settings that differ from the defaults."""
        usual = ExperimentConfig(detector=self.detector).flat()
        changed = {key: value for key, value in self.flat().items() if usual.get(key) != value}
        asked = {"data set": f"{self.dataset}, seed {self.seed}", "detector": self.detector}
        own = [key for key in changed if "." in key]
        few = ", ".join(f"{key}={changed[key]}" for key in own)
        return f"settings, preset {self.preset or 'none'}", asked | {f"{len(own)} of {len(usual)} changed": few or "-"}

    @property
    def uses(self) -> tuple[str, ...]:
        """Return the sections that this config's detector uses."""
        return entry_of(self.detector).uses

    @property
    def has_slot(self) -> bool:
        """Say whether the detector has a slot for the dissolver."""
        return "dissolve" in self.uses

    @property
    def slot_folder(self) -> str | None:
        """Return the folder of the model of others that dissolves in this run, if one does."""
        return self.dissolve.model if self.has_slot and self.dissolve.operator == "diffusers" else None

    @property
    def classes(self) -> int:
        """Return how many classes the shift classifier tells apart."""
        return 2 * K if self.loss.classifier == "shift_dissolved" else K

    def keys(self) -> list[str]:
        """Return all dotted parameter names, those of every detector's section included."""
        sections = {name: entry.Section for name, entry in DETECTORS.items() if entry.Section}
        return list(
            dict.fromkeys([*self.flat(), *(f"{n}.{knob}" for n, s in sections.items() for knob in s.model_fields)])
        )

    def flat(self) -> dict[str, Any]:
        """Return dotted name → plain value, of what is part of this run."""
        flat: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json", exclude={"preset"}).items():
            flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        return flat

    def identity(self) -> dict[str, Any]:
        """Return the plain values that tell one piece of work from another; a section at its defaults is none."""
        plain = super().identity()
        del plain["preset"]
        for name, section in (self.model_extra or {}).items():
            del plain[name]
            if section != type(section)():
                plain[name] = section.identity()
        return plain

    def work(self) -> list[Any]:
        """Return what tells one piece of work from another: these settings and how its detector takes them today."""
        revision = entry_of(self.detector).revision
        return [self.identity(), *([f"revision {revision}"] if revision > 1 else [])]

    def digest(self, *data_identity: str) -> str:
        """Return the identity of this config together with the data's."""
        return digest([*self.work(), *data_identity])
