"""Softmax, its logarithm and logsumexp with the dim split that they run along: rows are reduced, never gathered.

log_softmax(x, -1)   ->  fxpar.log_softmax(slice, 2, group)          the same slice of the result
logsumexp(x, [-1])   ->  fxpar.logsumexp(slice, [2], false, 2, group)   the same on every rank
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxpar.axes.schema import op_name
from fxpar.mesh import GroupName, joined
from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.placement import INVARIANT, Placement

LOGSUMEXP = "aten.logsumexp.default"
SOFTMAX = ("aten.softmax.int", "aten._softmax.default")
LOG_SOFTMAX = ("aten.log_softmax.int", "aten._log_softmax.default")


def _output(_node: fx.Node, _role: str) -> Placement:
    return INVARIANT


def _rewrite(site: Site) -> fx.Node | None:
    roles = [role for role, kind in site.links.roles.items() if kind.meaning == "softmax"]
    split = [role for role in roles if site.split_over(role)]
    if not split:
        return None
    rank = site.node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    place: list[Any] = [_dim_of(site, split[0]), GroupName(joined(site.split_over(*split)))]
    whole = site.whole_length(split[0])
    place += [] if whole is None else [whole]
    operand = _cast(site)
    if op_name(site.node) == LOGSUMEXP:
        dims = [dim % rank for dim in site.argument("dim")]
        arguments = (operand, dims, site.argument("keepdim"), *place)
        return site.builder.call(torch.ops.fxpar.logsumexp.default, arguments, {}, site.node)
    target = torch.ops.fxpar.softmax if op_name(site.node) in SOFTMAX else torch.ops.fxpar.log_softmax
    return site.builder.call(target.default, (operand, *place), {}, site.node)


def _dim_of(site: Site, role: str) -> int:
    return next(dim for _, dim, _ in site.links.sites(role))


def _cast(site: Site) -> fx.Node:
    """The operand in the dtype in which the op computes."""
    (operand,), dtype = site.operands, site.node.meta["val"].dtype
    if operand.meta["val"].dtype == dtype:
        return operand
    value = operand.meta["val"].to(dtype)
    return site.builder.call(torch.ops.aten.to.dtype, (operand, dtype), {}, site.node, value)


def _uneven(node: fx.Node, _role: str) -> bool:
    return op_name(node) != LOGSUMEXP or len(node.args[1]) == 1  # type: ignore[arg-type]


LOWERING = Lowering(
    "softmax",
    (*SOFTMAX, *LOG_SOFTMAX, LOGSUMEXP),
    _output,
    _rewrite,
    _uneven,
    leading=lambda role: role.startswith("d"),
)
