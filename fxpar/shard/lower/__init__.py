"""Lowerings: how an op runs when it is split on a role that needs more than local work. One file each."""

from torch import fx

from fxpar.axes.schema import op_name
from fxpar.shard.lower import (
    attention,
    cross_entropy,
    embedding,
    gather,
    mean,
    nll_loss,
    one_hot,
    random,
    softmax,
)
from fxpar.shard.lower.base import Lowering

_ALL: tuple[Lowering, ...] = (
    embedding.LOWERING,
    cross_entropy.LOWERING,
    attention.LOWERING,
    mean.LOWERING,
    random.LOWERING,
    softmax.LOWERING,
    gather.LOWERING,
    nll_loss.LOWERING,
    one_hot.LOWERING,
)

#: By the name that rules of ops give in `lower:`.
LOWERINGS: dict[str, Lowering] = {lowering.name: lowering for lowering in _ALL}
_BY_OP = {op: lowering for lowering in _ALL for op in lowering.ops}


def lowering_of(node: fx.Node) -> Lowering | None:
    """The lowering that rewrites a node, if there is one; every op that draws random numbers has one."""
    return _BY_OP.get(op_name(node)) or (random.LOWERING if random.draws(node) else None)
