"""Cross entropy of logits whose classes, tokens or both are split over ranks.

The logits are never communicated: of each token the largest logit is reduced, and then, stacked in one tensor, the
sum of the exponentials, the target's logit and, where they are needed, the sum of the logits and the class weights.
Backward needs nothing (Megatron-LM's vocab-parallel cross entropy, Shoeybi et al. 2019; label smoothing as in
Szegedy et al. 2016). With x the logits, t the target, w the class weights, C their number, e the label smoothing:

    loss_i = (1 - e) w_t (lse - x_t) + e/C sum_c w_c (lse - x_c)
    dloss_i/dx_c = (1 - e) w_t (p_c - [c = t]) + e/C (p_c sum(w) - w_c),   p = softmax(x)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxpar.runtime.groups import find
from fxpar.runtime.layout import ensure
from fxpar.runtime.library import define, define_composite, register_autograd
from fxpar.runtime.shards import Shard


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    *,
    classes: str | None = None,
    count: Tensor | None = None,
    whole: int | None = None,
) -> Tensor:
    """The loss that torch.nn.functional.cross_entropy gives for targets that are class indices.

    logits: [C], [N, C] or [N, C, d1, ...], of which C is this rank's equal contiguous share of the classes if there
    is a group `classes`. target: [], [N] or [N, d1, ...], the same on all its ranks. weight: one a class, either of
    all classes or of this rank's. reduction: `mean`, `sum` or `none`. count: a scalar to divide a mean by, instead
    of the number (or weight) of this rank's counted targets; with that of all targets (`count_targets`), the losses
    of the ranks that share the tokens add up to the mean over all. whole: the number of all classes where that does not
    divide; the last ranks' shares then end in padding, which does not count and has no gradient.

    The loss is computed in float32 at least and has the dtype of the logits (float32 under autocast). RuntimeError
    for a target that is no class.
    """
    result: Tensor = _cross_entropy(
        logits, target, weight, reduction, ignore_index, label_smoothing, classes, count, whole
    )
    return result


def count_targets(
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    *,
    classes: str | None = None,
    tokens: str | None = None,
) -> Tensor:
    """What a mean loss is divided by: the number of targets that are not ignored, or the sum of their class weights.

    target is the whole, or this rank's part of it if the group `tokens` is given, over which the count is then
    summed. weight: one a class, or this rank's share of them if the group `classes` is given. Returns a scalar, int64
    without weights; it has no gradient.
    """
    result: Tensor = _count_targets(target, weight, ignore_index, classes, tokens)
    return result


@dataclass(frozen=True)
class _Problem:
    """What forward and backward share: where the classes are, which targets count, and in which dtype to compute."""

    dim: int
    shard: Shard
    counted: Tensor
    inside: Tensor
    index: Tensor
    dtype: torch.dtype
    weight: Tensor | None

    @staticmethod
    def of(
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        classes: str | None,
        whole: int | None,
    ) -> _Problem:
        dim = _class_dim(logits)
        shard = Shard.of(logits.shape[dim], classes, whole)
        counted = target != ignore_index
        inside, index = shard.locate(target)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        own = _own_weights(weight, shard)
        return _Problem(
            dim, shard, counted, inside & counted, index, dtype, None if own is None else own.to(dtype)
        )

    def along(self, values: Tensor) -> Tensor:
        """A vector of one value a class, shaped to broadcast with the logits."""
        return values.view([-1] + [1] * (self.counted.dim() - self.dim))

    def real(self, logits: Tensor) -> Tensor:
        """The logits without padding."""
        return logits.narrow(self.dim, 0, self.shard.real)

    def zero_padding_(self, values: Tensor) -> Tensor:
        """Put zeros where the classes are padding, in place."""
        values.narrow(self.dim, self.shard.real, self.shard.length - self.shard.real).zero_()
        return values


def _forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    classes: str | None,
    count: Tensor | None,
    whole: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; for backward, of each token (largest logit, log of the sum, weight, sum of weights); the divisor."""
    _check(logits, target, reduction)
    problem = _Problem.of(logits, target, weight, ignore_index, classes, whole)
    problem.shard.check(target, problem.counted, "a target")
    top, sums = _reduced_sums(logits, problem, label_smoothing, classes)
    log_sum = sums["exp"].log()
    token_weight = sums.get("weight", torch.ones_like(top)).where(problem.counted, 0)
    total_weight = sums.get("weights", torch.full_like(top, problem.shard.whole))
    losses = (1 - label_smoothing) * token_weight * (log_sum - sums["target"])
    if label_smoothing:
        losses += label_smoothing / problem.shard.whole * (total_weight * log_sum - sums["logits"])
    losses = losses.where(problem.counted, 0)
    divisor = _divisor(token_weight, reduction, count)
    loss = losses if reduction == "none" else losses.sum() / divisor
    return loss.to(logits.dtype), torch.stack([top, log_sum, token_weight, total_weight]), divisor


