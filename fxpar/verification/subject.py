"""What is verified: a partition with the whole model, its weights and a batch; in memory, or from a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxpar.again import precision
from fxpar.capture.arguments import arguments
from fxpar.capture.capture import capture
from fxpar.capture.tree import flatten
from fxpar.checkpoint.weights import Weights
from fxpar.parts import ModelWeights, reader
from fxpar.passes import Partition, split
from fxpar.plan import Plan
from fxpar.runtime.assemble import assemble
from fxpar.runtime.groups import Groups
from fxpar.runtime.load import load
from fxpar.runtime.rank import Rank
from fxpar.verification.reference import Reference, compute


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

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        """The tensors of the batch by the names of the model's inputs."""
        named = arguments(self.model, self.args, self.kwargs)
        leaves = (leaf for name, value in named.items() for leaf in flatten(name, value))
        return {name: value for name, value in leaves if isinstance(value, torch.Tensor)}

    def reference(self, device: torch.device | str = "cpu") -> Reference:
        """What the whole model gives."""
        return compute(
            self.model,
            self.args,
            self.kwargs,
            self.weights,
            self.partition,
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
        program = capture(model, args, kwargs, opaque=plan.opaque or ())
    partition = split(program, plan, source=source)
    return Subject(partition, model, args, kwargs, ModelWeights(program, weights), exact=exact)


def is_float64(model: nn.Module) -> bool:
    """Whether a model has parameters in float64."""
    return any(parameter.dtype == torch.float64 for parameter in model.parameters())
