"""SimSID: healthy anatomy recalled place by place, and a critic that hears where recalling fails (TPAMI 2024).

Xiang et al.: chest X-rays share their layout, so an image is cut into patches, and each place has a memory of its
own. A student rebuilds the image from what the memories recall, a teacher rebuilds it from plain features and shows
the student how; a discriminator learns real from rebuilt, and says of a test image how healthy its rebuilding looks.
Written from the paper; the switches of its Table II are knobs, and so is what its release does otherwise. Not here:
keeping the epoch that is best on labelled validation images, as the paper does; the last step's weights are kept.

A memory holds N items M of a place and recalls a token z as ẑ = Σₖ G(⟨z, Mₖ⟩) Mₖ, where G keeps the k largest
weights ("Gumbel shrinkage": the gradient reaches all of them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from diawork.base.checkpoints import Checkpointer
from diawork.base.config import Count, Frozen, Listed, Positive, Weight, Whole
from diawork.base.errors import DataError
from diawork.base.loop import Progress, Row, descend
from diawork.base.seeding import generator, isolated_rng
from diawork.data.images import Images
from diawork.detectors.backbones import resized
from diawork.detectors.learned import BATCH, Learned, enlarged, smoothed

BETAS = (0.5, 0.999)
SHIFT, ZOOM = 0.05, 0.05  # of the training images: share of the side, share of the scale
CRITIC = (16, 32, 64, 128, 256)  # channels of the discriminator
BLANK = 0.25  # of the patches, where pixels are in-painted
_TINY = 1e-8  # keeps a spread of none, or the sum of no weights, finite


# --- what it recalls: a memory for each place, and each patch told from its neighbours ------------------


NARROW = 4  # channels of the deepest features over those of a token


def cut(x: Tensor, patches: int) -> Tensor:
    """Return images (B, C, H, W) as patches (B·p², C, H/p, W/p), row by row."""
    rows = x.unflatten(3, (patches, -1)).unflatten(2, (patches, -1))  # (B, C, p, h, p, w)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def joined(x: Tensor, patches: int) -> Tensor:
    """Return patches (B·p², C, h, w) as images (B, C, p·h, p·w)."""
    rows = x.unflatten(0, (-1, patches, patches))  # (B, p, p, C, h, w)
    return rows.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def shrunk(s: Tensor, active: int, mode: str = "exact") -> Tensor:
    """Return G(s) (…, N): the largest ``active`` of softmax(s), of sum one; gradients reach all N of them.

    The released code keeps what lies strictly above the k-th, one item too few: ``official``.
    """
    soft = s.softmax(-1)
    if mode == "none":
        return soft
    top = soft.topk(min(active, soft.shape[-1]), -1)
    kept = soft > top.values[..., -1:] if mode == "official" else torch.zeros_like(soft).scatter(-1, top.indices, 1) > 0
    hard = soft * kept
    return soft + (hard / hard.sum(-1, keepdim=True).clamp_min(_TINY) - soft).detach()


class Memory(nn.Module):
    """Items (P, N, D) that a patch is recalled from: those of its own place alone, or one set for all places.

    They are learned, or random (the control), or, as in SimSID's forerunner, a queue of the latest tokens of training.
    """

    def __init__(self, dim: int, cfg: SimSID.Section) -> None:
        super().__init__()
        self.cfg, self.places = cfg, cfg.patches**2
        bound = dim**-0.5
        items = torch.empty(self.places if cfg.space_aware else 1, cfg.items, dim).uniform_(-bound, bound)
        self.items = nn.Parameter(items, requires_grad=cfg.memory == "learned")

    def forward(self, x: Tensor) -> Tensor:
        """Return what the memory recalls of patches (B·P, C, h, w), of the same shape."""
        z, items = x.flatten(1).unflatten(0, (-1, self.places)), self.items.expand(self.places, -1, -1)
        if self.cfg.memory == "queue" and self.training:
            items = items.clone()  # the batch is recalled from those before it
            newest = z.detach().float()  # goes in front of the queue; the oldest fall out
            newest = newest.transpose(0, 1) if self.cfg.space_aware else newest.flatten(0, 1)[None]
            with torch.no_grad():
                self.items.copy_(torch.cat([newest, self.items], 1)[:, : self.cfg.items])
        with torch.autocast(x.device.type, enabled=False):  # in low precision many items would be equally near
            weights = shrunk(torch.einsum("bpd,pnd->bpn", z.float(), items), self.cfg.active, self.cfg.shrinkage)
            return torch.einsum("bpn,pnd->bpd", weights, items).flatten(0, 1).view_as(x)


class InPainting(nn.Module):
    """Deepest features (B·P, C, h, w) → the same, each patch told from what its neighbours recall.

    The query is the patch's own feature; keys and values are the recalled features of its up to eight neighbours. What
    the patch itself recalls is masked (paper), or added (released). An image of one patch has no neighbours.
    """

    away: Tensor  # (P, P), True where two places are no neighbours

    def __init__(self, channels: int, side: int, cfg: SimSID.Section) -> None:
        super().__init__()
        self.cfg, narrow = cfg, channels // NARROW
        dim = narrow * side**2
        self.reduce, self.expand = _normalised(channels, narrow, 1), _normalised(narrow, channels, 1)
        self.memory, self.attends = Memory(dim, cfg), cfg.inpaint == "transformer" and cfg.patches > 1
        if self.attends:
            self.attention = nn.MultiheadAttention(dim, cfg.heads, batch_first=True)
            self.feed = nn.Sequential(nn.Linear(dim, dim // 4), nn.ReLU(True), nn.Linear(dim // 4, dim))
            self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        elif cfg.inpaint == "convolution":
            self.mix = nn.Conv2d(narrow, narrow, 3, 1, 1)
        self.register_buffer("away", ~neighbours(cfg.patches), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of x."""
        small = self.reduce(x)
        recalled = self.memory(small)
        if self.attends:
            recalled = self._attended(self._tokens(small), self._tokens(recalled)).flatten(0, 1).view_as(small)
        elif self.cfg.inpaint == "convolution":
            recalled = recalled + cut(self.mix(joined(recalled, self.cfg.patches)), self.cfg.patches)
        return self.expand(recalled)

    def _tokens(self, x: Tensor) -> Tensor:
        return x.flatten(1).unflatten(0, (-1, self.cfg.patches**2))

    def _attended(self, tokens: Tensor, recalled: Tensor) -> Tensor:
        """Return recalled tokens (B, P, D) after one transformer layer over their neighbours."""
        around, _ = self.attention(tokens, recalled, recalled, attn_mask=self.away, need_weights=False)
        y = self.norms[0](around if self.cfg.centre == "masked" else recalled + around)
        return self.norms[1](y + self.feed(y))


