"""A loss for models that have none: the sum of all floating-point outputs, each element with a fixed random weight.

It is computed from what the ranks hold, so that nothing is gathered for it:

    output, split over dp     y0 | y1
    weights, split alike      w0 | w1
    on each rank              sum(w0 y0) | sum(w1 y1)  --all-reduce over dp-->  sum(w y)

Along the dim that microbatches cut, one weight stands for all, so that each of them counts with the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fxpar.pipeline.spec import ValueSpec
from fxpar.runtime import conversions
from fxpar.runtime.cutting import part
from fxpar.runtime.groups import Groups
from fxpar.runtime.layout import is_uneven
from fxpar.runtime.manifest import CutSpec, Manifest, OutputSpec, dtype_name

#: What the loss is called among the outputs, and the phase under which its own sums are counted.
OBJECTIVE = "fxpar.objective"


def weight(position: int, spec: OutputSpec) -> Tensor:
    """The weights of the output at a position, of a size that broadcasts against it, in float64.

    The weighted sum of values of size one is about one, however many there are.
    """
    sizes = list(spec.shape)
    if isinstance(spec.time, CutSpec):
        sizes[spec.time.dim] = 1
    drawn = torch.randn(sizes, generator=torch.Generator().manual_seed(position), dtype=torch.float64)
    return drawn.div_(prod(spec.shape) ** 0.5)


def term(output: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of one output, in float32 at least."""
    return (output * weights.to(output)).sum(dtype=sum_dtype(output.dtype))


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of a dtype are summed."""
    return torch.promote_types(dtype, torch.float32)


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum of all terms, in the widest of their dtypes."""
    dtype = terms[0].dtype
    for each in terms[1:]:
        dtype = torch.promote_types(dtype, each.dtype)
    return torch.stack([each.to(dtype) for each in terms]).sum()


class Judged(nn.Module):
    """A last stage that returns one more output, the loss. Its tensors have the names that they have in the stage."""

    stage: nn.Module

    def __init__(self, stage: nn.Module, manifest: Manifest, groups: Groups, roots: Sequence[str]) -> None:
        super().__init__()
        object.__setattr__(self, "stage", stage)
        self._modules, self._parameters, self._buffers = stage._modules, stage._parameters, stage._buffers
        self._non_persistent_buffers_set = stage._non_persistent_buffers_set
        self._manifest, self._groups, self._roots = manifest, groups, frozenset(roots)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs of the stage, and the loss, the same on every rank that holds this stage."""
        outputs = self.stage(*args, **kwargs)
        named = enumerate(zip(self._manifest.outputs, outputs))
        terms = [self._term(i, spec, out) for i, (spec, out) in named if spec.name in self._roots]
        return (*outputs, total(terms))

    def _term(self, position: int, spec: OutputSpec, output: Tensor) -> Tensor:
        weights = weight(position, spec)
        for cut in reversed(spec.gather):
            if weights.shape[cut.dim] > 1:
                index, parts = self._groups.index(cut.mesh_dim), self._groups.size(cut.mesh_dim)
                weights = part(weights, cut.dim, cut.layout, index, parts)
        if any(is_uneven(cut.layout) for cut in spec.gather):
            output = output.where(weights.to(output) != 0, 0)  # padding has no weight, and may hold anything
        result = term(output, weights)
        with self._groups.counter.phase(OBJECTIVE):
            for cut in spec.gather:
                result = conversions.all_reduce(result, self._groups[cut.mesh_dim])
        return result if spec.time is not None else result / self._manifest.microbatches


def judged(manifest: Manifest, roots: Sequence[str]) -> Manifest:
    """The manifest of the same model with the loss as one more output of its last stage."""
    dtypes = [getattr(torch, spec.dtype) for spec in manifest.outputs if spec.name in roots]
    dtype = total([torch.zeros((), dtype=sum_dtype(dtype)) for dtype in dtypes]).dtype
    loss = ValueSpec(OBJECTIVE, (), dtype_name(dtype), True)
    stages = tuple(
        replace(stage, outputs=(*stage.outputs, OBJECTIVE), loss=loss) for stage in manifest.stages
    )
    return replace(manifest, loss=OBJECTIVE, stages=stages)
