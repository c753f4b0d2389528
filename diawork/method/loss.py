"""Feature-amplified NT-Xent and the shift classifier (Eqs. 6-9).

Anchors are the ordinary views; the dissolved ones stand only in denominators. Everything is
computed as log-sum-exp, anchor block by anchor block, so that memory grows with the batch and not
with its square.
"""

from __future__ import annotations

from typing import NamedTuple

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


def view_key(image: Tensor, shift: Tensor) -> Tensor:
    """Return one integer a row that two views share when they come from the same image and shift (R,)."""
    return image * (int(shift.max()) + 1) + shift


def negatives_mask(rows: Tensor, key: Tensor, branch: Tensor, *, mask: str) -> Tensor:
    """Return (len(rows), R): which views stand in each anchor's denominator.

    ``naive``: all others (Eq. 6). ``shifted_removed``: without the pair of an ordinary view and the
    dissolved view of the same image and shift.
    """
    others = rows[:, None] != torch.arange(len(key), device=key.device)[None]
    if mask == "naive":
        return others
    same = key[rows][:, None] == key[None]
    one_dissolved = (branch[rows] == DISSOLVED)[:, None] != (branch == DISSOLVED)[None]
    return others & ~(same & one_dissolved)


def positives(key: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """Return anchor rows (2N,) and the row of each one's positive: same image and shift, other branch."""
    rows = [torch.nonzero(branch == b)[:, 0] for b in (0, 1)]
    rows = [r[key[r].argsort()] for r in rows]
    if len(rows[0]) != len(rows[1]) or not torch.equal(key[rows[0]], key[rows[1]]):
        raise UsageError("every image and shift needs exactly one view in each ordinary branch.")
    return torch.cat(rows), torch.cat(rows[::-1])


def pair_roles(image: Tensor, shift: Tensor, branch: Tensor, *, mask: str) -> Tensor:
    """Return the target similarity matrix (R, R) of Fig. 3: 0 excluded, 1 positive, 2 negative.

    A row is an anchor; dissolved views are never anchors, so their rows are excluded throughout.
    """
    key = view_key(image, shift)
    rows = torch.arange(len(key))
    roles = 2 * negatives_mask(rows, key, branch, mask=mask).long()
    roles[positives(key, branch)] = 1
    roles[branch == DISSOLVED] = 0
    return roles


def _block_loss(z: Tensor, rows: Tensor, positive: Tensor, key: Tensor, branch: Tensor, cfg: LossConfig) -> Tensor:
    """Sum ℓ_ij over a block of anchors: log-sum-exp over the denominator minus the positive's logit."""
    logits = z[rows] @ z.T / cfg.temperature
    allowed = negatives_mask(rows, key, branch, mask=cfg.mask)
    own = logits.gather(1, positive[:, None])[:, 0]
    return (logits.masked_fill(~allowed, -torch.inf).logsumexp(1) - own).sum()


def nt_xent(
    z: Tensor, image: Tensor, shift: Tensor, branch: Tensor, *, cfg: LossConfig | None = None, block: int = 1024
) -> Tensor:
    """Return the feature-amplified NT-Xent of z (R, D), not necessarily normalised (Eqs. 6-7).

    The sum over the 2N ordered positive pairs is divided by 2N (``mean``), by the number of views
    (``repo``: 3N with a dissolved branch, 2N without, as in CSI) or by both (``paper``).
    """
    cfg = cfg or LossConfig()
    z = F.normalize(z.float() if z.dtype in (torch.bfloat16, torch.float16) else z, dim=1, eps=1e-8)
    key = view_key(image, shift).to(z.device)
    branch = branch.to(z.device)
    anchors, positive = positives(key, branch)
    if len(anchors) <= block:
        total = _block_loss(z, anchors, positive, key, branch, cfg)
    else:
        parts = zip(anchors.split(block), positive.split(block), strict=True)
        blocks = [checkpoint(_block_loss, z, a, p, key, branch, cfg, use_reentrant=False) for a, p in parts]
        total = torch.stack(blocks).sum()
    divisor = {"mean": len(anchors), "repo": len(z), "paper": len(z) * len(anchors)}[cfg.constant]
    return total / divisor


def shift_classes(shift: Tensor, branch: Tensor, cfg: LossConfig) -> Tensor:
    """Return each view's class (R,): its shift or, with ``shift_dissolved``, K more for a dissolved view."""
    return shift + K * (branch == DISSOLVED) if cfg.classifier == "shift_dissolved" else shift


def shift_cross_entropy(shift_logits: Tensor, classes: Tensor) -> Tensor:
    """Return the mean cross-entropy of the shift classifier over all views (Eq. 8)."""
    return F.cross_entropy(shift_logits.float(), classes.to(shift_logits.device))


def dia_loss(
    z: Tensor, shift_logits: Tensor, *, image: Tensor, shift: Tensor, branch: Tensor, cfg: LossConfig | None = None
) -> LossParts:
    """Return L = L_con + γ·L_cls (Eq. 9); without dissolved rows it is CSI's loss."""
    cfg = cfg or LossConfig()
    contrastive = nt_xent(z, image, shift, branch, cfg=cfg)
    classifier = shift_cross_entropy(shift_logits, shift_classes(shift, branch, cfg))
    return LossParts(cfg.contrastive_weight * contrastive + cfg.shift_weight * classifier, contrastive, classifier)
