"""What has to be read and written, tensor by tensor, to give tensors another layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fxpar.checkpoint import dtypes
from fxpar.checkpoint.cover import local
from fxpar.checkpoint.geometry import Geometry, Parts, geometry
from fxpar.checkpoint.index import Index


class Held(NamedTuple):
    """A tensor of a file: where its bytes start, which parts of the whole they are, and their crc32 if it is known."""

    path: Path
    start: int
    parts: Parts
    crc32: int | None = None

    def bytes(self, dtype: str) -> int:
        """What the tensor takes in the file."""
        return dtypes.size(dtype, local(self.parts))

    def has(self, index: Sequence[int]) -> bool:
        """Whether an element of the whole tensor is in one of the parts."""
        return any(
            all(start <= at < start + size for at, start, size in zip(index, part.offsets, part.sizes))
            for part in self.parts
        )


@dataclass(frozen=True)
class Task:
    """A tensor with the files that it is read from, those it is written to, and others that must have the same in them.

    Of a part that several of `sources` hold the first one's is taken, and the others' must be equal.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[Held, ...]
    targets: tuple[Held, ...] = ()
    others: tuple[Held, ...] = ()

    @property
    def readers(self) -> tuple[Held, ...]:
        """All that is read."""
        return (*self.sources, *self.others)

    @property
    def holders(self) -> tuple[Held, ...]:
        """All that is read, then all that is written."""
        return (*self.readers, *self.targets)

    @property
    def geometry(self) -> Geometry:
        """The parts of all `holders`. Raises ValueError for a cut within a byte."""
        holders = tuple(held.parts for held in self.holders)
        return geometry(self.shape, dtypes.BITS[self.dtype], holders)


@dataclass(frozen=True)
class Side:
    """A checkpoint: its index, the path of each file, and the byte of a file (first) at which a tensor starts."""

    index: Index
    paths: Mapping[str, Path]
    start: Callable[[str, str], int]

    def held(self, name: str) -> tuple[Held, ...]:
        """The files that hold a tensor; none if the checkpoint has no such tensor."""
        tensor = self.index.tensors.get(name)
        if tensor is None:
            return ()
        return tuple(
            Held(self.paths[file], self.start(file, name), parts, tensor.crc32.get(file))
            for file, parts in tensor.files.items()
        )


class Transfer:
    """The tasks that write all tensors of a target from a source, in the order in which the source has them."""

    def __init__(self, source: Side, target: Side) -> None:
        self.source, self.target = source, target
        self.names = sorted(target.index.tensors, key=self._place)

    def _place(self, name: str) -> tuple[str, int, str]:
        file = next(iter(self.source.index.tensors[name].files))
        return file, self.source.start(file, name), name

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Task:
        name = self.names[number]
        tensor = self.source.index.tensors[name]
        return Task(name, tensor.dtype, tensor.shape, self.source.held(name), self.target.held(name))
