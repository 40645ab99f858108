"""Writing one safetensors file, tensor by tensor: at most one of them is in memory."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch

from fxpar.checkpoint import layout
from fxpar.checkpoint.layout import Slot
from fxpar.checkpoint.weights import DTYPES
from fxpar.errors import CheckpointError

CODES = {dtype: code for code, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """A tensor of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What it takes in the file."""
        return prod(self.shape) * self.dtype.itemsize


class Written(NamedTuple):
    """A file that was written: its sha256, and the crc32 of each tensor's bytes by name."""

    sha256: str
    crc32: dict[str, int]


def write(
    path: Path, entries: Iterable[Entry], read: Callable[[str], torch.Tensor], metadata: Mapping[str, str]
) -> Written:
    """Write a new file of the entries, whose values `read` gives one after the other; return its checksums.

    The tensors stand as `layout.py` says, so that equal tensors give equal bytes. Raises CheckpointError for a
    dtype that safetensors cannot hold, for a value of another shape or dtype than its entry, and for a full disk.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    digest, crc32 = hashlib.sha256(), {}
    try:
        with path.open("xb") as file:
            file.write(text := header(ordered, metadata))
            digest.update(text)
            for entry in ordered:
                data = _data(entry, read(entry.name))
                file.write(data)
                digest.update(data)
                crc32[entry.name] = zlib.crc32(data)
                del data  # Else it is kept while the next one is read.
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be written: {error.strerror}") from error
    return Written(digest.hexdigest(), crc32)


def header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """The length and the header of a file whose tensors stand in the order of the entries."""
    return layout.header(map(_slot, entries), metadata)


def _slot(entry: Entry) -> Slot:
    if entry.dtype not in CODES:
        raise CheckpointError(f"`{entry.name}` has dtype {entry.dtype}, which safetensors cannot hold")
    return Slot(entry.name, CODES[entry.dtype], entry.shape)


def _data(entry: Entry, tensor: torch.Tensor) -> memoryview:
    if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
        found = f"{tensor.dtype} {list(tensor.shape)}"
        raise CheckpointError(f"`{entry.name}` is {found}, not {entry.dtype} {list(entry.shape)}")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
