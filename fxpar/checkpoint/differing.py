"""What two files should have in common and have not, and tensors that are not what they were when they were written."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn

from fxpar.errors import CheckpointError


@dataclass(frozen=True)
class Difference:
    """A tensor, the file that is not as it should be, what is wrong, and the index of the first element, if known."""

    name: str
    path: Path
    what: str
    index: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.path.name}: `{self.name}` {self.what}"


def refuse(difference: Difference) -> NoReturn:
    """Raise CheckpointError: such tensors are not to be used."""
    raise CheckpointError(f"{difference.path.parent} is damaged", details=[str(difference)])


def element(byte: int, bits: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of the element that a byte of a row-major tensor belongs to."""
    number = byte * 8 // bits
    index = []
    for dim in range(len(shape)):
        inner = prod(shape[dim + 1 :])
        index.append(number // inner)
        number %= inner
    return tuple(index)
