"""What SimSID recalls: an image in patches, a memory for each place, and each patch told from its neighbours.

A memory holds N items M of a place and recalls a token z as ẑ = Σₖ G(⟨z, Mₖ⟩) Mₖ, where G keeps the k largest
weights ("Gumbel shrinkage": the gradient reaches all of them).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diawork.base.rivals import SimsidConfig

NARROW = 4  # channels of the deepest features over those of a token
_TINY = 1e-8  # keeps the sum of no weights finite


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

    def __init__(self, dim: int, cfg: SimsidConfig) -> None:
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
            self._append(z.detach().float())
        with torch.autocast(x.device.type, enabled=False):  # in low precision many items would be equally near
            weights = shrunk(torch.einsum("bpd,pnd->bpn", z.float(), items), self.cfg.active, self.cfg.shrinkage)
            return torch.einsum("bpn,pnd->bpd", weights, items).flatten(0, 1).view_as(x)

    @torch.no_grad()
    def _append(self, z: Tensor) -> None:
        """Put tokens (B, P, D) in front of the queue; the oldest fall out."""
        newest = z.transpose(0, 1) if self.cfg.space_aware else z.flatten(0, 1)[None]
        self.items.copy_(torch.cat([newest, self.items], 1)[:, : self.cfg.items])


class InPainting(nn.Module):
    """Deepest features (B·P, C, h, w) → the same, each patch told from what its neighbours recall.

    The query is the patch's own feature; keys and values are the recalled features of its up to eight neighbours.
    """

    away: Tensor  # (P, P), True where two places are no neighbours

    def __init__(self, channels: int, side: int, cfg: SimsidConfig) -> None:
        super().__init__()
        self.cfg, narrow = cfg, channels // NARROW
        dim = narrow * side**2
        self.reduce, self.expand = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)
        self.memory = Memory(dim, cfg)
        if cfg.inpaint == "transformer":
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
        if self.cfg.inpaint == "transformer":
            recalled = self._attended(self._tokens(small), self._tokens(recalled)).flatten(0, 1).view_as(small)
        elif self.cfg.inpaint == "convolution":
            recalled = recalled + cut(self.mix(joined(recalled, self.cfg.patches)), self.cfg.patches)
        return self.expand(recalled)

    def _tokens(self, x: Tensor) -> Tensor:
        return x.flatten(1).unflatten(0, (-1, self.cfg.patches**2))

    def _attended(self, tokens: Tensor, recalled: Tensor) -> Tensor:
        """Return recalled tokens (B, P, D) after one transformer layer over their neighbours."""
        around, _ = self.attention(tokens, recalled, recalled, attn_mask=self.away, need_weights=False)
        y = self.norms[0](recalled + around)
        return self.norms[1](y + self.feed(y))


def neighbours(patches: int) -> Tensor:
    """Return which places (P, P) of a grid touch one another, a place and itself not."""
    places = torch.cartesian_prod(torch.arange(patches), torch.arange(patches))
    return (places[:, None] - places).abs().amax(2) == 1
