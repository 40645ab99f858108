"""The result of the shard pass: a graph with local sizes, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import fx

from fxpar.axes.infer import Inference
from fxpar.axes.links import Dims
from fxpar.axes.naming import Naming
from fxpar.capture.program import Program
from fxpar.mesh import Mesh
from fxpar.shard.boxes import Box, boxes
from fxpar.shard.draw import Draw
from fxpar.shard.overlap import Overlap, common
from fxpar.shard.placement import Placement, Shard, local_shape
from fxpar.shard.table import Table


@dataclass(frozen=True)
class Laid:
    """A tensor with its layout over the mesh: a parameter, a buffer, or an output.

    `dims` are resolved, `held` maps mesh dims to placements (absent: Invariant), `words` are the dims in factor
    notation, `reduce` the mesh dims over which a parameter's gradient is to be summed, `overlaps` the parts of it that
    are to be summed over further ones.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    dims: Dims
    words: tuple[str, ...]
    held: Mapping[str, Placement]
    sizes: Mapping[str, int]
    reduce: tuple[str, ...] = ()
    rule: str = ""
    source: str = ""
    overlaps: tuple[Overlap, ...] = ()

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape on one rank."""
        return local_shape(self.dims, self.held, self.sizes)

    @property
    def split_over(self) -> tuple[str, ...]:
        """The mesh dims that split the tensor."""
        return tuple(m for m, state in self.held.items() if isinstance(state, Shard))

    def boxes(self, coordinate: Mapping[str, int]) -> list[Box]:
        """The blocks of the whole tensor that the rank at a coordinate holds."""
        return boxes(self.dims, self.held, self.sizes, coordinate)

    @property
    def bytes(self) -> int:
        """The size of the whole tensor in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def split_bytes(self) -> int:
        """The bytes of it that not every rank has."""
        alike = common(self.local_shape, self.split_over, self.overlaps)
        return self.bytes - alike * self.dtype.itemsize if self.split_over else 0


@dataclass
class Sharded:
    """A program split over a mesh. The graph is the same for every rank; groups stand in it by name."""

    program: Program
    mesh: Mesh
    table: Table
    graph: fx.Graph
    found: Inference
    naming: Naming
    tensors: dict[str, Laid]
    """Parameters, buffers and constants by name."""
    outputs: tuple[Laid | None, ...]
    """The layout of every output as the graph gives it; None for outputs that are no tensors."""
    draws: tuple[Draw, ...] = ()
    """Every op that draws random numbers."""
    notes: list[str] = field(default_factory=list)
    """What was left whole although the table names it."""
    given: Table = field(default_factory=dict)
    """The table as the plan has it, where `table` has mesh dims that fell into pieces."""

    @property
    def fraction(self) -> float:
        """The share of the parameters' bytes that are split over some mesh dim."""
        parameters = [
            t for n, t in self.tensors.items() if self.program.placeholder(n).meta["kind"] == "parameter"
        ]
        total = sum(t.bytes for t in parameters)
        return sum(t.split_bytes for t in parameters) / total if total else 0.0
