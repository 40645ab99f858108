"""Lowerings: how an op runs when it is split on a role that needs more than local work. One file each."""

from fxpar.shard.lower import attention, cross_entropy, embedding, random
from fxpar.shard.lower.base import Lowering

_ALL: tuple[Lowering, ...] = (embedding.LOWERING, cross_entropy.LOWERING, attention.LOWERING, random.LOWERING)

#: By the name that rules of ops give in `lower:`.
LOWERINGS: dict[str, Lowering] = {lowering.name: lowering for lowering in _ALL}
#: By the op that is rewritten.
BY_OP: dict[str, Lowering] = {op: lowering for lowering in _ALL for op in lowering.ops}
