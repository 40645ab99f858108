"""Mean over a dim that is split: the mean of the rank's slice, as a share of the whole mean. The result is Partial.

    mean(x, dim)     ->  mean(slice, dim) / ranks
    mse_loss(x, y)   ->  mse_loss(slice of x, slice of y) / ranks

All slices are of one length, so that the shares add up to the mean: a norm over all heads, a pooled sequence, a loss.
Where they end in padding, that is zero, and the number of ranks is what the whole is in slices: 97 / 25.
"""

from __future__ import annotations

from math import prod

import torch
from torch import fx

from fxpar.axes.factor import Factor
from fxpar.axes.runs import part_size
from fxpar.axes.schema import op_name
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
    "aten.hinge_embedding_loss.default",
    "aten.margin_ranking_loss.default",
    "aten.poisson_nll_loss.default",
    "aten.cosine_embedding_loss.default",
    "aten.triplet_margin_loss.default",
)


def _output(_node: fx.Node, _role: str) -> Placement:
    return PARTIAL


def _rewrite(site: Site) -> fx.Node | None:
    over = {m: s for m, s in site.splits.items() if site.links.roles[s.role].meaning == "mean"}
    parts = prod(_parts(split.factor, site.sizes[m]) for m, split in over.items())
    if parts == 1:
        return None
    node, builder, operands = site.node, site.builder, iter(site.operands)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: next(operands))
    mine = builder.call(node.target, args, kwargs, node)
    share = builder.call(torch.ops.aten.div.Tensor, (mine, parts), {}, node)
    share.meta["shares"] = tuple(over)
    return share


def _parts(factor: Factor, ranks: int) -> float:
    """How many parts make the whole, padding left out: what a rank has counts as much as the whole has of it."""
    return factor.size / part_size(factor, ranks) if factor.size % ranks else ranks


def _uneven(node: fx.Node, _role: str) -> bool:
    return op_name(node) in MEANS


LOWERING = Lowering("mean", (*MEANS, *LOSSES), _output, _rewrite, _uneven)
