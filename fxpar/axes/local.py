"""The literal arguments of a call on one rank: sizes, bounds and counts that are written into the graph.

    view(x, [2, 16, 8, 4])            heads over 2:   view(x, [2, 16, 4, 4])
    slice(x, -1, 32, 64)              cat[...] over 2: slice(x, -1, 16, 32)
    split(x, 64, -1)                                  split_with_sizes(x, [32, 32], -1)

Every size becomes a number that is right on the rank, never -1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import fx

from fxpar.axes.factor import Dim, leaves, resolve, size_of
from fxpar.axes.infer import Inference, output_shapes
from fxpar.axes.schema import arguments, shape

#: (a node, the number of its output, a dim) -> the length of that dim on the rank.
LocalDim: TypeAlias = Callable[[fx.Node, int, int], int]
#: A resolved dim of an operand, or a part of one -> its length on the rank as the node consumes it.
Length: TypeAlias = Callable[[Dim], int]
#: A call: target, positional and named arguments.
Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

ATEN = torch.ops.aten


@dataclass(frozen=True)
class Local:
    """One node as it stands in the graph, and what it sees on a rank."""

    node: fx.Node
    found: Inference
    local_dim: LocalDim
    length: Length
    arguments: dict[str, Any]

    @property
    def operand(self) -> fx.Node:
        """The first operand."""
        return self.node.all_input_nodes[0]

    def out(self, dim: int, output: int = 0) -> int:
        """The local length of a dim of an output."""
        return self.local_dim(self.node, output, dim)

    def outs(self) -> list[int]:
        """The local shape of the first output."""
        return [self.out(dim) for dim in range(len(output_shapes(self.node)[0]))]

    def operand_dim(self, dim: int) -> int:
        """The local length of a dim of the first operand, as the node consumes it."""
        pieces = self.found.links[self.node].ins[0][dim]
        return prod(self.piece(role, resolve(piece)) for role, piece in pieces)

    def piece(self, role: str, dim: Dim) -> int:
        """The local length of a part of a dim that plays a role.

        A factor may stand in several dims and be split in one of them: the outputs tell whether it is this one.
        """
        links = self.found.links[self.node]
        for output, axis, _ in links.sites(role, outputs=True):
            whole = resolve(self.found.dims[self.node][output][axis])
            if size_of(whole) == self.out(axis, output):
                return size_of(dim)
            if self.length(whole) == self.out(axis, output):
                return self.length(dim)
            raise ValueError(f"{self.node.name}: a factor of dim {axis} is split in another dim")
        return self.length(dim)

    def tile(self, part: Dim, at: int) -> int:
        """The local length of a part of dim `at` of the operand of a slice; factors may be split in another dim."""
        for axis, dim in enumerate(self.found.dims[self.node][0]):
            whole = resolve(dim)
            cut = {factor for factor in leaves(whole) if self.length((factor,)) != factor.size}
            if axis != at and cut & {*leaves(part)} and self.length(whole) == self.out(axis):
                return size_of(part)
        return self.length(part)

    def axis(self, name: str = "dim", rank: int | None = None) -> int:
        """An argument that names a dim of the first operand, as a non-negative number."""
        given = len(shape(self.operand)) if rank is None else rank
        return int(self.arguments[name]) % max(1, given)


#: What becomes of a call's arguments, by name; `target` is another op to call.
Change: TypeAlias = dict[str, Any]


def localize(
    node: fx.Node, found: Inference, local_dim: LocalDim, length: Length, *, shares: int = 1
) -> Call:
    """The call that a rank makes for a node: target, args and kwargs, tensors still as nodes of the graph.

    `local_dim` is asked for the outputs of `node` only, `length` for resolved dims of its operands and for parts
    of them, in the placement in which the node consumes them. Where the call gives one of several equal `shares` of a
    sum, so do the numbers that it adds. Nothing else changes: a call none of whose literals depend on a split comes
    back as it is.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target, node.args, dict(node.kwargs)  # type: ignore[return-value]
    local = Local(node, found, local_dim, length, arguments(node))
    change = _of_roles(local)
    if shares > 1:
        change |= {name: local.arguments[name] / shares for name in found.links[node].numbers}
    rewrite = REWRITES.get(str(node.target.overloadpacket))
    if rewrite is not None:
        change |= rewrite(local)
    return _changed(node, change)


def _changed(node: fx.Node, change: Change) -> Call:
    """The node's call with some arguments replaced, each where it was given."""
    assert isinstance(node.target, torch._ops.OpOverload)
    if "target" in change:
        target = change.pop("target")
        return target, (node.args[0], *change.values()), {}
    args, kwargs = list(node.args), dict(node.kwargs)
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.name not in change:
            continue
        if position < len(args):
            args[position] = change[argument.name]
        else:
            kwargs[argument.name] = change[argument.name]
    return node.target, tuple(args), kwargs


