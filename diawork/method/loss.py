"""Feature-amplified NT-Xent and the shift classifier (Eqs. 6-9).

Anchors are the ordinary views; the dissolved ones stand only in denominators::

    views = builder(x)
    loss = dia_loss(encoder(views.images), views).total
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diawork.base.config import K, LossConfig
from diawork.base.errors import UsageError

DISSOLVED = 2  # the branch that is a negative only


class LossParts(NamedTuple):
    """The loss and what it is made of."""

    total: Tensor
    contrastive: Tensor
    shift: Tensor


def dia_loss(embedding: Any, views: Any, cfg: LossConfig | None = None) -> LossParts:
    """Return the loss L = L_con + γ·L_cls (Eq. 9); without dissolved views it is CSI's.

    ``embedding`` holds z (R, D) and shift_logits (R, K or 2K) of R views, ``views`` what they are: image, shift and
    branch (R,).
    """
    cfg = cfg or LossConfig()
    contrastive = nt_xent(embedding.z, views.image, views.shift, views.branch, cfg=cfg)
    classifier = shift_cross_entropy(embedding.shift_logits, views.shift, views.branch, cfg=cfg)
    return LossParts(cfg.contrastive_weight * contrastive + cfg.shift_weight * classifier, contrastive, classifier)


def nt_xent(
    z: Tensor, image: Tensor, shift: Tensor, branch: Tensor, *, cfg: LossConfig | None = None, block: int = 1024
) -> Tensor:
    """Feature-amplified NT-Xent (Eqs. 6-7) of z (R, D), not necessarily normalised.

        ℓ_ij  = −log[ exp(⟨z_i, z_j⟩/τ) / Σ_k exp(⟨z_i, z_k⟩/τ) ],  k in i's denominator    (Eq. 6)
        L_con = Σ ℓ_ij / constant,  over positive pairs (i, j)                              (Eq. 7)

    There are 2N ordered positive pairs; the constant is 2N (``mean``), the number of views (``repo``: 3N with a
    dissolved branch, 2N without, as in CSI) or their product (``paper``). Anchors are taken ``block`` by block, so
    that memory grows with the batch and not with its square.
    """
    cfg = cfg or LossConfig()
    z = F.normalize(z.float() if z.dtype in (torch.bfloat16, torch.float16) else z, dim=1, eps=1e-8)
    view, branch = _view(image, shift).to(z.device), branch.to(z.device)
    anchors, positive = positive_pairs(view, branch)

    def summed(z: Tensor, i: Tensor, j: Tensor) -> Tensor:
        logits = z[i] @ z.T / cfg.temperature
        left_out = ~denominators(i, view, branch, mask=cfg.mask)
        return (logits.masked_fill(left_out, -torch.inf).logsumexp(1) - logits.gather(1, j[:, None])[:, 0]).sum()

    if len(anchors) <= block:
        total = summed(z, anchors, positive)
    else:
        pairs = zip(anchors.split(block), positive.split(block), strict=True)
        total = torch.stack([checkpoint(summed, z, i, j, use_reentrant=False) for i, j in pairs]).sum()
    return total / {"mean": len(anchors), "repo": len(z), "paper": len(z) * len(anchors)}[cfg.constant]


def shift_cross_entropy(shift_logits: Tensor, shift: Tensor, branch: Tensor, *, cfg: LossConfig) -> Tensor:
    """Mean cross-entropy L_cls of the shift classifier over all views (Eq. 8).

    The class of a view is its shift or, with ``shift_dissolved``, K more for a dissolved view.
    """
    classes = shift + K * (branch == DISSOLVED) if cfg.classifier == "shift_dissolved" else shift
    return F.cross_entropy(shift_logits.float(), classes.to(shift_logits.device))


def denominators(anchors: Tensor, view: Tensor, branch: Tensor, *, mask: str) -> Tensor:
    """Return which views stand in each anchor's denominator (Eq. 6): (len(anchors), R).

    ``naive``: all others. ``shifted_removed``: without the pair of an ordinary view and the dissolved view of the
    same image and shift.
    """
    others = anchors[:, None] != torch.arange(len(view), device=view.device)[None]
    if mask == "naive":
        return others
    same = view[anchors][:, None] == view[None]
    one_dissolved = (branch[anchors] == DISSOLVED)[:, None] != (branch == DISSOLVED)[None]
    return others & ~(same & one_dissolved)


def positive_pairs(view: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """Return anchor rows (2N,) and the row of each one's positive: same image and shift, other ordinary branch."""
    rows = [torch.nonzero(branch == b)[:, 0] for b in (0, 1)]
    rows = [r[view[r].argsort()] for r in rows]
    if len(rows[0]) != len(rows[1]) or not torch.equal(view[rows[0]], view[rows[1]]):
        raise UsageError("every image and shift needs exactly one view in each ordinary branch.")
    return torch.cat(rows), torch.cat(rows[::-1])


def _view(image: Tensor, shift: Tensor) -> Tensor:
    """Return one integer a row (R,), the same for views of the same image and shift."""
    return image * (int(shift.max()) + 1) + shift


def pair_roles(image: Tensor, shift: Tensor, branch: Tensor, *, mask: str = "naive") -> Tensor:
    """Return the target similarity matrix (R, R) of Fig. 3: 0 excluded, 1 positive, 2 negative.

    It is made from the masks of the loss. A row is an anchor; dissolved views are none, so their rows are excluded.
    """
    view = _view(image, shift)
    roles = 2 * denominators(torch.arange(len(view)), view, branch, mask=mask).long()
    roles[positive_pairs(view, branch)] = 1
    roles[branch == DISSOLVED] = 0
    return roles
