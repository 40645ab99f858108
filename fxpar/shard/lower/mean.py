"""Mean over a dim that is split: the mean of the rank's slice, as a share of the whole mean. The result is Partial.

    mean(x, dim)     ->  mean(slice, dim) / ranks
    mse_loss(x, y)   ->  mse_loss(slice of x, slice of y) / ranks

All slices are of one length, so that the shares add up to the mean: a norm over all heads, a pooled sequence, a loss.
"""

from __future__ import annotations

from math import prod

import torch
from torch import fx

from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.placement import PARTIAL, Placement

MEANS = ("aten.mean.dim", "aten.mean.default")
#: Losses that are the mean over all elements, whatever the elements are.
LOSSES = (
    "aten.mse_loss.default",
    "aten.l1_loss.default",
    "aten.smooth_l1_loss.default",
    "aten.huber_loss.default",
    "aten.kl_div.default",
    "aten.soft_margin_loss.default",
    "aten.binary_cross_entropy.default",
    "aten.binary_cross_entropy_with_logits.default",
)


def _output(_node: fx.Node, _role: str) -> Placement:
    return PARTIAL


def _rewrite(site: Site) -> fx.Node | None:
    parts = prod(
        site.sizes[m] for m, split in site.splits.items() if site.links.roles[split.role].meaning == "mean"
    )
    if parts == 1:
        return None
    node, builder, operands = site.node, site.builder, iter(site.operands)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: next(operands))
    mine = builder.call(node.target, args, kwargs, node)
    return builder.call(torch.ops.aten.div.Tensor, (mine, parts), {}, node)


LOWERING = Lowering("mean", (*MEANS, *LOSSES), _output, _rewrite)
