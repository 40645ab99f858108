"""Softmax, its logarithm and logsumexp along a dimension that is split over ranks.

Nothing of the size of the operand is communicated: of each row the largest element is reduced (it has no gradient),
then the sum of the exponentials, and in backward the sum of the gradient. With x the operand, l = logsumexp(x),
p = exp(x - l) and g the gradient of the result:

    log_softmax   y = x - l     dx = g - p sum(g)
    softmax       y = p         dx = p (g - sum(g p))
    logsumexp     y = l         dx = g p, without communication: every rank has all of g

Source: Shoeybi et al., Megatron-LM (2019), section 3; softmax over parts: Milakov and Gimelshein (2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxpar.runtime.groups import find
from fxpar.runtime.library import define, define_composite, register_autograd
from fxpar.runtime.shards import Shard


def log_softmax(x: Tensor, dim: int, group: str, whole: int | None = None) -> Tensor:
    """This rank's part of torch.log_softmax along `dim`, of which each rank of the group holds an equal part.

    x: any shape. whole: the length of the whole where that does not divide; the parts are then contiguous, and the
    last ones end in padding, which is zero in the result and has no gradient. The result has the dtype of x (under
    autocast that of torch's) and is computed in float32 at least.
    """
    result: Tensor = _log_softmax(x, dim, group, whole)
    return result


def softmax(x: Tensor, dim: int, group: str, whole: int | None = None) -> Tensor:
    """This rank's part of torch.softmax along `dim`; see `log_softmax`."""
    result: Tensor = _softmax(x, dim, group, whole)
    return result


def logsumexp(
    x: Tensor, dims: Sequence[int], keepdim: bool, dim: int, group: str, whole: int | None = None
) -> Tensor:
    """torch.logsumexp over `dims`, of which `dim` is split over the group: the same on all its ranks.

    For `whole` see `log_softmax`. The gradient of the result has to be the same and complete on all ranks.
    """
    result: Tensor = _logsumexp(x, list(dims), keepdim, dim, group, whole)
    return result


def _largest(x: Tensor, dims: list[int], dim: int, group: str, whole: int | None) -> Tensor:
    """The largest element of each row of the whole, dims kept; zero instead of an infinite one."""
    real = Shard.of(x.shape[dim], group, whole).real
    part = x.narrow(dim, 0, real)
    shape = [1 if i in dims else size for i, size in enumerate(x.shape)]
    top = part.amax(dims, keepdim=True) if real else x.new_full(shape, -torch.inf)
    return find(group).all_reduce(top, "max")


def _zero_padding_(x: Tensor, dim: int, group: str, whole: int | None) -> Tensor:
    if whole is None:
        return x
    shard = Shard.of(x.shape[dim], group, whole)
    x.narrow(dim, shard.real, shard.length - shard.real).zero_()
    return x


def _shifted(x: Tensor, dim: int, group: str, whole: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """x less the largest of its row, in float32 at least; the exponentials of that; their sum over the whole row."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    shifted = wide - _largest(wide, [dim], dim, group, whole)
    powers = _zero_padding_(shifted.exp(), dim, group, whole)
    return shifted, powers, find(group).all_reduce(powers.sum(dim, keepdim=True))


def _log_forward(x: Tensor, dim: int, group: str, whole: int | None = None) -> Tensor:
    shifted, _, total = _shifted(x, dim, group, whole)
    return _zero_padding_(shifted.sub_(total.log()), dim, group, whole).to(x.dtype)


def _log_backward(grad: Tensor, y: Tensor, dim: int, group: str, whole: int | None = None) -> Tensor:
    dtype = torch.promote_types(y.dtype, torch.float32)
    own = _own(grad, dtype, dim, group, whole)
    total = find(group).all_reduce(own.sum(dim, keepdim=True))
    return _zero_padding_(own - y.to(dtype).exp() * total, dim, group, whole).to(y.dtype)


def _forward(x: Tensor, dim: int, group: str, whole: int | None = None) -> Tensor:
    _, powers, total = _shifted(x, dim, group, whole)
    return powers.div_(total).to(x.dtype)


def _backward(grad: Tensor, y: Tensor, dim: int, group: str, whole: int | None = None) -> Tensor:
    dtype = torch.promote_types(y.dtype, torch.float32)
    own = _own(grad, dtype, dim, group, whole) * y.to(dtype)
    total = find(group).all_reduce(own.sum(dim, keepdim=True))
    return own.sub_(y.to(dtype) * total).to(y.dtype)


def _own(grad: Tensor, dtype: torch.dtype, dim: int, group: str, whole: int | None) -> Tensor:
    """The gradient with zeros in its padding, which may hold anything."""
    wide = grad.to(dtype)
    return wide if whole is None else _zero_padding_(wide.clone(), dim, group, whole)


def _sum_forward(
    x: Tensor, dims: list[int], keepdim: bool, dim: int, group: str, whole: int | None = None
) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    top = _largest(wide, dims, dim, group, whole)
    top = top.where(top.isfinite(), 0)
    powers = _zero_padding_((wide - top).exp_(), dim, group, whole)
    total = find(group).all_reduce(powers.sum(dims, keepdim=True)).log_().add_(top).to(x.dtype)
    return total if keepdim else total.squeeze(dims)


def _sum_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    dims: list[int],
    keepdim: bool,
    dim: int,
    group: str,
    whole: int | None = None,
) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    g, total = grad.to(dtype), y.to(dtype)
    for each in [] if keepdim else sorted(dims):
        g, total = g.unsqueeze(each), total.unsqueeze(each)
    powers = (x.to(dtype) - total).exp_()
    return _zero_padding_(powers.mul_(g), dim, group, whole).to(x.dtype)


def _sum_shape(x: Tensor, dims: list[int], keepdim: bool, *_: Any) -> Tensor:
    kept = [1 if i in dims else size for i, size in enumerate(x.shape)]
    return x.new_empty([size for i, size in enumerate(kept) if keepdim or i not in dims])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.arguments = inputs[1:]
    ctx.save_for_backward(output)


def _sum_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.arguments = inputs[1:]
    ctx.save_for_backward(inputs[0], output)


def _as_torch(x: Tensor, op: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The operand in the dtype in which torch's op takes it: autocast has another one on each kind of device."""
    return x.to(op(x.new_empty(1), 0).dtype) if torch.is_autocast_enabled(x.device.type) else x


_PLACE = "int dim, str group, int? whole=None"
_DIMS = "int[] dims, bool keepdim"

_log_softmax_forward = define(
    f"log_softmax_forward(Tensor x, {_PLACE}) -> Tensor", _log_forward, lambda x, *_: x.new_empty(x.shape)
)
_log_softmax_backward = define(
    f"log_softmax_backward(Tensor grad, Tensor y, {_PLACE}) -> Tensor",
    _log_backward,
    lambda _, y, *__: y.new_empty(y.shape),
)
_softmax_forward = define(
    f"softmax_forward(Tensor x, {_PLACE}) -> Tensor", _forward, lambda x, *_: x.new_empty(x.shape)
)
_softmax_backward = define(
    f"softmax_backward(Tensor grad, Tensor y, {_PLACE}) -> Tensor",
    _backward,
    lambda _, y, *__: y.new_empty(y.shape),
)
_logsumexp_forward = define(
    f"logsumexp_forward(Tensor x, {_DIMS}, {_PLACE}) -> Tensor", _sum_forward, _sum_shape
)
_logsumexp_backward = define(
    f"logsumexp_backward(Tensor grad, Tensor x, Tensor y, {_DIMS}, {_PLACE}) -> Tensor",
    _sum_backward,
    lambda _, x, *__: x.new_empty(x.shape),
)
register_autograd(
    _log_softmax_forward,
    lambda ctx, grad: (
        _log_softmax_backward(grad, *ctx.saved_tensors, *ctx.arguments),
        *[None] * len(ctx.arguments),
    ),
    _save,
)
register_autograd(
    _softmax_forward,
    lambda ctx, grad: (
        _softmax_backward(grad, *ctx.saved_tensors, *ctx.arguments),
        *[None] * len(ctx.arguments),
    ),
    _save,
)
register_autograd(
    _logsumexp_forward,
    lambda ctx, grad: (
        _logsumexp_backward(grad, *ctx.saved_tensors, *ctx.arguments),
        *[None] * len(ctx.arguments),
    ),
    _sum_save,
)
_log_softmax = define_composite(
    f"log_softmax(Tensor x, {_PLACE}) -> Tensor",
    lambda x, *rest: _log_softmax_forward(_as_torch(x, torch.log_softmax), *rest),
)
_softmax = define_composite(
    f"softmax(Tensor x, {_PLACE}) -> Tensor",
    lambda x, *rest: _softmax_forward(_as_torch(x, torch.softmax), *rest),
)
_logsumexp = define_composite(
    f"logsumexp(Tensor x, {_DIMS}, {_PLACE}) -> Tensor",
    lambda x, *rest: _logsumexp_forward(_as_torch(x, torch.logsumexp), *rest),
)
