"""Embedding with its rows split: each rank looks up the ids that it holds, and the result is Partial.

    embedding(weight, ids)  ->  fxpar.embedding(ids, rows of the rank, group)

A gradient that is scaled by how often an id occurs, or that is sparse, needs all ids on every rank: refused.

Source: Shoeybi et al., Megatron-LM (2019), section 3.
"""

from __future__ import annotations

import torch
from torch import fx

from fxpar.errors import ShardError
from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.placement import PARTIAL, Placement


def _output(_node: fx.Node, _role: str) -> Placement:
    return PARTIAL


def _rewrite(site: Site) -> fx.Node | None:
    if site.splits and (site.argument("scale_grad_by_freq") or site.argument("sparse")):
        option = "sparse" if site.argument("sparse") else "scale_grad_by_freq"
        raise ShardError(
            f"an embedding with `{option}=True` cannot be split over {', '.join(site.splits)}",
            details=[f"{site.node.meta.get('module') or 'the model'} ({site.node.meta.get('source')})"],
        )
    if not site.split_over("v"):
        return None
    weight, ids = site.operands
    padding = int(site.argument("padding_idx"))
    rows = site.whole_length("v")
    args = (ids, weight, site.group_over("v"), padding, *([] if rows is None else [rows]))
    return site.builder.call(torch.ops.fxpar.embedding.default, args, {}, site.node)


def _uneven(_node: fx.Node, _role: str) -> bool:
    return True


LOWERING = Lowering("embedding", ("aten.embedding.default",), _output, _rewrite, _uneven, leading="v".__eq__)
