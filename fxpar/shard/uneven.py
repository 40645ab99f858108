"""Which ops may be split on a factor that does not divide; see `fxpar.shard.padding` for what happens to them."""

from __future__ import annotations

import torch
from torch import fx

from fxpar.axes.links import FREE, SUM, Links
from fxpar.shard.lower import LOWERINGS
from fxpar.shard.split import Split


def allows(node: fx.Node, links: Links, split: Split) -> bool:
    """Whether padding at the end of the last ranks' parts can be kept from everything else."""
    meaning = links.roles[split.role].meaning
    if meaning == SUM:
        return links.neutral
    if meaning != FREE:
        return meaning in LOWERINGS and LOWERINGS[meaning].uneven(node, split.role)
    if _indexes(node, links, split):
        return False
    return links.kind == "view" or not broadcasts(links, split) or is_multilinear(links)


def broadcasts(links: Links, split: Split) -> bool:
    """Whether the gradient of an operand is summed over the role, because the operand does not have it."""
    having = {index for index, _, _ in links.sites(split.role)}
    return any(n.meta.get("grad") and i not in having for i, n in enumerate(links.operands))


def is_multilinear(links: Links) -> bool:
    """Whether a node is linear in each operand: finite operands give finite results, a zero gradient gives zeros."""
    contracts = any(role.meaning == SUM for role in links.roles.values())
    return links.linear or bool(links.terms) or (contracts and links.neutral)


def _indexes(node: fx.Node, links: Links, split: Split) -> bool:
    """Whether integers in the padding may be taken for positions in another operand."""
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    values = [links.operands[index].meta["val"] for index, _, _ in links.sites(split.role)]
    numbers = [
        v for v in values if not v.is_floating_point() and not v.is_complex() and v.dtype != torch.bool
    ]
    return bool(numbers) and len(links.operands) > 1 and not pointwise