def _of_roles(local: Local) -> Change:
    """Integer arguments that are sizes of roles, as the rule's `sizes` says: groups, normalized_shape."""
    links = local.found.links[local.node]
    change: Change = {}
    for name, roles in links.sizes.items():
        lengths = [next((local.piece(role, dim) for _, _, dim in links.sites(role)), 1) for role in roles]
        given = local.arguments[name]
        change[name] = lengths[0] if isinstance(given, int) else lengths[len(lengths) - len(given) :]
    return change


def _shape(local: Local) -> Change:
    """An argument that is the shape of the output."""
    return {name: local.outs() for name in ("size", "shape") if name in local.arguments}


def _reshape_as(local: Local) -> Change:
    """The tensor that shows the shape is not needed."""
    return {"target": ATEN.reshape.default, "shape": local.outs()}


def _type_as(local: Local) -> Change:
    """Nor the one that shows the dtype."""
    return {"target": ATEN.to.dtype, "dtype": local.node.meta["val"].dtype}


def _unflatten(local: Local) -> Change:
    at = local.axis()
    return {"sizes": [local.out(at + k) for k in range(len(local.arguments["sizes"]))]}


def _repeat(local: Local) -> Change:
    name = "repeats" if "repeats" in local.arguments else "dims"
    outs, rank = local.outs(), len(shape(local.operand))
    lead = len(outs) - rank
    old = [1] * lead + [local.operand_dim(dim) for dim in range(rank)]
    return {name: [new // max(1, length) for new, length in zip(outs, old)]}


def _repeat_interleave(local: Local) -> Change:
    if local.arguments.get("dim") is None or not isinstance(local.arguments["repeats"], int):
        return {}
    at = local.axis()
    change: Change = {"repeats": local.out(at) // max(1, local.operand_dim(at))}
    if local.arguments.get("output_size") is not None:
        change["output_size"] = local.out(at)
    return change


def _slice(local: Local) -> Change:
    """The bounds of a tile come from the local lengths of the tiles; those of a slice that takes all are all."""
    at, node = local.axis(), local.node
    start, before, size = 0, 0, local.out(at)
    step = local.arguments.get("step", 1)
    if step != 1:
        whole = size == shape(node)[at] or local.arguments["end"] > shape(local.operand)[at]
        return {} if whole else {"end": size * step}
    tiling = local.found.tilings.get(node)
    if tiling is not None:
        parts = local.found.tiles[local.operand, at][: tiling[1]]
        start, before = sum(local.tile(resolve(part), at) for part in parts), sum(map(size_of, parts))
    if size == shape(node)[at] and start == before:
        return {}
    return (
        {"start": start, "length": size}
        if "length" in local.arguments
        else {"start": start, "end": start + size}
    )


def _split(local: Local) -> Change:
    """Any way to split a dim becomes `split_with_sizes`, once a part has another length than before."""
    at = local.axis()
    whole = [sizes[at] for sizes in output_shapes(local.node)]
    sizes = [local.out(at, output) for output in range(len(whole))]
    return {} if sizes == whole else {"target": ATEN.split_with_sizes.default, "sizes": sizes, "dim": at}


def _squeeze(local: Local) -> Change:
    """A dim that has length 1 only on the rank must not go."""
    sizes = shape(local.operand)
    given = local.arguments.get("dim")
    values = range(len(sizes)) if given is None else [given] if isinstance(given, int) else given
    named = sorted({int(dim) % max(1, len(sizes)) for dim in values}) if sizes else []
    if all(sizes[dim] == 1 or local.operand_dim(dim) != 1 for dim in named):
        return {}
    return {"target": ATEN.squeeze.dims, "dim": [dim for dim in named if sizes[dim] == 1]}


REWRITES: dict[str, Callable[[Local], Change]] = {
    **dict.fromkeys(
        [f"aten.{name}" for name in ("view", "reshape", "_unsafe_view", "expand", "broadcast_to")], _shape
    ),
    **dict.fromkeys([f"aten.{name}" for name in ("zeros", "ones", "full", "empty", "rand", "randn")], _shape),
    **dict.fromkeys([f"aten.new_{name}" for name in ("zeros", "ones", "full", "empty")], _shape),
    "aten.view_as": _reshape_as,
    "aten.reshape_as": _reshape_as,
    "aten.type_as": _type_as,
    "aten.unflatten": _unflatten,
    "aten.repeat": _repeat,
    "aten.tile": _repeat,
    "aten.repeat_interleave": _repeat_interleave,
    "aten.slice": _slice,
    "aten.narrow": _slice,
    **dict.fromkeys(
        [f"aten.{name}" for name in ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split")],
        _split,
    ),
    "aten.squeeze": _squeeze,
}
