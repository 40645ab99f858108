"""Draws: what the ranks make of one random op, so that the whole model can be given the very numbers that they draw.

whole model   drop(x)                                    x split over dp, the batch over microbatches (mb)
a rank        dropout(x, p, True, seed, 3, [dp index])   seed: of its microbatch
all pieces    one for each (dp, mb), drawn with that seed and index
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from fxpar.axes.factor import size_of
from fxpar.axes.links import Dims
from fxpar.shard.boxes import Box, boxes
from fxpar.shard.placement import Placement, Shard, local_shape


@dataclass(frozen=True)
class Part:
    """Which part of a value a rank holds: resolved dims, placements by mesh dim, and the sizes of mesh dims."""

    dims: Dims
    held: Mapping[str, Placement]
    sizes: Mapping[str, int]

    @property
    def split_over(self) -> tuple[str, ...]:
        """The mesh dims that split the value; steps in time are among them."""
        return tuple(m for m, state in self.held.items() if isinstance(state, Shard))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole value."""
        return tuple(size_of(dim) for dim in self.dims)

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape that a rank holds, with its padding."""
        return local_shape(self.dims, self.held, self.sizes)

    def boxes(self, coordinate: Mapping[str, int]) -> list[Box]:
        """The blocks of the whole value at a coordinate."""
        return boxes(self.dims, self.held, self.sizes, coordinate)


@dataclass(frozen=True)
class Draw:
    """A random op: its node in the whole graph, and the call that stands for it in the split one."""

    node: fx.Node
    call: fx.Node
    operands: Mapping[fx.Node, tuple[fx.Node, Part]]
    """For operands of `call`: the value of the whole graph that each is of, and the part."""
    outputs: tuple[Part, ...]
    """One for each output of the op."""

    @property
    def split_over(self) -> tuple[str, ...]:
        """The mesh dims over which the op draws other numbers at each place."""
        return tuple(dict.fromkeys(m for part in self.outputs for m in part.split_over))
