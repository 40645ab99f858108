"""Look-ups along a dimension that is split over ranks: each rank finds what it holds, the others have zeros there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxpar.runtime.library import define, register_autograd
from fxpar.runtime.shards import Shard


def gather(x: Tensor, dim: int, index: Tensor, group: str, whole: int | None = None) -> Tensor:
    """This rank's part of torch.gather along `dim`: Partial, zeros for all positions that it does not hold.

    x: its equal contiguous part along `dim`. index: integers, positions in the whole, the same on all ranks of the
    group. whole: the length of the whole where that does not divide; the last parts then end in padding. Returns the
    shape of index. RuntimeError for a position that is outside of the whole.
    """
    result: Tensor = _gather(x, dim, index, group, whole)
    return result


def one_hot(ids: Tensor, length: int, group: str, whole: int | None = None) -> Tensor:
    """This rank's slice of torch.nn.functional.one_hot: `length` of the classes, equal contiguous shares.

    ids: any shape, integers, the same on all ranks of the group. For `whole` see `gather`. Returns ids.shape +
    [length], int64. RuntimeError for an id that is no class.
    """
    result: Tensor = _one_hot(ids, length, group, whole)
    return result


def _make(ids: Tensor, length: int, group: str, whole: int | None = None) -> Tensor:
    shard = Shard.of(length, group, whole)
    shard.check(ids, True, "an id")
    inside, local = shard.locate(ids)
    made = ids.new_zeros([*ids.shape, length], dtype=torch.int64)
    return made.scatter_(-1, local.unsqueeze(-1), inside.unsqueeze(-1).to(torch.int64))


def _look_up(x: Tensor, dim: int, index: Tensor, group: str, whole: int | None = None) -> Tensor:
    shard = Shard.of(x.shape[dim], group, whole)
    shard.check(index, True, "an index")
    inside, local = shard.locate(index)
    return x.gather(dim, local).where(inside, 0)


def _accumulate(
    grad: Tensor, dim: int, index: Tensor, shape: list[int], group: str, whole: int | None = None
) -> Tensor:
    inside, local = Shard.of(shape[dim], group, whole).locate(index)
    return grad.new_zeros(shape).scatter_add_(dim, local, grad.where(inside, 0))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch's signature
    x, ctx.dim, index, ctx.group, ctx.whole = inputs
    ctx.save_for_backward(index)
    ctx.shape = list(x.shape)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (index,) = ctx.saved_tensors
    return _gather_backward(grad, ctx.dim, index, ctx.shape, ctx.group, ctx.whole), None, None, None, None


_gather = define(
    "gather(Tensor x, int dim, Tensor index, str group, int? whole=None) -> Tensor",
    _look_up,
    lambda x, _, index, *__: x.new_empty(index.shape),
)
_gather_backward = define(
    "gather_backward(Tensor grad, int dim, Tensor index, SymInt[] shape, str group, int? whole=None) -> Tensor",
    _accumulate,
    lambda grad, _, __, shape, *___: grad.new_empty(shape),
)
_one_hot = define(
    "one_hot(Tensor ids, SymInt length, str group, int? whole=None) -> Tensor",
    _make,
    lambda ids, length, *_: ids.new_empty([*ids.shape, length], dtype=torch.int64),
)
register_autograd(_gather, _gradient, _save)
