"""Products of rows, each with the weight that it names (a grouped matrix product: Gale et al. 2023, MegaBlocks)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fxpar.runtime.library import define, register_autograd

#: The dtype that the fused kernel takes on every accelerator, and the bytes of which its strides are multiples.
FUSED, ALIGNED = torch.bfloat16, 16


def expert_linear(rows: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Row `s` of the result is `rows[s] @ weight[ids[s]]`.

    rows: [S, i]. weight: [E, i, o], of the dtype of the rows. ids: [S], integers from 0 to E - 1. Returns [S, o].
    """
    result: Tensor = _expert_linear(rows, weight, ids)
    return result


def grouped_mm(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """torch's grouped product of sorted rows in any dtype: those of expert `e` end before row `ends[e]`.

    rows: [S, i]. weight: [E, i, o], of the dtype of the rows. ends: [E], rising to S. Returns [S, o].
    """
    result: Tensor = _grouped_mm(rows, weight, ends)
    return result


def _sorted_ids(ends: Tensor, rows: Tensor) -> Tensor:
    return torch.searchsorted(ends, torch.arange(len(rows), dtype=ends.dtype, device=ends.device), right=True)


def _forward(rows: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    order, counts = _grouped(ids, weight.shape[0])
    return _product(rows[order], weight, counts)[order.argsort()]


def _backward(grad: Tensor, rows: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    order, counts = _grouped(ids, weight.shape[0])
    sorted_grad, sorted_rows = grad[order], rows[order]
    for_rows = _product(sorted_grad, weight.transpose(1, 2), counts)[order.argsort()]
    return for_rows, _outer(sorted_rows, sorted_grad, counts)


def _grouped(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """The order of the rows by expert, and how many each has."""
    return ids.argsort(stable=True), torch.nn.functional.one_hot(ids, experts).sum(0)


def _product(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    if _fuses(rows, weight):
        fused: Tensor = torch.ops.aten._grouped_mm(rows, weight, _ends(counts))
        return fused
    made = rows.new_empty(rows.shape[0], weight.shape[2])
    for expert, where in _parts(counts):
        torch.mm(rows[where], weight[expert], out=made[where])
    return made


def _outer(rows: Tensor, grad: Tensor, counts: Tensor) -> Tensor:
    if _fuses(rows, grad):
        fused: Tensor = torch.ops.aten._grouped_mm(rows.t(), grad, _ends(counts))
        return fused
    made = rows.new_empty(len(counts), rows.shape[1], grad.shape[1])
    for expert, where in _parts(counts):
        torch.mm(rows[where].t(), grad[where], out=made[expert])
    return made


def _fuses(*tensors: Tensor) -> bool:
    """Whether torch's kernel takes these: on an accelerator, aligned and without gaps in the last or the one before."""
    return all(
        tensor.device.type == "cuda"
        and tensor.dtype is FUSED
        and tensor.data_ptr() % ALIGNED == 0
        and 1 in tensor.stride()[-2:]
        and all(size * tensor.itemsize % ALIGNED == 0 for size in tensor.shape[-2:])
        for tensor in tensors
    )


def _ends(counts: Tensor) -> Tensor:
    return counts.cumsum(0).to(torch.int32)


def _parts(counts: Tensor) -> Iterator[tuple[int, slice]]:
    """Every expert, with the sorted rows that are its own."""
    start = 0
    for expert, count in enumerate(counts.tolist()):
        yield expert, slice(start, start + count)
        start += count


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch's signature
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_expert_linear_backward(grad, *ctx.saved_tensors), None)


_expert_linear = define(
    "expert_linear(Tensor rows, Tensor weight, Tensor ids) -> Tensor",
    _forward,
    lambda rows, weight, _: rows.new_empty([rows.shape[0], weight.shape[2]]),
)
_expert_linear_backward = define(
    "expert_linear_backward(Tensor grad, Tensor rows, Tensor weight, Tensor ids) -> (Tensor, Tensor)",
    _backward,
    lambda _, rows, weight, __: (rows.new_empty(rows.shape), weight.new_empty(weight.shape)),
)
register_autograd(_expert_linear, _gradient, _save)
_grouped_mm = define(
    "grouped_mm(Tensor rows, Tensor weight, Tensor ends) -> Tensor",
    lambda rows, weight, ends: _forward(rows, weight, _sorted_ids(ends, rows)),
    lambda rows, weight, _: rows.new_empty([rows.shape[0], weight.shape[2]]),
)


def _grouped_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, weight, ends = ctx.saved_tensors
    return (*_expert_linear_backward(grad, rows, weight, _sorted_ids(ends, rows)), None)


register_autograd(_grouped_mm, _grouped_gradient, _save)
