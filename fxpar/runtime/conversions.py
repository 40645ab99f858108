"""Changes of placement: collectives with the backward that their placements ask for.

The states of a value on a mesh dim, and of its gradient (the names are those of spmd_types):

    I invariant   the same on all ranks            gradient: the same, complete on each
    R replicate   the same, feeding split work     gradient: partial, to be summed
    S shard       each rank its slice              gradient: its slice
    P partial     to be summed                     gradient: the same, complete

`group` is always a name that `Groups` gives, `layout` says how the parts of a dimension make up the whole (see
`layout.py`; empty means one contiguous piece a rank). Results are new, contiguous tensors and never share memory with
the argument. Integer and bool tensors are converted too; no gradient flows through them. Sizes that do not fit raise
RuntimeError, an unknown group RankError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxpar.runtime import layout as layouts
from fxpar.runtime.groups import find
from fxpar.runtime.library import define


def sum_gradient(x: Tensor, group: str) -> Tensor:
    """I -> R: nothing forward (a copy), all-reduce backward. Megatron-LM's f (Shoeybi et al. 2019)."""
    result: Tensor = _sum_gradient(x, group)
    return result


def all_reduce(x: Tensor, group: str) -> Tensor:
    """P -> I: the sum forward, nothing backward. Megatron-LM's g (Shoeybi et al. 2019)."""
    result: Tensor = _all_reduce(x, group)
    return result


def all_reduce_both(x: Tensor, group: str) -> Tensor:
    """P -> R: the sum forward, the sum of the gradients backward."""
    result: Tensor = _all_reduce_both(x, group)
    return result


def all_gather(
    x: Tensor, dim: int, group: str, *, layout: Sequence[int] = (), backward: str = "reduce_scatter"
) -> Tensor:
    """S -> R (`backward="reduce_scatter"`) or S -> I (`backward="slice"`): the whole of the ranks' parts along `dim`.

    `layout` is that of x, the part. The gradient is summed and scattered, or sliced where it is complete everywhere.
    """
    result: Tensor = _all_gather(x, dim, list(layout), group, backward)
    return result


def reduce_scatter(x: Tensor, dim: int, group: str, *, layout: Sequence[int] = ()) -> Tensor:
    """P -> S: this rank's part of the sum along `dim`; the gradient is gathered. `layout` is that of the result."""
    result: Tensor = _reduce_scatter(x, dim, list(layout), group)
    return result


def slice(
    x: Tensor, dim: int, group: str, *, layout: Sequence[int] = (), backward: str = "all_gather"
) -> Tensor:
    """I -> S (`backward="all_gather"`) or R -> S (`backward="pad"`): this rank's part of x along `dim`.

    `layout` is that of the result. The gradient is gathered from all ranks, or padded with zeros.
    """
    result: Tensor = _slice(x, dim, list(layout), group, backward)
    return result


def all_to_all(
    x: Tensor,
    gather_dim: int,
    scatter_dim: int,
    group: str,
    *,
    gather_layout: Sequence[int] = (),
    scatter_layout: Sequence[int] = (),
) -> Tensor:
    """S -> S': x is this rank's part along `gather_dim`, the result its part along `scatter_dim`; backward the reverse.

    Both layouts are those of the parts. Where both dims are one, x is scattered first, and `gather_layout` is that of
    what is left.
    """
    result: Tensor = _all_to_all(x, gather_dim, list(gather_layout), scatter_dim, list(scatter_layout), group)
    return result


def keep_on_first(x: Tensor, group: str) -> Tensor:
    """I -> P: x on the first rank of the group and zeros on the others, so that the sum is x; nothing backward."""
    result: Tensor = _keep_on_first(x, group)
    return result


def zero_padding(x: Tensor, dim: int, group: str, *, layout: Sequence[int]) -> Tensor:
    """S -> S: zeros in the padding of this rank's part along `dim`, forward and backward, whatever was in it.

    `layout` is that of x, with the length of the whole.
    """
    result: Tensor = _zero_padding(x, dim, list(layout), group)
    return result


