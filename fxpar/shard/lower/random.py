"""Random ops: the numbers follow the placement, equal where the value is the same, different where it is split.

    dropout(x, 0.1, True)    ->  fxpar.dropout(x, 0.1, True, seed, number, coordinates)
    randn([4, 8])            ->  seeded_call(randn, seed, number, [], [4, 8])

No op draws from torch's own generators: their state may differ between the ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxpar.axes.schema import arguments, op_name
from fxpar.runtime.random import seeded_call
from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.placement import PARTIAL, Placement

DROPOUT = "aten.dropout.default"


def is_random(node: fx.Node) -> bool:
    """Whether an op may draw random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def draws(node: fx.Node) -> bool:
    """Whether a call does draw random numbers: attention and recurrent layers without dropout do not."""
    given = arguments(node)
    return is_random(node) and given.get("dropout_p") != 0 and given.get("dropout") != 0


def _output(_node: fx.Node, _role: str) -> Placement:
    return PARTIAL


def _rewrite(site: Site) -> fx.Node | None:
    if op_name(site.node) != DROPOUT:
        remaining = iter(site.operands)
        args, options = fx.node.map_arg((site.node.args, site.node.kwargs), lambda _: next(remaining))
        return seeded(site, args, options)
    if not site.argument("train") or site.argument("p") == 0:
        return site.operands[0]
    dropout = torch.ops.fxpar.dropout.default
    return site.builder.draw(site, dropout, (site.operands[0], site.argument("p"), True))


def seeded(site: Site, args: tuple[Any, ...], options: dict[str, Any]) -> fx.Node:
    """The op itself, drawing from the stream of its placement."""
    return site.builder.draw(site, seeded_call, (site.node.target,), args, options)


LOWERING = Lowering("random", (DROPOUT,), _output, _rewrite)
