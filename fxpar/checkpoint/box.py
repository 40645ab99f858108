"""A part of a whole tensor: where it starts and how large it is, along every dim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A part of a whole tensor: where it starts and how large it is, along every dim."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """The box that is all of a tensor."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index."""
        return tuple(slice(start, start + size) for start, size in zip(self.offsets, self.sizes))

    def __str__(self) -> str:
        return f"{list(self.sizes)} at {list(self.offsets)}"
