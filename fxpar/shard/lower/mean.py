"""Mean over a dim that is split: the mean of the rank's slice, as a share of the whole mean. The result is Partial.

    mean(x, dim)  ->  mean(slice, dim) / ranks

All slices are of one length, so that the shares add up to the mean: a norm over all heads, a pooled sequence, a loss.
"""

from __future__ import annotations

from math import prod

import torch
from torch import fx

from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.placement import PARTIAL, Placement


def _output(_node: fx.Node, _role: str) -> Placement:
    return PARTIAL


def _rewrite(site: Site) -> fx.Node | None:
    parts = prod(
        site.sizes[m] for m, split in site.splits.items() if site.links.roles[split.role].meaning == "mean"
    )
    if parts == 1:
        return None
    node, builder = site.node, site.builder
    mine = builder.call(node.target, (site.operands[0], *node.args[1:]), dict(node.kwargs), node)
    return builder.call(torch.ops.aten.div.Tensor, (mine, parts), {}, node)


LOWERING = Lowering("mean", ("aten.mean.dim", "aten.mean.default"), _output, _rewrite)
