"""Sums, norm and clipping of gradients whose parameters are split, replicated or shared over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from fxpar.runtime.groups import Groups, find
from fxpar.runtime.part import Part, local, without
from fxpar.runtime.processes import current_device
from fxpar.shard.overlap import Overlap

T = TypeVar("T", bound=Tensor)


@dataclass(frozen=True)
class ParameterGradient:
    """What a rank has to know of a parameter's gradient. All ranks that hold the parameter give it the same name.

    `reduce` names the kinds of group over which the gradients are still to be summed (`("dp+cp",)`).
    `split` names the mesh dims along which ranks hold something else: other shards of it, or nothing, as along `pp`.
    `tie` is the kind of group of the ranks that hold a copy of it though `split` says otherwise (`pp[0,3]`, the stages
    of a tied weight; `tp[2,3]`, two of the tp ranks); its gradients are summed over them too. `overlaps` are the parts
    of it that ranks along a mesh dim of `split` have alike; their gradients are summed over that mesh dim.
    """

    name: str
    parameter: nn.Parameter
    reduce: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    tie: str | None = None
    overlaps: tuple[Overlap, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind of group over which the gradient, or a part of it, is to be summed."""
        return (*self.reduce, *([self.tie] if self.tie else []), *(each.mesh_dim for each in self.overlaps))

    def part(self, kind: str) -> Part:
        """What of the gradient is to be summed over a kind of group."""
        whole = kind in self.reduce or kind == self.tie
        overlap = None if whole else next(each for each in self.overlaps if each.mesh_dim == kind)
        return Part(self.parameter, overlap)


@torch.no_grad()
def reduce_gradients(parameters: Iterable[ParameterGradient], groups: Groups) -> None:
    """Sum gradients over their groups, in place: one all-reduce for each kind of group, dtype and device.

    All ranks of a group call it with the same parameters of that kind. A gradient that is missing on some ranks counts
    as zero; one that is missing on all stays missing.
    """
    ordered = sorted(parameters, key=lambda each: each.name)
    with groups.counter.phase("step"):
        for kind in sorted({kind for each in ordered for kind in each.kinds if groups.size(kind) > 1}):
            parts = {id(each.parameter): each.part(kind) for each in ordered if kind in each.kinds}
            for bucket in _alike(each.parameter for each in ordered if kind in each.kinds):
                _reduce([parts[id(parameter)] for parameter in bucket], groups[kind])


@torch.no_grad()
def gradient_norm(parameters: Iterable[ParameterGradient], groups: Groups) -> Tensor:
    """The L2 norm of all gradients of the whole model, a scalar that is the same on all ranks.

    Every distinct shard counts once, however many ranks hold it. The gradients must have been summed. All ranks call
    it; it costs one all-reduce of a scalar. Computed in float32 at least.
    """
    parameters = list(parameters)
    device = parameters[0].parameter.device if parameters else current_device()
    total = torch.zeros((), dtype=torch.float64, device=device)
    for gradients in _alike(_counted(parameters, groups)):
        dtype = torch.promote_types(gradients[0].dtype, torch.float32)
        norms = torch.stack(torch._foreach_norm(gradients, 2.0, dtype))
        total += norms.to(total).square().sum()
    with groups.counter.phase("step"):
        return find(groups.world).all_reduce(total).sqrt()


@torch.no_grad()
def clip_gradients_(
    parameters: Iterable[ParameterGradient], max_norm: float, groups: Groups, *, norm: Tensor | None = None
) -> Tensor:
    """Scale all gradients, in place, so that their global norm is at most `max_norm`; return the norm before.

    As torch.nn.utils.clip_grad_norm_, for the whole model. `norm` is that of `gradient_norm` if it is known already.
    """
    parameters = list(parameters)
    norm = gradient_norm(parameters, groups) if norm is None else norm
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradients in _alike(_gradients(parameters)):
        torch._foreach_mul_(gradients, scale.to(gradients[0]))
    return norm


def _reduce(parts: Sequence[Part], group: str) -> None:
    """One all-reduce of all gradients, and behind them one flag each: on how many ranks there is one."""
    flat = [part.flat() for part in parts]
    flags = flat[0].new_tensor([part.parameter.grad is not None for part in parts])
    summed = find(group).all_reduce(torch.cat([*flat, flags]))
    sizes = [each.numel() for each in flat]
    *sums, counts = summed.split_with_sizes([*sizes, len(sizes)])
    for part, total, count in zip(parts, sums, counts):
        if part.parameter.grad is not None or count > 0:
            part.fill(total)


def _gradients(parameters: Iterable[ParameterGradient]) -> Iterator[Tensor]:
    for each in parameters:
        gradient = local(each.parameter.grad)
        if gradient is not None:
            yield gradient


def _counted(parameters: Iterable[ParameterGradient], groups: Groups) -> Iterator[Tensor]:
    """The gradients that this rank is the first to hold, without the parts that others are the first to hold."""
    for each in parameters:
        gradient = local(each.parameter.grad)
        if gradient is not None and _counts_here(each, groups):
            yield from without(gradient, [o for o in each.overlaps if groups.coordinate[o.mesh_dim] > 0])


def _counts_here(each: ParameterGradient, groups: Groups) -> bool:
    """Whether this rank is the first of those that hold the same shard."""
    copies = (groups.coordinate[dim] for dim in groups.mesh.dims if dim not in each.split)
    return not any(copies) and (each.tie is None or groups.index(each.tie) == 0)


def _alike(tensors: Iterable[T]) -> list[list[T]]:
    """The tensors by dtype and device, in the order in which they are first met."""
    found: dict[tuple[torch.dtype, torch.device], list[T]] = {}
    for tensor in tensors:
        found.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(found.values())
