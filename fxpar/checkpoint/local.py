"""The part of a tensor that a file or a rank holds, put together from boxes of the whole one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxpar.checkpoint.index import Part
from fxpar.checkpoint.weights import Box, Weights


def read(weights: Weights, name: str, parts: Sequence[Part], dtype: torch.dtype) -> torch.Tensor:
    """Read the boxes of a tensor, nothing else of it, each to its place in the local tensor."""
    if len(parts) == 1:
        return weights.read(name, [Box(parts[0].offsets, parts[0].sizes)]).to(dtype)
    rank = len(parts[0].sizes)
    local = torch.empty([max(p.local[dim] + p.sizes[dim] for p in parts) for dim in range(rank)], dtype=dtype)
    for part in parts:
        inside = Box(part.local, part.sizes).slices
        local[inside] = weights.read(name, [Box(part.offsets, part.sizes)]).to(dtype)
    return local
