"""`fxpar.index.json`: which part of which tensor lies in which file. No torch here.

A part is a list of boxes. Two files with the same boxes of a tensor hold replicas of it; other boxes never overlap, and
together they are the whole tensor.

    {"format": 1, "source": {"model": "model.py", "hash": "..."},
     "mesh": {"pp": 1, "tp": 2}, "ranks": ["model-pp0-tp0.safetensors", "model-pp0-tp1.safetensors"],
     "ties": {"head.weight": "tokens.weight"},
     "tensors": {
      "tokens.weight": {"dtype": "F32", "shape": [512, 64], "dims": ["vocab", "64"],
       "placement": {"tp": "Shard(0, vocab)"},
       "files": {"model-pp0-tp0.safetensors": [[[0, 0], [256, 64], [0, 0]]], ...}}}}

A box is [offsets in the whole tensor, sizes, offsets in the file's tensor].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fxpar.errors import CheckpointError

NAME = "fxpar.index.json"
#: Raised whenever an older reader would misunderstand what is written.
FORMAT = 1


class Part(NamedTuple):
    """A box of a whole tensor, and where it lies in the tensor of a file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    local: tuple[int, ...]


@dataclass(frozen=True)
class Indexed:
    """A tensor: its dtype as safetensors writes it, global shape, dims, placement by mesh dim, and parts by file."""

    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    placement: Mapping[str, str]
    files: Mapping[str, tuple[Part, ...]]

    def local_shape(self, file: str) -> tuple[int, ...]:
        """The shape of the tensor in a file."""
        parts = self.files[file]
        return tuple(max(p.local[dim] + p.sizes[dim] for p in parts) for dim in range(len(self.shape)))


@dataclass(frozen=True)
class Index:
    """The tensors of a checkpoint, the mesh that it was written for, and the file of each of its ranks."""

    source: str
    hash: str
    mesh: Mapping[str, int]
    ranks: tuple[str, ...]
    tensors: Mapping[str, Indexed]
    ties: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file, in the order of the ranks."""
        return tuple(dict.fromkeys(self.ranks))

    def names(self, file: str) -> list[str]:
        """The tensors that a file holds."""
        return [name for name, tensor in self.tensors.items() if file in tensor.files]

    def to_json(self) -> str:
        """The index as text, one line for each tensor; the same for the same index."""
        head = {
            "format": FORMAT,
            "source": {"model": self.source, "hash": self.hash},
            "mesh": dict(self.mesh),
            "ranks": self.ranks,
            "ties": dict(self.ties),
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        rows = [f"  {json.dumps(name)}: {json.dumps(entry(t))}" for name, t in self.tensors.items()]
        tensors = "{\n" + ",\n".join(rows) + "\n }" if rows else "{}"
        return "{\n" + ",\n".join([*lines, f' "tensors": {tensors}']) + "\n}\n"

    @staticmethod
    def from_json(text: str, origin: str = NAME) -> Index:
        """Read what `to_json` wrote. Raises CheckpointError, naming `origin`, for anything else."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise CheckpointError(f"{origin} has format {data['format']}, this fxpar reads {FORMAT}")
            source = data["source"]
            tensors = {name: _indexed(each) for name, each in data["tensors"].items()}
            return Index(
                source["model"], source["hash"], data["mesh"], tuple(data["ranks"]), tensors, data["ties"]
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{origin} is damaged", details=[str(error)]) from error

    @staticmethod
    def read(path: Path) -> Index:
        """Read the index of a folder, or an index by its path. Raises CheckpointError."""
        path = path / NAME if path.is_dir() else path
        try:
            return Index.from_json(path.read_text(encoding="utf-8"), path.name)
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error


def entry(tensor: Indexed) -> dict[str, Any]:
    """A tensor as plain data."""
    return {
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "dims": tensor.dims,
        "placement": dict(tensor.placement),
        "files": {file: [list(part) for part in parts] for file, parts in tensor.files.items()},
    }


def _indexed(data: Mapping[str, Any]) -> Indexed:
    files = {file: tuple(_part(part) for part in parts) for file, parts in data["files"].items()}
    return Indexed(data["dtype"], tuple(data["shape"]), tuple(data["dims"]), data["placement"], files)


def _part(data: Sequence[Sequence[int]]) -> Part:
    offsets, sizes, local = data
    return Part(tuple(offsets), tuple(sizes), tuple(local))


def metadata(index: Index, file: str) -> dict[str, str]:
    """The `__metadata__` of a file: its part of the index, and where its tensors lie for torch.distributed.checkpoint.

    torch's `HuggingFaceStorageReader` knows one offset for each tensor. One of several boxes is given an offset outside
    of the whole, so that torch refuses it as of another size instead of loading it wrongly.
    """
    held = {name: index.tensors[name] for name in index.names(file)}
    offsets = {
        name: {"saved_offsets": list(t.files[file][0].offsets if len(t.files[file]) == 1 else t.shape)}
        for name, t in held.items()
    }
    own = {name: {**entry(t), "files": {file: entry(t)["files"][file]}} for name, t in held.items()}
    mine = {"format": FORMAT, "hash": index.hash, "mesh": dict(index.mesh), "file": file, "tensors": own}
    return {
        "format": "pt",
        "fxpar": json.dumps(mine, separators=(",", ":")),
        "DCP_VERSION": "1.0",
        "DCP_SHARDING_INFO": json.dumps(offsets, separators=(",", ":")),
    }
