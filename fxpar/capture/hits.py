"""How often each expert was chosen, and where rows were: ways in which models write these."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxpar.capture.node import aten, is_op

_SAME = (aten.reshape, aten.view, aten.flatten, aten.to, aten._to_copy, aten.contiguous, aten.clone)


def counts(node: Any, ids: fx.Node, experts: int) -> bool:
    """Whether a value is how often each of the experts stands among the ids: a sum of ones along all dims but the last.

        one_hot(ids, experts).sum([0, ...])        zeros.scatter(-1, best, 1).sum([0, ...])

    The second counts nothing twice that stands twice beside each other, so that there `best` has to come from topk.
    """
    node = _source(node)
    if not is_op(node, aten.sum):
        return False
    ones, dims = node.args[0], node.args[1] if len(node.args) > 1 else ()
    shape = ones.meta["val"].shape
    if sorted(dim % len(shape) for dim in dims) != list(range(len(shape) - 1)) or shape[-1] != experts:
        return False
    ones = _source(ones)
    if is_op(ones, aten.one_hot):
        return _source(ones.args[0]) is _source(ids)
    return _scattered(ones, ids)


def _scattered(node: fx.Node, ids: fx.Node) -> bool:
    """Whether ones were put into zeros where topk said."""
    if not is_op(node, aten.scatter) or len(node.args) != 4 or node.args[3] != 1:
        return False
    args: tuple[Any, ...] = node.args
    zeros, dim, best, _ = args
    rank = node.meta["val"].dim()
    chosen = _source(best)
    return (
        is_op(zeros, aten.zeros_like, aten.zeros, aten.new_zeros)
        and dim in (-1, rank - 1)
        and chosen is _source(ids)
        and _best(chosen, rank)
    )


def _best(node: fx.Node, rank: int) -> bool:
    """Whether a value are the places of the largest elements along the last dim, each another one."""
    if node.op != "call_function" or len(node.args) != 2 or node.args[1] != 1:
        return False
    topk: Any = node.args[0]
    return is_op(topk, aten.topk) and (topk.args[2] if len(topk.args) > 2 else -1) in (-1, rank - 1)


def rows_of(index: fx.Node | None) -> fx.Node | None:
    """The number of each row, of an index that says it for every element of the row: [rows, 1] expanded."""
    if index is None or index.meta["val"].dim() < 2:
        return index
    if is_op(index, aten.expand):
        index = index.args[0]  # type: ignore[assignment]
    single = index is not None and index.meta["val"].shape[1:].numel() == 1
    if single and is_op(index, aten.reshape, aten.view, aten.unsqueeze):
        return index.args[0]  # type: ignore[return-value]
    return None


def _source(node: Any) -> Any:
    """What a value has the elements of, in the same order, whatever its shape and dtype."""
    while isinstance(node, fx.Node) and is_op(node, *_SAME):
        node = node.args[0]
    return node
