"""Lowerings: how an op runs when it is split on a role that needs more than local work. One file each."""

from fxpar.shard.lower.base import Lowering, Site

LOWERINGS: dict[str, Lowering] = {}
BY_OP: dict[str, Lowering] = {}
