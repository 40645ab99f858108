"""Cutting tensors along a factor of a dim: what one part of several equal ones holds."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from fxpar.axes.factor import Cat, Dim, Factor, holds


def coordinates(dim: Dim, factor: Factor) -> list[int]:
    """The coordinate along `factor` of every position of a resolved dim that holds it exactly once."""
    minor = 1
    for position in reversed(range(len(dim))):
        term = dim[position]
        major = prod(other.size for other in dim[:position])
        if term is factor:
            return [c for c in range(factor.size) for _ in range(minor)] * major
        if isinstance(term, Cat) and holds((term,), factor):
            inside = [c for part in term.parts for c in coordinates(part, factor)]
            return [c for c in inside for _ in range(minor)] * major
        minor *= term.size
    raise ValueError("the factor does not stand in the dim")


def positions(dim: Dim, factor: Factor, part: int, parts: int) -> Tensor:
    """The positions of a resolved dim that one of `parts` equal parts of `factor` holds, in order."""
    length = factor.size // parts
    return torch.tensor([i for i, c in enumerate(coordinates(dim, factor)) if c // length == part])


def take(tensor: Tensor, axis: int, where: Tensor) -> Tensor:
    """The elements of a tensor at some positions along an axis; differentiable."""
    return tensor.index_select(axis, where)


def put(parts: list[Tensor], axis: int, where: list[Tensor]) -> Tensor:
    """The tensor whose elements at `where[k]` along an axis are `parts[k]`; undoes `take`, differentiable."""
    return torch.cat(parts, axis).index_select(axis, torch.cat(where).argsort())
