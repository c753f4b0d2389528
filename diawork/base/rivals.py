"""Knobs of the detectors that DIA is compared with; what a paper says is the default, its name beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from diawork.base.knobs import Count, Frozen, Listed, Positive, Shares, Whole

Strides = Annotated[tuple[Count, ...], Listed, Field(min_length=1, max_length=6)]
Weight = Annotated[float, Field(ge=0)]


class BackboneConfig(Frozen):
    """The pretrained network that several detectors look through."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_.]{1,60}$")] = "tf_efficientnet_lite0"  # timm's
    weights: Annotated[str, Field(min_length=1)] = "pretrained"  # or "random", or the path of a file
    image_size: Count = 224  # px that it sees


class DeepKnnConfig(Frozen):
    """Deep kNN (Bergman et al., 2020: the last pooled features, two neighbours)."""

    strides: Strides = (32,)  # stages pooled and put side by side
    neighbours: Count = 2


class PatchcoreConfig(Frozen):
    """PatchCore (Roth et al., CVPR 2022)."""

    strides: Strides = (8, 16)
    coreset: Annotated[float, Field(gt=0, le=1)] = 0.1  # share of the patches that the bank keeps
    most_patches: Count = 100_000  # drawn before the coreset is chosen; ours, for memory and time
    projection: Count = 128  # dimensions in which the coreset is chosen
    neighbours: Count = 9  # of the weight that an image's score gets


class PadimConfig(Frozen):
    """PaDiM (Defard et al., 2021)."""

    strides: Strides = (4, 8, 16)
    dims: Count = 100  # channels drawn
    regularisation: Positive = 0.01  # added to the diagonal of every covariance


class _Distillation(Frozen):
    strides: Strides = (4, 8, 16)  # stages of the teacher, the finest first
    blocks: Strides = (3, 4, 6)  # residual blocks of each stage of the student, the deepest first
    batch_size: Annotated[Whole, Field(ge=2)] = 16
    cosine: Literal["flat", "position"] = "flat"  # of whole maps (released) or at every position (paper)
    combine: Literal["sum", "product"] = "sum"  # of the scales' maps

    @model_validator(mode="after")
    def _as_many(self) -> _Distillation:
        if len(self.strides) != len(self.blocks):
            raise ValueError(f"blocks={self.blocks} must name one number for each of strides={self.strides}")
        return self


class Rd4adConfig(_Distillation):
    """Reverse distillation (Deng and Li, CVPR 2022)."""

    epochs: Count = 200
    lr: Positive = 0.005
    score: Literal["max", "mean"] = "max"  # of the map


class Scrd4adConfig(_Distillation):
    """Scale-aware contrastive reverse distillation (Li et al., ICLR 2025)."""

    steps: Count = 40_000
    lr: Positive = 1e-3
    score: Literal["max", "mean"] = "mean"
    scales: Literal["weighted", "official_noop"] = "weighted"  # Σ wᵢdᵢ, or inside a cosine, which ignores them
    noise: Literal["simplex", "gaussian", "cutpaste"] = "simplex"  # of the synthetic anomaly
    strength: Positive = 0.2  # λ
    patch: Shares = (10 / 256, 31 / 256)  # shortest and longest side, shares of the image's
    octaves: Count = 6  # of the simplex noise
    persistence: Positive = 0.6  # amplitude from octave to octave
    frequency: Positive = 32 / 256  # wavelength of the first octave, share of the side


class KdadConfig(Frozen):
    """Multiresolution knowledge distillation (Salehi et al., CVPR 2021)."""

    strides: Strides = (8, 16, 32)  # critical layers
    width: Count = 16  # channels of the cloner between them
    epochs: Count = 200
    batch_size: Annotated[Whole, Field(ge=2)] = 128
    lr: Positive = 1e-3
    value_weight: Weight = 0.01  # λ, of the squared difference


class MeanShiftConfig(Frozen):
    """Mean-shifted contrastive loss (Reiss and Hoshen, AAAI 2023)."""

    strides: Strides = (32,)
    frozen: Count = 8  # stride up to which the backbone stays as it is
    temperature: Positive = 0.25
    epochs: Count = 20
    batch_size: Annotated[Whole, Field(ge=2)] = 64
    lr: Positive = 1e-5
    weight_decay: Weight = 5e-5
    angular_weight: Weight = 0.0  # of the angle to the centre
    neighbours: Count = 2


class AnomalibConfig(Frozen):
    """A model of anomalib; None is the library's own setting."""

    model: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")] = "padim"  # the library's name of it
    options: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z0-9_]+=.+$")], ...], Listed] = ()  # of its constructor
    epochs: Count | None = None
    batch_size: Count | None = None


class SimsidConfig(Frozen):
    """SimSID (Xiang et al., TPAMI 2024); the switches are those of its Table II."""

    image_size: Count = 128  # px
    patches: Annotated[Whole, Field(ge=2)] = 4  # a side
    channels: Annotated[tuple[Count, ...], Listed, Field(min_length=2, max_length=6)] = (
        32,
        64,
        128,
        256,
        512,
    )  # of each level
    items: Count = 100  # of each place's memory
    active: Count = 5  # items that a token is recalled from
    shrinkage: Literal["exact", "official", "none"] = "exact"  # k items, those above the k-th (released), or all
    memory: Literal["learned", "random", "queue"] = "learned"  # "random" is the control, "queue" the forerunner's
    memories: Count = 2  # levels of the student with a memory, beside the one in the in-painting
    space_aware: bool = True  # a memory for each place, or one for all
    hierarchical: bool = True  # memories in the student, too
    skips: bool = True  # from the encoder to the levels with a memory
    inpaint: Literal["transformer", "convolution", "none"] = "transformer"
    heads: Count = 8  # of its attention
    stop_gradient: bool = True  # between teacher and encoder
    adversaries: Literal["both", "student"] = "both"  # generators that the critic judges (released: the student)
    teacher_weight: Weight = 0.01
    student_weight: Weight = 10.0
    distil_weight: Weight = 0.001
    adversarial_weight: Weight = 0.005
    critic_weight: Positive = 0.005
    critic_steps: Count = 2  # of the critic for each of the generators
    epochs: Count = 200
    batch_size: Annotated[Whole, Field(ge=2)] = 16
    lr: Positive = 1e-4
    last_lr: Positive = 2e-5  # of the cosine
    weight_decay: Weight = 1e-5

    @property
    def deepest(self) -> int:
        """Return the side of a patch's deepest features."""
        return self.image_size // (self.patches * 2 ** (len(self.channels) - 1))

    @model_validator(mode="after")
    def _divisible(self) -> SimsidConfig:
        factor = self.patches * 2 ** (len(self.channels) - 1)
        if self.image_size % factor:
            raise ValueError(f"image_size={self.image_size} must be a multiple of {factor} (patches × levels)")
        token = self.channels[-1] // 4 * self.deepest**2
        if token % self.heads:
            raise ValueError(f"heads={self.heads} must divide the {token} values of a token")
        return self