def keep_gradient_on_first(x: Tensor, group: str) -> Tensor:
    """R -> I: nothing forward (a copy); backward the gradient on the first rank and zeros on the others."""
    result: Tensor = _keep_gradient_on_first(x, group)
    return result


def keep_both_on_first(x: Tensor, group: str) -> Tensor:
    """R -> P: x on the first rank of the group and zeros on the others, and of the gradient likewise."""
    result: Tensor = _keep_both_on_first(x, group)
    return result


def _copy(x: Tensor, group: str) -> Tensor:
    find(group)
    return x.clone(memory_format=torch.contiguous_format)


def _same_shape(x: Tensor, group: str) -> Tensor:
    find(group)
    return x.new_empty(x.shape)


def _reduced(x: Tensor, group: str) -> Tensor:
    return find(group).all_reduce(x)


def _unchanged(grad: Tensor, _group: str) -> Tensor:
    return grad


def _gather(x: Tensor, dim: int, layout: list[int], group: str, backward: str) -> Tensor:
    _check_backward(backward, "reduce_scatter", "slice")
    return layouts.gathered(find(group).all_gather(x), _position(x, dim), layout)


def _gathered_shape(x: Tensor, dim: int, layout: list[int], group: str, backward: str) -> Tensor:
    _check_backward(backward, "reduce_scatter", "slice")
    dim = _position(x, dim)
    layouts.check(x.shape[dim], layout)
    whole = layout[-1] if layouts.is_uneven(layout) else x.shape[dim] * find(group).size
    return _resized(x, dim, whole)


def _gather_gradient(grad: Tensor, dim: int, layout: list[int], group: str, backward: str) -> Tensor:
    if backward == "slice":
        return slice(grad, dim, group, layout=layout)
    return reduce_scatter(grad, dim, group, layout=layout)


def _scatter(x: Tensor, dim: int, layout: list[int], group: str) -> Tensor:
    members = find(group)
    return members.reduce_scatter(layouts.scattered(x, _position(x, dim), layout, members.size))


def _scattered_shape(x: Tensor, dim: int, layout: list[int], group: str) -> Tensor:
    dim = _position(x, dim)
    return _resized(x, dim, layouts.part_length(x.shape[dim], layout, find(group).size))


def _scatter_gradient(grad: Tensor, dim: int, layout: list[int], group: str) -> Tensor:
    return all_gather(grad, dim, group, layout=layout)


def _part(x: Tensor, dim: int, layout: list[int], group: str, backward: str) -> Tensor:
    _check_backward(backward, "all_gather", "pad")
    members = find(group)
    return layouts.part(x, _position(x, dim), layout, members.size, members.index)


def _part_shape(x: Tensor, dim: int, layout: list[int], group: str, backward: str) -> Tensor:
    _check_backward(backward, "all_gather", "pad")
    return _scattered_shape(x, dim, layout, group)


def _part_gradient(grad: Tensor, dim: int, layout: list[int], group: str, backward: str) -> Tensor:
    if backward == "all_gather":
        return all_gather(grad, dim, group, layout=layout, backward="slice")
    members = find(group)
    return layouts.padded(grad, _position(grad, dim), layout, members.size, members.index)


def _exchange(
    x: Tensor,
    gather_dim: int,
    gather_layout: list[int],
    scatter_dim: int,
    scatter_layout: list[int],
    group: str,
) -> Tensor:
    members = find(group)
    parts = layouts.scattered(x, _position(x, scatter_dim), scatter_layout, members.size)
    return layouts.gathered(members.all_to_all(parts), _position(x, gather_dim), gather_layout)


def _exchanged_shape(
    x: Tensor,
    gather_dim: int,
    gather_layout: list[int],
    scatter_dim: int,
    scatter_layout: list[int],
    group: str,
) -> Tensor:
    scattered = _scattered_shape(x, scatter_dim, scatter_layout, group)
    return _gathered_shape(scattered, gather_dim, gather_layout, group, "reduce_scatter")


