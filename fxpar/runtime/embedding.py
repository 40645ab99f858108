"""Embedding tables whose rows are split over ranks (Megatron-LM's vocab-parallel embedding, Shoeybi et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxpar.runtime.library import define, register_autograd
from fxpar.runtime.shards import Shard


def embedding(
    ids: Tensor, weight: Tensor, group: str, padding_idx: int | None = None, rows: int | None = None
) -> Tensor:
    """This rank's part of a look-up: Partial, the rows that it holds and zeros for all other ids.

    ids: any shape, integers, the same on all ranks of the group. weight: [V / ranks, h], this rank's equal contiguous
    share of the rows. `rows` is V where that does not divide: shares are then rounded up, and the last ones end in
    padding. The row `padding_idx` (of the whole table; None or negative for none) gets no gradient. Returns
    ids.shape + [h]. RuntimeError for an id that is outside of the whole table.
    """
    result: Tensor = _embedding(ids, weight, group, -1 if padding_idx is None else padding_idx, rows)
    return result


def _look_up(ids: Tensor, weight: Tensor, group: str, _padding_idx: int, whole: int | None = None) -> Tensor:
    shard = Shard.of(weight.shape[0], group, whole)
    shard.check(ids, True, "an id")
    inside, local = shard.locate(ids)
    rows: Tensor = torch.ops.aten.embedding(weight, local)
    return rows.where(inside.unsqueeze(-1), 0)


def _accumulate(grad: Tensor, ids: Tensor, rows: int, group: str, padding_idx: int) -> Tensor:
    shard = Shard.of(rows, group)
    inside, local = shard.locate(ids)
    inside = inside & (ids != padding_idx) if padding_idx >= 0 else inside
    kept = grad.where(inside.unsqueeze(-1), 0)
    total: Tensor = torch.ops.aten.embedding_dense_backward(kept, local, rows, -1, False)
    return total


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch's signature
    ids, weight, ctx.group, ctx.padding_idx, _ = inputs
    ctx.save_for_backward(ids)
    ctx.rows = weight.shape[0]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (ids,) = ctx.saved_tensors
    return None, _embedding_backward(grad, ids, ctx.rows, ctx.group, ctx.padding_idx), None, None, None


_embedding = define(
    "embedding(Tensor ids, Tensor weight, str group, int padding_idx, int? whole=None) -> Tensor",
    _look_up,
    lambda ids, weight, *_: weight.new_empty([*ids.shape, weight.shape[1]]),
)
_embedding_backward = define(
    "embedding_backward(Tensor grad, Tensor ids, SymInt rows, str group, int padding_idx) -> Tensor",
    _accumulate,
    lambda grad, _, rows, *__: grad.new_empty([rows, grad.shape[-1]]),
)
register_autograd(_embedding, _gradient, _save)
