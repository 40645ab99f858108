"""The inverse of a view: what the base is after its view was overwritten."""

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
    for target, scatter in _SCATTERS.items():
        if is_op(view, target):
            return make(scatter, base, value, *rest)
    if is_op(view, aten.permute):
        return make(aten.permute.default, value, _inverse(list(rest[0])))  # type: ignore[arg-type]
    if is_op(view, aten.narrow):
        dim, start, length = rest
        return make(aten.slice_scatter.default, base, value, dim, start, start + length)  # type: ignore[operator]
    raise CaptureError(
        f"`{op.target}` in {where(op)} changes a tensor through its view `{view.target}`",
        details=["write it out of place there, for example with torch.where or torch.cat"],
    )


_SCATTERS: dict[Any, Callable[..., Any]] = {
    aten.select.int: aten.select_scatter.default,
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
}


def _inverse(order: list[int]) -> list[int]:
    rank = len(order)
    return [[dim % rank for dim in order].index(dim) for dim in range(rank)]
