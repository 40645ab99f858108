"""The part of each tensor that a rank holds, read from whole weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fxpar.capture.program import Program
from fxpar.checkpoint.weights import Box, TensorWeights, Weights
from fxpar.passes import Partition
from fxpar.runtime.assemble import Read


class ModelWeights:
    """The tensors of a captured model by their first names: from `weights` where they have them, else its own.

    A tied tensor may stand in `weights` under any of its names. What no checkpoint holds (buffers that are not
    persistent, constants) is the model's own. Reading raises CheckpointError for tensors that lie on the meta device
    and have no weights.
    """

    def __init__(self, program: Program, weights: Weights | None = None) -> None:
        self._own = TensorWeights(program.tensors)
        self._given = weights
        present = frozenset(weights.names()) if weights is not None else frozenset()
        self._keys = {name: name for name in program.tensors if name in present}
        for other, first in program.ties.items():
            if other in present:
                self._keys.setdefault(first, other)

    def names(self) -> list[str]:
        """The names of all tensors, each tied one once."""
        return self._own.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the whole tensor, as the model has them."""
        return self._own.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype, as the model has it."""
        return self._own.dtype(name)

    def read(self, name: str, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """The boxes as one new tensor of the model's dtype."""
        if self._given is None or name not in self._keys:
            return self._own.read(name, boxes)
        return self._given.read(self._keys[name], boxes).to(self.dtype(name))


def boxes(partition: Partition, name: str, coordinate: Mapping[str, int]) -> list[Box]:
    """The blocks of a whole tensor that the rank at a coordinate holds, in the order in which it holds them."""
    return [Box(box.offset, box.sizes) for box in partition.sharded.tensors[name].boxes(coordinate)]


def reader(partition: Partition, rank: int, weights: Weights) -> Read:
    """What gives a rank its part of each tensor by name."""
    coordinate = partition.mesh.coordinate(rank)
    return lambda name: weights.read(name, boxes(partition, name, coordinate))
