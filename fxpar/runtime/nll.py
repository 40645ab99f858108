"""Negative log-likelihood of log-probabilities whose classes, tokens or both are split over ranks.

Each rank finds the targets that are among its classes; what it gives is its part of the loss, and nothing is
communicated. With y the log-probabilities, t the target and w the class weights, loss_i = -w_t y_t; a mean divides the
sum by that of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxpar.runtime.library import define, register_autograd
from fxpar.runtime.shards import Shard


def nll_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "sum",
    ignore_index: int = -100,
    *,
    classes: str | None = None,
    count: Tensor | None = None,
    whole: int | None = None,
) -> Tensor:
    """This rank's part of torch.nn.functional.nll_loss: Partial.

    x: [N, C] or [N, C, d1, ...] log-probabilities, of which C is this rank's equal contiguous share of the classes if
    there is a group `classes`. target: [N] or [N, d1, ...], the same on all its ranks. weight: one for each class of
    this rank. reduction: `sum` or `none`. count: what the loss is divided by, for a mean (`count_targets`). whole: the
    number of all classes where that does not divide; the last ranks' shares then end in padding. RuntimeError for a
    target that is no class.
    """
    result: Tensor = _nll_loss(x, target, weight, reduction, ignore_index, classes, count, whole)
    return result


def _found(
    x: Tensor, target: Tensor, ignore_index: int, classes: str | None, whole: int | None
) -> tuple[Tensor, Tensor, Shard]:
    """Which targets count and are here, and where; the shard."""
    shard = Shard.of(x.shape[1], classes, whole)
    inside, index = shard.locate(target)
    return inside & (target != ignore_index), index, shard


def _forward(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    classes: str | None,
    count: Tensor | None,
    whole: int | None = None,
) -> Tensor:
    inside, index, shard = _found(x, target, ignore_index, classes, whole)
    shard.check(target, target != ignore_index, "a target")
    found = x.gather(1, index.unsqueeze(1)).squeeze(1).neg_()
    losses = (found if weight is None else found * weight[index]).where(inside, 0)
    loss = losses if reduction == "none" else losses.sum()
    return loss if count is None else loss / count.to(loss.dtype)


def _backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    classes: str | None,
    count: Tensor | None,
    whole: int | None = None,
) -> Tensor:
    inside, index, _ = _found(x, target, ignore_index, classes, whole)
    each = -(grad if count is None else grad / count.to(grad.dtype)).expand(target.shape)
    each = (each if weight is None else each * weight[index]).where(inside, 0)
    return torch.zeros_like(x).scatter_add_(1, index.unsqueeze(1), each.unsqueeze(1))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch's signature
    x, target, weight, _, ctx.ignore_index, ctx.classes, count, ctx.whole = inputs
    ctx.save_for_backward(x, target, weight, count)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, target, weight, count = ctx.saved_tensors
    found = _nll_loss_backward(grad, x, target, weight, ctx.ignore_index, ctx.classes, count, ctx.whole)
    return (found, *[None] * 7)


_nll_loss = define(
    "nll_loss(Tensor x, Tensor target, Tensor? weight, str reduction, int ignore_index, str? classes, "
    "Tensor? count, int? whole=None) -> Tensor",
    _forward,
    lambda x, target, _, reduction, *__: x.new_empty(target.shape if reduction == "none" else ()),
)
_nll_loss_backward = define(
    "nll_loss_backward(Tensor grad, Tensor x, Tensor target, Tensor? weight, int ignore_index, str? classes, "
    "Tensor? count, int? whole=None) -> Tensor",
    _backward,
    lambda _, x, *__: x.new_empty(x.shape),
)
register_autograd(_nll_loss, _gradient, _save)