def neighbours(patches: int) -> Tensor:
    """Return which places (P, P) of a grid touch one another, a place and itself not."""
    places = torch.cartesian_prod(torch.arange(patches), torch.arange(patches))
    return (places[:, None] - places).abs().amax(2) == 1


# --- networks ------------------------------------------------------------------------------------------


def _normalised(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2), nn.BatchNorm2d(out), nn.ReLU(True)
    )  # fmt: skip


def _block(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_normalised(channels, out, 3, stride), *_normalised(out, out, 3))


class Generator(nn.Module):
    """Deepest features of patches → an image, over the levels of the encoder backwards.

    The student has a memory behind each of the ``memories`` deepest levels, and skip connections into these alone:
    whatever it is shown passes a memory before it is drawn. There the patches are joined.
    """

    def __init__(self, cfg: SimSID.Section, image_channels: int, *, student: bool) -> None:
        super().__init__()
        self.cfg, levels = cfg, list(pairwise(reversed(cfg.channels)))
        self.joins = min(cfg.memories, len(levels))
        skipped = cfg.skips and (student or cfg.teacher_skips)
        skips = [skipped and i < self.joins for i in range(len(levels))]
        self.levels = nn.ModuleList(_block(a + b * skip, b) for (a, b), skip in zip(levels, skips, strict=True))
        recalls = self.joins if student and cfg.hierarchical else 0
        sides = (cfg.deepest * 2 ** (i + 1) for i in range(recalls))
        self.memories = nn.ModuleList(Memory(b * s**2, cfg) for (_, b), s in zip(levels, sides, strict=False))
        self.draw = nn.Conv2d(cfg.channels[0], image_channels, 3, 1, 1)

    def forward(self, deepest: Tensor, skips: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """Return images (B, C, H, W) in [0, 1] and the features of each level, the deepest first."""
        y, features = deepest, []
        for i, level in enumerate(self.levels):
            y = F.interpolate(y, scale_factor=2, mode="bilinear")
            y = level(torch.cat([y, skips[i]], 1) if i < len(skips) else y)
            y = self.memories[i](y) if i < len(self.memories) else y
            features.append(y)
            y = joined(y, self.cfg.patches) if i + 1 == self.joins else y
        return self.draw(y).sigmoid(), features


class Networks(nn.Module):
    """Encoder of patches, in-painting, teacher, student and critic."""

    def __init__(self, cfg: SimSID.Section, image_channels: int) -> None:
        super().__init__()
        self.cfg, first = cfg, cfg.channels[0]
        deeper = (_block(a, b, 2) for a, b in pairwise(cfg.channels))
        self.encoder = nn.ModuleList([_block(image_channels, first), *deeper])
        self.inpainting = InPainting(cfg.channels[-1], cfg.deepest, cfg)
        self.teacher, self.student = (Generator(cfg, image_channels, student=s) for s in (False, True))
        self.critic = critic(cfg.image_size, image_channels)

    def encoded(self, x: Tensor) -> list[Tensor]:
        """Return the features of the patches of x in [0, 1], the finest first."""
        features, y = [], cut(2 * x - 1, self.cfg.patches)
        for stage in self.encoder:
            y = stage(y)
            features.append(y)
        return features

    def rebuilt(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the student's images (B, C, H, W) and its features."""
        return self.student(self.inpainting(features[-1]), self._skips(features))

    def taught(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the teacher's images (B, C, H, W) and features; its gradient stops before the encoder."""
        if self.cfg.stop_gradient:
            features = [f.detach() for f in features]
        return self.teacher(features[-1], self._skips(features) if self.cfg.teacher_skips else ())

    def _skips(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        return features[-2 : -2 - self.student.joins : -1] if self.cfg.skips else ()

    def judged(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the critic's logits (B,) of images and where it sees the rebuilding in them (B, h, w), by Grad-CAM.

        Its BatchNorm takes each image's own statistics, as in the release, or those of training. The last layer is
        linear, so the gradient of the logit is that layer's weight: the map is ReLU(−Σ_c mean(w_c) A_c).
        """
        layers: list[Any] = list(self.critic)
        last, y = layers[-1], images
        for layer in layers[:-2]:
            if isinstance(layer, nn.BatchNorm2d) and self.cfg.critic_statistics == "image":
                y = F.instance_norm(y, weight=layer.weight, bias=layer.bias, eps=layer.eps)
            else:
                y = layer(y)
        weight = last.weight.view(y.shape[1:]).mean((1, 2))
        return last(y.flatten(1))[:, 0], -torch.einsum("bchw,c->bhw", y.float(), weight).clamp_max(0)

    def generating(self) -> list[nn.Parameter]:
        """Return the parameters of everything but the critic."""
        parts = (self.encoder, self.inpainting, self.teacher, self.student)
        return [p for part in parts for p in part.parameters() if p.requires_grad]


def critic(side: int, image_channels: int) -> nn.Sequential:
    """Return a discriminator of whole images (B, C, H, W): one logit each (B, 1), high for real ones.

    No layer has a single position: an image would be normalised to nothing there, by its own statistics.
    """
    layers: list[nn.Module] = []
    width = image_channels
    for out in CRITIC:
        if side <= 2:
            break
        norm = [nn.BatchNorm2d(out)] if layers else []
        layers += [nn.Conv2d(width, out, 5, 2, 2), *norm, nn.LeakyReLU(0.2)]
        width, side = out, -(-side // 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side**2, 1))


# --- the detector --------------------------------------------------------------------------------------


class SimSID(Learned):
    """The score is 1 − φ((D(G(x)) − μ) / σ), φ the sigmoid, μ and σ of D over healthy training images."""

    name = "simsid"
    label = "SimSID"
    uses = ("data", "simsid")
    color = "#117733"
    revision = 2
    paper_rule = "accuracy"
    length = "epochs"
    sizes: ClassVar = {
        "smoke": {"image_size": 16, "channels": (4, 8, 16), "heads": 4, "items": 10, "epochs": 1},
        "cpu": {"image_size": 64, "channels": (16, 32, 64, 128), "epochs": 20},
    }
    keeps = ("mean", "sd")

    class Section(Frozen):
        """Its knobs; what the paper says is the default."""

        image_size: Count = 128  # px
        patches: Count = 4  # a side
        # channels of each level
        channels: Annotated[tuple[Count, ...], Listed, Field(min_length=2, max_length=6)] = (32, 64, 128, 256, 512)
        items: Count = 100  # of each place's memory
        active: Count = 5  # items that a token is recalled from
        shrinkage: Literal["exact", "official", "none"] = "exact"  # k items, those above the k-th (released), or all
        memory: Literal["learned", "random", "queue"] = "learned"  # "random" is the control, "queue" the forerunner's
        memories: Count = 2  # levels of the student with a memory, beside the one in the in-painting
        space_aware: bool = True  # a memory for each place, or one for all
        hierarchical: bool = True  # memories in the student, too
        skips: bool = True  # from the encoder to the levels with a memory
        teacher_skips: bool = True  # the teacher's generator has them, too
        inpaint: Literal["transformer", "convolution", "pixels", "none"] = "transformer"  # "pixels": of blank patches
        centre: Literal["masked", "recalled"] = "masked"  # what a patch recalls itself, in the in-painting (released)
        heads: Count = 8  # of its attention
        stop_gradient: bool = True  # between teacher and encoder
        distilled: Literal["both", "student"] = "both"  # generators that distillation moves
        adversaries: Literal["both", "student"] = "both"  # generators that the critic judges (released: the student)
        teacher_weight: Weight = 0.01
        student_weight: Weight = 10.0
        distil_weight: Weight = 0.001
        adversarial_weight: Weight = 0.005
        critic_weight: Positive = 0.005
        critic_steps: Count = 2  # of the critic for each of the generators
        critic_statistics: Literal["image", "running"] = "image"  # of its BatchNorm when it scores: the image's own
        map: Literal["grad-cam", "reconstruction"] = "grad-cam"  # of the critic (paper), or |x − G(x)|
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
        def _divisible(self) -> Self:
            factor = self.patches * 2 ** (len(self.channels) - 1)
            if self.image_size % factor:
                raise ValueError(f"image_size={self.image_size} must be a multiple of {factor} (patches × levels)")
            token = self.channels[-1] // 4 * self.deepest**2
            if token % self.heads:
                raise ValueError(f"heads={self.heads} must divide the {token} values of a token")
            return self

    def _prepare(self) -> None:
        if self.shape[0] not in (1, 3):
            raise DataError(f"SimSID takes images of 1 or 3 channels, not {self.shape[0]}.")
        with isolated_rng(self.cfg.seed, "simsid", "init"):
            self.net = self.compute.prepare(Networks(self.hp, self.shape[0]))

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        hp, net = self.hp, self.net
        parts = {"generator": net.generating(), "critic": list(net.critic.parameters())}
        settings = {"lr": hp.lr, "betas": BETAS, "weight_decay": hp.weight_decay}
        optimizers = {name: torch.optim.Adam(some, **settings) for name, some in parts.items()}
        steps = hp.epochs * -(-len(x) // hp.batch_size)

        def take_step(step: int, rows: Tensor) -> Row:
            draws = generator(self.cfg.seed, "simsid", step)
            rows = self.compute.to(jittered(resized(rows, hp.image_size), draws))
            blank = torch.rand(len(rows) * hp.patches**2, generator=draws) < BLANK * (hp.inpaint == "pixels")
            return self._step(rows, optimizers, blank=blank, generate=step % hp.critic_steps == 0)

        self._train(
            take_step, x, checkpointer, steps=steps, progress=progress, **optimizers,
            rate=lambda step: hp.last_lr + (hp.lr - hp.last_lr) * (1 + math.cos(math.pi * step / steps)) / 2,
        )  # fmt: skip
        logits = torch.cat([self._judged(self.compute.to(rows))[0] for rows in x.split(BATCH)])
        self.kept = {"mean": logits.mean(), "sd": logits.std().clamp_min(_TINY)}

    def _step(
        self, x: Tensor, optimizers: Mapping[str, torch.optim.Optimizer], *, blank: Tensor, generate: bool
    ) -> Row:  # fmt: skip
        """Teach the critic and, where it is their turn, the generators; they are shown x without its ``blank`` patches.

        ``blank`` (B·P,) says which.
        """
        hp, net = self.hp, self.net
        shown = cut(x, hp.patches).masked_fill(blank.to(x.device)[:, None, None, None], 0)
        with torch.set_grad_enabled(generate), self.compute.autocast():
            features = net.encoded(joined(shown, hp.patches))
            student, by_student = net.rebuilt(features)
            teacher, by_teacher = net.taught(features)
        made = [student, teacher] if hp.adversaries == "both" else [student]
        with self.compute.autocast():
            false = sum(_wrong(net.critic(image.detach()), real=False) for image in made) / len(made)
            judged = hp.critic_weight * (_wrong(net.critic(x), real=True) + false)
        row = {
            "critic": descend(judged, optimizers["critic"])["loss"],
            "loss": float(F.mse_loss(student.detach().float(), x)),
        }
        if generate:
            with self.compute.autocast():
                fooling = sum(_wrong(net.critic(image), real=True) for image in made) / len(made)
            loss = hp.student_weight * F.mse_loss(student.float(), x)
            loss = loss + hp.teacher_weight * F.mse_loss(teacher.float(), x) + hp.adversarial_weight * fooling
            target = by_teacher if hp.distilled == "both" else [f.detach() for f in by_teacher]
            loss = loss + hp.distil_weight * distilled(by_student, target)
            descend(loss, optimizers["generator"])
        return row

    @torch.no_grad()
    def _judged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the critic's logits (B,) of the rebuilt x and the anomaly map (B, h, w)."""
        seen = resized(x, self.hp.image_size)
        with self.compute.autocast():
            image, _ = self.net.rebuilt(self.net.encoded(seen))
            logits, heat = self.net.judged(image)
        return logits.double().cpu(), heat if self.hp.map == "grad-cam" else (seen - image.float()).abs().mean(1)

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, heat = self._judged(x)
        heat = enlarged(heat, (self.hp.image_size,) * 2)
        return ((self.kept["mean"] - logits) / self.kept["sd"]).sigmoid(), smoothed(heat)


def distilled(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return Σ over levels of the mean squared difference of features (Eq. 4)."""
    return torch.stack([F.mse_loss(s.float(), t.float()) for s, t in zip(student, teacher, strict=True)]).sum()


def jittered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) moved by up to 5 % of the side and zoomed by up to 5 %, borders repeated."""
    drawn = 2 * torch.rand(len(x), 3, generator=generator) - 1
    zoom, zero = 1 + ZOOM * drawn[:, 0], torch.zeros(len(x))
    shift = 2 * SHIFT * drawn[:, 1:]  # the grid runs from −1 to 1
    rows = [torch.stack(row, 1) for row in ((zoom, zero, shift[:, 0]), (zero, zoom, shift[:, 1]))]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _wrong(logits: Tensor, *, real: bool) -> Tensor:
    """Return the mean −log φ(±D) of logits (B, 1) that should say real, or not."""
    return F.softplus(-logits.float() if real else logits.float()).mean()
