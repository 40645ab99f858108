"""Reading a box of a tensor from a file at an offset, into memory of its own: nothing of the file stays mapped.

Rows of a box that lie close together are read in bands with what is between them, others one by one:

    +-----+#####+-----+-----+#####+-----+ ...      one band: two runs and what is between
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path

import torch

#: Bytes of a band at most, and of a run that is read by itself.
BAND, RUN = 4 << 20, 64 << 10


def starts(path: Path) -> dict[str, int]:
    """Where the data of each tensor of a safetensors file starts. The file must be known to be one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def read(
    file: int,
    start: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    offsets: Sequence[int],
    sizes: Sequence[int],
) -> torch.Tensor:
    """The box (`offsets`, `sizes`) of a row-major tensor that starts at a byte of an open file, as a new tensor.

    Raises OSError, and EOFError where the file is too short.
    """
    result = torch.empty(tuple(sizes), dtype=dtype)
    if result.numel() == 0:
        return result
    cut = max((dim for dim, size in enumerate(sizes) if size != shape[dim]), default=0)
    inner = dtype.itemsize * prod(shape[cut + 1 :])
    if cut == 0:
        first = offsets[0] * inner if sizes else 0
        _fill(file, start + first, _bytes(result))
        return result
    row, run = shape[cut] * inner, sizes[cut] * inner
    lines = _bytes(result).view(-1, sizes[cut - 1], run)
    for number, first in enumerate(_firsts(shape, offsets, sizes, cut)):
        _rows(file, start + first * row + offsets[cut] * inner, row, lines[number])
    return result


def _firsts(shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int], cut: int) -> Iterator[int]:
    """The number of the first row of each group of adjacent rows; rows are what dim `cut` and all behind it make."""
    for outer in product(*(range(offsets[dim], offsets[dim] + sizes[dim]) for dim in range(cut - 1))):
        number = 0
        for dim, index in enumerate((*outer, offsets[cut - 1])):
            number = number * shape[dim] + index
        yield number


def _rows(file: int, start: int, row: int, into: torch.Tensor) -> None:
    """Read runs that begin `row` bytes apart into [count, bytes of a run]."""
    count, run = into.shape
    if run >= RUN:
        for number in range(count):
            _fill(file, start + number * row, into[number])
        return
    height = max(1, BAND // row)
    for top in range(0, count, height):
        some = min(height, count - top)
        band = torch.empty(some * row, dtype=torch.uint8)
        _fill(file, start + top * row, band[: (some - 1) * row + run])
        into[top : top + some] = band.view(some, row)[:, :run]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _fill(file: int, start: int, into: torch.Tensor) -> None:
    """Read as many bytes as `into` has."""
    rest = into.numpy().data
    while rest:
        count = os.preadv(file, [rest], start)
        if count == 0:
            raise EOFError("the file ends before its tensors do")
        rest, start = rest[count:], start + count
