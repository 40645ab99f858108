"""One-hot vectors with their classes split: each rank makes its slice of them, and no rank the whole.

one_hot(ids, 50304)   ->  fxpar.one_hot(ids, 25152, group)
"""

from __future__ import annotations

import torch
from torch import fx

from fxpar.axes.runs import cut_size
from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.placement import INVARIANT, Placement

#: The role of the dim that is made.
CLASSES = "classes"


def _output(_node: fx.Node, _role: str) -> Placement:
    return INVARIANT


def _rewrite(site: Site) -> fx.Node | None:
    over = site.split_over(CLASSES)
    if not over:
        return None
    length = cut_size(site.links.first(CLASSES), {site.splits[m].factor: site.sizes[m] for m in over})
    whole = site.whole_length(CLASSES)
    args = (*site.operands, length, site.group_over(CLASSES), *([] if whole is None else [whole]))
    return site.builder.call(torch.ops.fxpar.one_hot.default, args, {}, site.node)


def _uneven(_node: fx.Node, _role: str) -> bool:
    return True


LOWERING = Lowering("one_hot", ("aten.one_hot.default",), _output, _rewrite, _uneven, leading=CLASSES.__eq__)
