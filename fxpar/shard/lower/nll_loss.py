"""Negative log-likelihood with its classes split, its tokens split, or both: each rank finds its share of the loss.

    nll_loss(x, target, mean)   ->  fxpar.nll_loss(slice of x, target, sum, group) / count of all targets

Source: Shoeybi et al., Megatron-LM (2019), section 3.
"""

from __future__ import annotations

import torch
from torch import fx

from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.lower.cross_entropy import REDUCTIONS, count_of
from fxpar.shard.placement import PARTIAL, Placement


def _output(_node: fx.Node, _role: str) -> Placement:
    return PARTIAL


def _rewrite(site: Site) -> fx.Node | None:
    tokens, reduction = site.split_over("n", "d"), REDUCTIONS[site.argument("reduction")]
    group = site.group_over("c") if site.split_over("c") else None
    if not group and not (tokens and reduction == "mean"):
        return None
    ignore = site.argument("ignore_index")
    count = count_of(site, ignore) if reduction == "mean" else None
    weight = site.operands[2] if len(site.operands) > 2 else None
    classes = site.whole_length("c") if group else None
    kept = "none" if reduction == "none" else "sum"
    args = (*site.operands[:2], weight, kept, ignore, group, count, *([] if classes is None else [classes]))
    return site.builder.call(torch.ops.fxpar.nll_loss.default, args, {}, site.node)


def _uneven(_node: fx.Node, role: str) -> bool:
    return role == "c"


LOWERING = Lowering("nll_loss", ("aten.nll_loss_nd.default",), _output, _rewrite, _uneven, leading="c".__eq__)