def _reduced_sums(
    logits: Tensor, problem: _Problem, label_smoothing: float, classes: str | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of each token the largest logit; and, of the logits less that and of the weights, the sums over all classes."""
    dim, weight = problem.dim, problem.weight
    top = _largest(logits, problem).to(problem.dtype)
    top = find(classes).all_reduce(top, "max") if classes else top
    shifted = problem.zero_padding_(logits.to(problem.dtype) - top.unsqueeze(dim))
    target = shifted.gather(dim, problem.index.unsqueeze(dim)).squeeze(dim)
    sums = {"target": target.where(problem.inside, 0)}
    if label_smoothing:
        sums["logits"] = (shifted if weight is None else shifted * problem.along(weight)).sum(dim)
    if weight is not None:
        sums["weight"] = weight[problem.index].where(problem.inside, 0)
        sums["weights"] = weight.sum().expand_as(top)
    sums["exp"] = problem.zero_padding_(shifted.exp_()).sum(dim)
    stacked = torch.stack(list(sums.values()))
    stacked = find(classes).all_reduce(stacked) if classes else stacked
    return top, dict(zip(sums, stacked.unbind()))


def _largest(logits: Tensor, problem: _Problem) -> Tensor:
    """The largest logit of each token; nothing is larger than that of a rank that has no class."""
    if problem.shard.real == 0:
        return logits.new_full(problem.counted.shape, -torch.inf)
    return problem.real(logits).amax(problem.dim)


def _divisor(token_weight: Tensor, reduction: str, count: Tensor | None) -> Tensor:
    if reduction != "mean":
        return token_weight.new_ones(())
    return token_weight.sum() if count is None else count.to(token_weight.dtype).clone()


def _backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    divisor: Tensor,
    ignore_index: int,
    label_smoothing: float,
    classes: str | None,
    whole: int | None = None,
) -> Tensor:
    """The gradient of the logits, in one buffer: the softmax, scaled, less the smoothing, less the target's part."""
    problem = _Problem.of(logits, target, weight, ignore_index, classes, whole)
    dim, dtype, none = problem.dim, problem.dtype, torch.zeros((), dtype=problem.dtype, device=grad.device)
    top, log_sum, token_weight, total_weight = statistics.unbind()
    each = torch.where(problem.counted, grad.to(dtype) / divisor, none)
    hard = (1 - label_smoothing) * each * token_weight
    soft = label_smoothing / problem.shard.whole * each
    result = (logits.to(dtype) - top.unsqueeze(dim)).sub_(log_sum.unsqueeze(dim)).exp_()
    result.mul_((hard + soft * total_weight).unsqueeze(dim))
    if label_smoothing:
        uniform = soft.unsqueeze(dim)
        result.sub_(uniform if problem.weight is None else uniform * problem.along(problem.weight))
    target_part = torch.where(problem.inside, hard, none).neg()
    result.scatter_add_(dim, problem.index.unsqueeze(dim), target_part.unsqueeze(dim))
    return problem.zero_padding_(result).to(logits.dtype)


def _forward_shapes(
    logits: Tensor, target: Tensor, _weight: Tensor | None, reduction: str, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _check(logits, target, reduction)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    loss = logits.new_empty(target.shape if reduction == "none" else ())
    statistics = logits.new_empty([4, *target.shape], dtype=dtype)
    return loss, statistics, logits.new_empty((), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, weight, _, ignore_index, label_smoothing, classes, _, whole = inputs
    ctx.save_for_backward(logits, target, weight, *output[1:])
    ctx.arguments = (ignore_index, label_smoothing, classes, whole)


def _gradient(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return (_cross_entropy_backward(grad, *ctx.saved_tensors, *ctx.arguments), *[None] * 8)


def _loss(logits: Tensor, *arguments: Any) -> Tensor:
    if torch.is_autocast_enabled(logits.device.type):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss: Tensor = _cross_entropy_forward(logits, *arguments)[0]
    return loss


def _count(
    target: Tensor, weight: Tensor | None, ignore_index: int, classes: str | None, tokens: str | None
) -> Tensor:
    counted = target != ignore_index
    if weight is None:
        total = counted.sum()
    else:
        inside, index = Shard.of(weight.shape[0], classes).locate(target)
        total = weight[index].where(inside & counted, 0).sum()
        total = find(classes).all_reduce(total) if classes else total
    return find(tokens).all_reduce(total) if tokens else total


def _count_shape(target: Tensor, weight: Tensor | None, *_: Any) -> Tensor:
    return target.new_empty((), dtype=torch.int64 if weight is None else weight.dtype)


def _own_weights(weight: Tensor | None, shard: Shard) -> Tensor | None:
    """This rank's share of the class weights, which may be given whole."""
    if weight is None or weight.shape[0] == shard.length:
        return weight
    ensure(
        weight.shape[0] == shard.whole,
        lambda: f"{weight.shape[0]} class weights for {shard.length} of {shard.whole} classes",
    )
    own = weight.narrow(0, min(shard.start, shard.whole), shard.real)
    return torch.nn.functional.pad(own, [0, shard.length - shard.real])


def _class_dim(logits: Tensor) -> int:
    return min(logits.dim() - 1, 1)


def _check(logits: Tensor, target: Tensor, reduction: str) -> None:
    ensure(
        reduction in ("none", "mean", "sum"), lambda: f"reduction={reduction!r} is none of none, mean, sum"
    )
    ensure(not target.is_floating_point(), lambda: "targets must be class indices, not probabilities")
    dim = _class_dim(logits)
    fits = logits.dim() > 0 and [*logits.shape[:dim], *logits.shape[dim + 1 :]] == list(target.shape)
    ensure(fits, lambda: f"targets of shape {list(target.shape)} for logits of shape {list(logits.shape)}")


_SETTINGS = "int ignore_index, float label_smoothing, str? classes"

_cross_entropy_forward = define(
    f"cross_entropy_forward(Tensor logits, Tensor target, Tensor? weight, str reduction, {_SETTINGS}, "
    "Tensor? count, int? whole=None) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_shapes,
)
_cross_entropy_backward = define(
    "cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor? weight, Tensor statistics, "
    f"Tensor divisor, {_SETTINGS}, int? whole=None) -> Tensor",
    _backward,
    lambda _, logits, *__: logits.new_empty(logits.shape),
)
register_autograd(_cross_entropy_forward, _gradient, _save)
_cross_entropy = define_composite(
    f"cross_entropy(Tensor logits, Tensor target, Tensor? weight, str reduction, {_SETTINGS}, "
    "Tensor? count, int? whole=None) -> Tensor",
    _loss,
)
_count_targets = define(
    "count_targets(Tensor target, Tensor? weight, int ignore_index, str? classes, str? tokens) -> Tensor",
    _count,
    _count_shape,
)
