"""The inverse of a view: what the base is after its view was overwritten.

v = transpose(x, 0, 1), v is now w   ->  x' = transpose(w, 0, 1)
v = x[:, ::2], v is now w            ->  x' = slice_scatter(x, w, 1, 0, 8, 2)
v = x[:, 2:4], v is now w            ->  x' = cat([x[:, 0:2], w, x[:, 4:8]], 1)
then v = x'[:, 4:8] is u             ->  x'' = cat([x[:, 0:2], w, u], 1)

Slices that keep what was not overwritten are marked as `rest`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from fxpar.capture.node import aten, emit, is_op, where
from fxpar.errors import CaptureError

#: Views that show all of their base: the base is the new value in the base's sizes.
_RESHAPES = (
    aten.view.default,
    aten.reshape,
    aten._unsafe_view,
    aten.unsqueeze,
    aten.squeeze,
    aten.flatten,
    aten.unflatten,
    aten.view_as,
    aten.reshape_as,
)
#: Views that are their base: the base is the new value.
_SAME = (aten.alias, aten.detach, aten.contiguous, aten.to, aten.lift_fresh, aten.type_as, aten.dropout)
#: Views that are undone by themselves.
_TWICE = (aten.transpose, aten.t, aten.numpy_T, aten.swapaxes, aten.mT)


def base_after(graph: fx.Graph, view: fx.Node, base: fx.Node, value: fx.Node, op: fx.Node) -> fx.Node:
    """Append the base of `view` with `value` in the view's place.

    Raises CaptureError, naming the in-place op `op`, for a view that has no inverse here.
    """

    def make(target: Any, *args: Any) -> fx.Node:
        return emit(graph, target, args, like=op)

    rest = view.args[1:]
    if is_op(view, *_SAME):
        return value
    if is_op(view, *_RESHAPES):
        return make(aten.reshape.default, value, list(base.meta["val"].shape))
    if is_op(view, *_TWICE):
        return make(view.target, value, *rest)
    if is_op(view, aten.diagonal.default):
        return make(aten.diagonal_scatter.default, base, value, *rest)
    if is_op(view, aten.permute):
        return make(aten.permute.default, value, _inverse(list(rest[0])))  # type: ignore[arg-type]
    part = _part(view, base)
    if part is not None:
        dim, start, stop = part
        if is_op(view, aten.select.int):
            value = make(aten.unsqueeze.default, value, dim)
        size = base.meta["val"].shape[dim]
        pieces = [*_cut(base, dim, 0, start, make), value, *_cut(base, dim, stop, size, make)]
        return pieces[0] if len(pieces) == 1 else make(aten.cat.default, pieces, dim)
    if is_op(view, aten.slice.Tensor):
        return make(aten.slice_scatter.default, base, value, *rest)
    raise CaptureError(
        f"`{op.target}` in {where(op)} changes a tensor through its view `{view.target}`",
        details=["write it out of place there, for example with torch.where or torch.cat"],
    )


def _part(view: fx.Node, base: fx.Node) -> tuple[int, int, int] | None:
    """Dim, start and stop of what a view shows of its base, if that is a range along one dim."""
    rest: list[Any] = list(view.args[1:])
    shape = base.meta["val"].shape
    if is_op(view, aten.select.int):
        dim, index = rest[0] % len(shape), rest[1] % shape[rest[0]]
        return dim, index, index + 1
    if is_op(view, aten.narrow):
        start = rest[1] % shape[rest[0]] if rest[2] else 0
        return rest[0] % len(shape), start, start + rest[2]
    if is_op(view, aten.slice.Tensor):
        defaults: list[Any] = [0, None, None, 1]
        dim, start, stop, step = rest + defaults[len(rest) :]
        start, stop, _ = slice(start, stop).indices(shape[dim])
        return (dim % len(shape), start, max(start, stop)) if step == 1 else None
    return None


def _cut(base: fx.Node, dim: int, start: int, stop: int, make: Callable[..., fx.Node]) -> list[fx.Node]:
    """The range of `base` as pieces that are there already, or as slices of them."""
    if start >= stop:
        return []
    if start == 0 and stop == base.meta["val"].shape[dim]:
        return [base]
    if not is_op(base, aten.cat.default) or base.args[1] != dim:
        kept = make(aten.slice.Tensor, base, dim, start, stop)
        kept.meta["rest"] = True
        return [kept]
    pieces, position = [], 0
    parts: Any = base.args[0]
    for part in parts:
        size = part.meta["val"].shape[dim]
        pieces += _cut(part, dim, max(start - position, 0), min(stop - position, size), make)
        position += size
    return pieces


def _inverse(order: list[int]) -> list[int]:
    rank = len(order)
    return [[dim % rank for dim in order].index(dim) for dim in range(rank)]
