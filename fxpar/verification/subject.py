"""What is verified: a partition with the whole model, its weights and a batch; in memory, or from a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxpar.again import precision
from fxpar.capture.arguments import arguments
from fxpar.capture.capture import capture
from fxpar.capture.tree import flatten
from fxpar.checkpoint.weights import Weights
from fxpar.dynamic.capture import captured, resized
from fxpar.parts import ModelWeights, reader
from fxpar.passes import Partition, split
from fxpar.plan import Plan
from fxpar.runtime.assemble import assemble
from fxpar.runtime.groups import Groups
from fxpar.runtime.load import load
from fxpar.runtime.manifest import AxisSpec, Manifest
from fxpar.runtime.rank import Rank
from fxpar.verification.reference import Reference, compute

#: How many multiples away from the example's size another one is looked for.
STEPS = 64


@dataclass
class Subject:
    """A partition, and the model that it was made of. With a `folder` the ranks are loaded from there."""

    partition: Partition
    model: nn.Module
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    weights: Weights
    """The whole tensors by their first names."""
    folder: Path | None = None
    exact: bool = False
    """Whether the model was captured in float64 throughout, and is to be run so."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """The sizes of the dynamic axes in the batch."""

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        """The tensors of the batch by the names of the model's inputs."""
        named = arguments(self.model, self.args, self.kwargs)
        leaves = (leaf for name, value in named.items() for leaf in flatten(name, value))
        return {name: value for name, value in leaves if isinstance(value, torch.Tensor)}

    def partition_there(self) -> Partition:
        """The partition as it is at the sizes of the batch: made for these alone where random numbers are drawn."""
        made = self.partition
        same = all(axis.size == self.sizes[axis.name] for axis in made.manifest.dynamic)
        if same or not made.sharded.draws:
            return replace(made, manifest=made.manifest.at(self.sizes))
        with precision(self.exact):
            program = capture(self.model, self.args, self.kwargs)
        return split(program, replace(made.plan, dynamic=None))

    def reference(self, device: torch.device | str = "cpu") -> Reference:
        """What the whole model gives."""
        return compute(
            self.model,
            self.args,
            self.kwargs,
            self.weights,
            self.partition_there(),
            device=device,
            exact=self.exact,
        )

    def rank(self, groups: Groups, device: torch.device | str = "cpu") -> Rank:
        """The rank that `groups` belong to."""
        if self.folder is not None:
            return load(self.folder, groups, device)
        read = reader(self.partition, groups.rank, self.weights)
        leaves = self.partition.program.leaves
        return assemble(
            self.partition.manifest, self.partition.texts, groups, read, device=device, leaves=leaves
        )


def subject(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    plan: Plan,
    *,
    weights: Weights | None = None,
    source: str = "",
) -> Subject:
    """Capture and split a model, float64 models in float64 throughout. Raises as `capture` and `split`."""
    exact = is_float64(model)
    with precision(exact):
        program = captured(model, args, kwargs, plan)
    partition = split(program, plan, source=source)
    return Subject(partition, model, args, kwargs, ModelWeights(program, weights), exact=exact)


def subjects(found: Subject) -> list[Subject]:
    """What is verified of a partition: the batch that it was made with, and one of other sizes if there may be any."""
    axes = found.partition.manifest.dynamic
    if not axes:
        return [found]
    example = {axis.name: axis.size for axis in axes}
    other = other_sizes(found.partition.manifest)
    places = found.partition.program.dynamic
    args, kwargs = resized(found.model, found.args, found.kwargs, places, other, values=True)
    return [replace(found, sizes=example), replace(found, args=args, kwargs=kwargs, sizes=other)]


def other_size(axis: AxisSpec) -> int:
    """A size that an axis may have and that is not the example's, if there is one: a little more, else less."""
    more, less = axis.size + axis.multiple, axis.size - axis.multiple
    if axis.most is None or more <= axis.most:
        return more
    return less if less >= axis.least else axis.size


def other_sizes(manifest: Manifest) -> dict[str, int]:
    """Sizes that the dynamic axes may have together; of an axis that may have no other, the example's."""
    sizes = {axis.name: axis.size for axis in manifest.dynamic}
    whole = {axis.name: other_size(axis) for axis in manifest.dynamic}
    if all(condition.holds(whole) for condition in manifest.conditions):
        return whole
    for axis in manifest.dynamic:
        tried = ({**sizes, axis.name: size} for size in _nearby(axis))
        fitting = (each for each in tried if all(asked.holds(each) for asked in manifest.conditions))
        sizes = next(fitting, sizes)
    return sizes


def _nearby(axis: AxisSpec) -> Iterator[int]:
    """Sizes that an axis may have by itself, the nearest to the example's first."""
    for step in range(1, STEPS + 1):
        for size in (axis.size + step * axis.multiple, axis.size - step * axis.multiple):
            if axis.least <= size and (axis.most is None or size <= axis.most):
                yield size


def is_float64(model: nn.Module) -> bool:
    """Whether a model has parameters in float64."""
    return any(parameter.dtype == torch.float64 for parameter in model.parameters())
