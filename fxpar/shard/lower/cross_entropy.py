"""Cross entropy with its classes split, its tokens split, or both.

    classes   the logits stay where they are; the maximum, the sum of exponentials and the target's logit are reduced
    tokens    the local sum is divided by the count of all targets that count, and the result is Partial: masks that
              differ between the ranks stay exact

Source: Shoeybi et al., Megatron-LM (2019), section 3.
"""

from __future__ import annotations

import torch
from torch import fx

from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.placement import INVARIANT, PARTIAL, Placement

REDUCTIONS = ("none", "mean", "sum")


def _output(_node: fx.Node, role: str) -> Placement:
    return INVARIANT if role == "c" else PARTIAL


def _rewrite(site: Site) -> fx.Node | None:
    tokens = site.split_over("n", "d")
    group = site.group_over("c") if site.split_over("c") else None
    if not group and not tokens:
        return None
    given = {name: site.argument(name) for name in ("reduction", "ignore_index", "label_smoothing")}
    reduction = REDUCTIONS[given["reduction"]]
    weight = site.operands[2] if len(site.operands) > 2 else None
    count = count_of(site, given["ignore_index"]) if tokens and reduction == "mean" else None
    settings = (weight, reduction, given["ignore_index"], float(given["label_smoothing"]))
    classes = site.whole_length("c") if group else None
    args = (*site.operands[:2], *settings, group, count, *([] if classes is None else [classes]))
    return site.builder.call(torch.ops.fxpar.cross_entropy.default, args, {}, site.node)


def count_of(site: Site, ignore_index: int) -> fx.Node:
    """The number (or weight) of all targets that count, from the targets as they are before any split."""
    target, weight = site.argument("target"), site.argument("weight")
    whole = site.builder.whole(target, site.node)
    weights = site.builder.whole(weight, site.node) if weight is not None else None
    like = weights.meta["val"] if weights is not None else whole.meta["val"]
    return site.builder.call(
        torch.ops.fxpar.count_targets.default,
        (whole, weights, ignore_index, None, None),
        {},
        site.node,
        like.new_empty(()),
    )


def _uneven(_node: fx.Node, role: str) -> bool:
    return role == "c"


LOWERING = Lowering(
    "cross_entropy",
    ("aten.cross_entropy_loss.default",),
    _output,
    _rewrite,
    _uneven,
    leading="c".__eq__,
)
