"""How a safetensors file of fxpar is laid out, so that equal tensors give equal bytes.

length of the header | header, padded with spaces | the tensors' bytes, from a multiple of 4096 on

Wider dtypes stand first, and names in order. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fxpar.checkpoint import dtypes
from fxpar.checkpoint.header import LONGEST, METADATA
from fxpar.errors import CheckpointError

#: The body of a file starts at a multiple of this.
ALIGNMENT = 4096


class Slot(NamedTuple):
    """A tensor of a file: its name, its dtype as safetensors writes it, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What it takes in the file. Raises ValueError, which names it, where its last element ends within a byte."""
        try:
            return dtypes.size(self.dtype, self.shape)
        except ValueError as error:
            raise ValueError(f"`{self.name}`: {error}") from error


@dataclass(frozen=True)
class Layout:
    """A file: its header with the length before it, the byte at which each tensor starts, and all its bytes."""

    header: bytes
    starts: Mapping[str, int]
    size: int


def ordered(slots: Iterable[Slot]) -> list[Slot]:
    """The tensors of a file in the order in which they stand there."""
    return sorted(slots, key=lambda slot: (-dtypes.BITS[slot.dtype], slot.name))


def lay(slots: Iterable[Slot], metadata: Mapping[str, str]) -> Layout:
    """Lay out a file of the tensors. Raises CheckpointError for a header that no reader takes."""
    inside = ordered(slots)
    text = header(inside, metadata)
    starts, end = {}, len(text)
    for slot in inside:
        starts[slot.name] = end
        end += slot.bytes
    return Layout(text, starts, end)


def header(slots: Iterable[Slot], metadata: Mapping[str, str]) -> bytes:
    """The length and the header of a file whose tensors stand in the order of the slots.

    Raises CheckpointError for a header that is longer than readers of safetensors take.
    """
    fields: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    start = 0
    for slot in slots:
        span = [start, start := start + slot.bytes]
        fields[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": span}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) >= LONGEST:
        raise CheckpointError(
            f"a header of {len(text)} bytes would be needed, and less than {LONGEST} are read",
            details=["spread the tensors over more files"],
        )
    return len(text).to_bytes(8, "little") + text
