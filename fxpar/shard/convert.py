"""Conversions: the collective that turns one placement into another on the way from producer to consumer.

from  to   forward         backward            from  to   forward          backward
I     R    nothing         all-reduce          I     S    slice            all-gather
P     I    all-reduce      nothing             R     S    slice            zero-pad
P     R    all-reduce      all-reduce          S     S'   all-to-all       all-to-all
S     R    all-gather      reduce-scatter      I     P    keep on one rank nothing
S     I    all-gather      slice               P     S    reduce-scatter   all-gather
R     I    nothing         keep on one rank    R     P    keep on one rank keep on one rank

Over time, where microbatches take the place of ranks, I and R are one, and each microbatch keeps an equal share of
what becomes Partial.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import fxpar.runtime  # noqa: F401 - registers the operators
from fxpar.axes.factor import Cat, Dim, Factor
from fxpar.axes.links import Dims
from fxpar.mesh import GroupName, joined
from fxpar.shard.placement import INVARIANT, PARTIAL, REPLICATE, Placement, Shard, cuts_of, layout

ops = torch.ops.fxpar
SHARE: Any = torch.ops.aten.div.Tensor


Change = tuple[Placement, Placement]


@dataclass(frozen=True)
class Step:
    """One conversion over the group of one or several mesh dims: the operator and its arguments after the tensor."""

    mesh_dims: tuple[str, ...]
    source: Placement
    target: Placement
    operator: Any
    arguments: tuple[Any, ...]


def normal(placement: Placement, grad: bool) -> Placement:
    """Without a gradient, Replicate is the same as Invariant."""
    return INVARIANT if placement is REPLICATE and not grad else placement


def order(
    dims: Dims, changes: Mapping[str, Change], sizes: Mapping[str, int], timed: Collection[str]
) -> list[tuple[str, ...]]:
    """The order in which mesh dims are converted: what makes the value smaller first; those in one call together."""
    runs: list[tuple[str, ...]] = []
    for mesh_dim in sorted((m for m in sizes if m in changes), key=lambda m: _cost(changes[m])):
        last = runs[-1][-1] if runs else mesh_dim
        joins = (
            runs
            and not {last, mesh_dim} & set(timed)
            and _together(dims, changes[last], changes[mesh_dim], sizes[last])
        )
        if joins:
            runs[-1] = (*runs[-1], mesh_dim)
        else:
            runs.append((mesh_dim,))
    return runs


def _cost(change: Change) -> int:
    source, target = change
    return 2 if isinstance(source, Shard) else 0 if isinstance(target, Shard) else 1


def _together(dims: Dims, first: Change, second: Change, size: int) -> bool:
    """Whether two conversions over an outer and an inner mesh dim are one over both."""
    if not any(isinstance(each, Shard) for each in (*first, *second)):
        return first == second
    for a, b in zip(first, second):
        if isinstance(a, Shard) and isinstance(b, Shard):
            if a.dim != b.dim or a.factor.size != size or not _adjacent(dims[a.dim], a.factor, b.factor):
                return False
        elif a != b:
            return False
    return not all(isinstance(each, Shard) for each in first)


def _adjacent(dim: Dim, major: Factor, minor: Factor) -> bool:
    """Whether `minor` directly follows `major`, in a concatenation in every part."""
    for position, term in enumerate(dim):
        if term is major:
            return position + 1 < len(dim) and dim[position + 1] is minor
        if isinstance(term, Cat) and all(_adjacent(part, major, minor) for part in term.parts):
            return True
    return False


def step(
    dims: Dims,
    held: Mapping[str, Placement],
    mesh_dims: tuple[str, ...],
    targets: Mapping[str, Placement],
    sizes: Mapping[str, int],
    timed: Collection[str] = (),
) -> Step:
    """The conversion of a value over mesh dims that `order` put together, from how it is held to the targets."""
    last = mesh_dims[-1]
    source, target = held.get(last, INVARIANT), targets[last]
    group = GroupName(joined(mesh_dims))

    def spread(shard: Shard) -> tuple[int, list[int]]:
        after = {**held, **{m: targets[m] for m in mesh_dims}}
        states = [held, after] if _within(source, target) else [after] if shard is target else [held]
        found = [cuts_of(state, shard.dim, sizes) for state in states]
        cuts = {factor: max(each.get(factor, 1) for each in found) for each in found for factor in each}
        return shard.dim, layout(dims[shard.dim], shard.factor, cuts)

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
    elif target is PARTIAL and last in timed:
        operator, arguments = SHARE, (sizes[last],)
    else:
        operator, arguments = _PLAIN[source, target], (group,)
    return Step(mesh_dims, source, target, operator, arguments)


def _within(source: Placement, target: Placement) -> bool:
    """Whether one dim is split along another factor than before: in between it is split along both."""
    return isinstance(source, Shard) and isinstance(target, Shard) and source.dim == target.dim


def zeros(dims: Dims, held: Mapping[str, Placement], mesh_dim: str, sizes: Mapping[str, int]) -> Step:
    """What puts zeros into the padding of a value that is split over a mesh dim by a factor that does not divide."""
    shard = held[mesh_dim]
    assert isinstance(shard, Shard)
    spread = layout(dims[shard.dim], shard.factor, cuts_of(held, shard.dim, sizes))
    arguments = (shard.dim, spread, GroupName(mesh_dim))
    return Step((mesh_dim,), shard, shard, ops.zero_padding.default, arguments)


_PLAIN: dict[tuple[Placement, Placement], Any] = {
    (INVARIANT, REPLICATE): ops.sum_gradient.default,
    (PARTIAL, INVARIANT): ops.all_reduce.default,
    (PARTIAL, REPLICATE): ops.all_reduce_both.default,
    (INVARIANT, PARTIAL): ops.keep_on_first.default,
    (REPLICATE, INVARIANT): ops.keep_gradient_on_first.default,
    (REPLICATE, PARTIAL): ops.keep_both_on_first.default,
}
