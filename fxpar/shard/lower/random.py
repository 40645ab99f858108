"""Random ops: the numbers follow the placement, equal where the value is the same, different where it is split."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxpar.axes.schema import op_name
from fxpar.runtime.random import seeded_call
from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.placement import PARTIAL, Placement

#: Ops that draw as many numbers as their output has elements.
LIKE = ("aten.bernoulli.default", "aten.rand_like.default", "aten.randn_like.default")


def _output(_node: fx.Node, _role: str) -> Placement:
    return PARTIAL


def _rewrite(site: Site) -> fx.Node | None:
    if op_name(site.node) in LIKE:
        options = {name: value for name, value in site.node.kwargs.items() if not isinstance(value, fx.Node)}
        return seeded(site, (site.operands[0], *site.node.args[1:]), options)
    if not site.argument("train") or site.argument("p") == 0:
        return site.operands[0]
    builder = site.builder
    stream = (builder.seed(), builder.number(), site.coordinates)
    return builder.call(
        torch.ops.fxpar.dropout.default, (site.operands[0], site.argument("p"), True, *stream), {}, site.node
    )


def seeded(site: Site, args: tuple[Any, ...], options: dict[str, Any]) -> fx.Node:
    """The op itself, drawing from the stream of its placement."""
    builder = site.builder
    stream = (builder.seed(), builder.number(), site.coordinates)
    return builder.call(seeded_call, (site.node.target, *stream, *args), options, site.node)


LOWERING = Lowering("random", ("aten.dropout.default", *LIKE), _output, _rewrite)
