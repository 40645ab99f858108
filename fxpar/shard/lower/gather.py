"""Gather along a dim that is split: each rank finds what it holds, and the result is Partial.

    gather(x, -1, index)   ->  fxpar.gather(slice of x, 2, index, group)

The positions are whole on every rank of the group.
"""

from __future__ import annotations

import torch
from torch import fx

from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.placement import PARTIAL, Placement

#: The role of the dim along which is gathered.
ROWS = "rows"


def _output(_node: fx.Node, _role: str) -> Placement:
    return PARTIAL


def _rewrite(site: Site) -> fx.Node | None:
    if not site.split_over(ROWS):
        return None
    x, index = site.operands
    dim = site.argument("dim") % x.meta["val"].dim()
    whole = site.whole_length(ROWS)
    arguments = (x, dim, index, site.group_over(ROWS), *([] if whole is None else [whole]))
    return site.builder.call(torch.ops.fxpar.gather.default, arguments, {}, site.node)


def _uneven(_node: fx.Node, _role: str) -> bool:
    return True


LOWERING = Lowering(
    "gather",
    ("aten.gather.default", "aten.take_along_dim.default"),
    _output,
    _rewrite,
    _uneven,
    leading=ROWS.__eq__,
)
