"""Conversions: the collective that turns one placement into another on the way from producer to consumer.

from  to   forward         backward            from  to   forward          backward
I     R    nothing         all-reduce          I     S    slice            all-gather
P     I    all-reduce      nothing             R     S    slice            zero-pad
P     R    all-reduce      all-reduce          S     S'   all-to-all       all-to-all
S     R    all-gather      reduce-scatter      I     P    keep on one rank nothing
S     I    all-gather      slice               P     S    reduce-scatter   all-gather
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import fxpar.runtime  # noqa: F401 - registers the operators
from fxpar.axes.links import Dims
from fxpar.mesh import GroupName
from fxpar.shard.placement import INVARIANT, PARTIAL, REPLICATE, Placement, Shard, cuts_of, layout

ops = torch.ops.fxpar


@dataclass(frozen=True)
class Step:
    """One conversion over one mesh dim: the operator and its arguments after the tensor."""

    mesh_dim: str
    source: Placement
    target: Placement
    operator: Any
    arguments: tuple[Any, ...]


def normal(placement: Placement, grad: bool) -> Placement:
    """Without a gradient, Replicate is the same as Invariant."""
    return INVARIANT if placement is REPLICATE and not grad else placement


def order(changes: Mapping[str, tuple[Placement, Placement]]) -> list[str]:
    """The order in which mesh dims are converted: what makes the value smaller first."""

    def key(mesh_dim: str) -> int:
        source, target = changes[mesh_dim]
        return 2 if isinstance(source, Shard) else 0 if isinstance(target, Shard) else 1

    return sorted(changes, key=key)


def step(
    dims: Dims,
    held: Mapping[str, Placement],
    mesh_dim: str,
    target: Placement,
    sizes: Mapping[str, int],
    grad: bool,
) -> Step | None:
    """The conversion of a value from its placement over one mesh dim to another; None if nothing is to be done."""
    source = normal(held.get(mesh_dim, INVARIANT), grad)
    target = normal(target, grad)
    if source == target or (source is REPLICATE and target is INVARIANT and not grad):
        return None
    group = GroupName(mesh_dim)

    def spread(shard: Shard) -> tuple[int, list[int]]:
        after = {**held, mesh_dim: shard}
        return shard.dim, layout(dims[shard.dim], shard.factor, cuts_of(after, shard.dim, sizes))

    operator: Any
    arguments: tuple[Any, ...]
    if isinstance(source, Shard) and isinstance(target, Shard):
        operator, arguments = ops.all_to_all.default, (*spread(source), *spread(target), group)
    elif isinstance(source, Shard):
        backward = "reduce_scatter" if target is REPLICATE else "slice"
        operator, arguments = ops.all_gather.default, (*spread(source), group, backward)
    elif isinstance(target, Shard) and source is PARTIAL:
        operator, arguments = ops.reduce_scatter.default, (*spread(target), group)
    elif isinstance(target, Shard):
        backward = "pad" if source is REPLICATE else "all_gather"
        operator, arguments = ops.slice.default, (*spread(target), group, backward)
    else:
        operator, arguments = _PLAIN[source, target], (group,)
    return Step(mesh_dim, source, target, operator, arguments)


_PLAIN: dict[tuple[Placement, Placement], Any] = {
    (INVARIANT, REPLICATE): ops.sum_gradient.default,
    (PARTIAL, INVARIANT): ops.all_reduce.default,
    (PARTIAL, REPLICATE): ops.all_reduce_both.default,
    (INVARIANT, PARTIAL): ops.keep_on_first.default,
}