def _exchange_gradient(
    grad: Tensor,
    gather_dim: int,
    gather_layout: list[int],
    scatter_dim: int,
    scatter_layout: list[int],
    group: str,
) -> Tensor:
    return all_to_all(
        grad, scatter_dim, gather_dim, group, gather_layout=scatter_layout, scatter_layout=gather_layout
    )


def _keep(x: Tensor, group: str) -> Tensor:
    return _copy(x, group) if find(group).index == 0 else x.new_zeros(x.shape)


def _valid_only(x: Tensor, dim: int, layout: list[int], group: str) -> Tensor:
    dim = _position(x, dim)
    valid = layouts.valid(x.shape[dim], layout, find(group).index, x.device)
    return x.where(valid.view([-1] + [1] * (x.dim() - 1 - dim)), 0)


def _valid_shape(x: Tensor, dim: int, layout: list[int], group: str) -> Tensor:
    layouts.check(x.shape[_position(x, dim)], layout)
    return _same_shape(x, group)


def _valid_gradient(grad: Tensor, dim: int, layout: list[int], group: str) -> Tensor:
    return zero_padding(grad, dim, group, layout=layout)


def _position(x: Tensor, dim: int) -> int:
    layouts.ensure(-x.dim() <= dim < x.dim(), lambda: f"dimension {dim} of a tensor of shape {list(x.shape)}")
    return dim % x.dim()


def _resized(x: Tensor, dim: int, length: int) -> Tensor:
    return x.new_empty([*x.shape[:dim], length, *x.shape[dim + 1 :]])


def _check_backward(backward: str, *known: str) -> None:
    layouts.ensure(backward in known, lambda: f"backward={backward!r} is none of {', '.join(known)}")


_sum_gradient = define(
    "sum_gradient(Tensor x, str group) -> Tensor", _copy, _same_shape, all_reduce, decompose=True
)
_all_reduce = define(
    "all_reduce(Tensor x, str group) -> Tensor", _reduced, _same_shape, _unchanged, decompose=True
)
_all_reduce_both = define(
    "all_reduce_both(Tensor x, str group) -> Tensor", _reduced, _same_shape, all_reduce_both, decompose=True
)
_all_gather = define(
    "all_gather(Tensor x, int dim, SymInt[] layout, str group, str backward) -> Tensor",
    _gather,
    _gathered_shape,
    _gather_gradient,
    decompose=True,
)
_reduce_scatter = define(
    "reduce_scatter(Tensor x, int dim, SymInt[] layout, str group) -> Tensor",
    _scatter,
    _scattered_shape,
    _scatter_gradient,
    decompose=True,
)
_slice = define(
    "slice(Tensor x, int dim, SymInt[] layout, str group, str backward) -> Tensor",
    _part,
    _part_shape,
    _part_gradient,
    decompose=True,
)
_all_to_all = define(
    "all_to_all(Tensor x, int gather_dim, SymInt[] gather_layout, int scatter_dim, SymInt[] scatter_layout, "
    "str group) -> Tensor",
    _exchange,
    _exchanged_shape,
    _exchange_gradient,
    decompose=True,
)
_keep_on_first = define(
    "keep_on_first(Tensor x, str group) -> Tensor", _keep, _same_shape, _unchanged, decompose=True
)
_zero_padding = define(
    "zero_padding(Tensor x, int dim, SymInt[] layout, str group) -> Tensor",
    _valid_only,
    _valid_shape,
    _valid_gradient,
    decompose=True,
)
_keep_gradient_on_first = define(
    "keep_gradient_on_first(Tensor x, str group) -> Tensor", _copy, _same_shape, keep_on_first, decompose=True
)
_keep_both_on_first = define(
    "keep_both_on_first(Tensor x, str group) -> Tensor",
    _keep,
    _same_shape,
    keep_both_on_first,
    decompose=True,
)
