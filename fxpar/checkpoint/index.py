"""`fxpar.index.json`: which part of which tensor lies in which file. No torch here.

A part is a list of boxes. A box that two files have of a tensor is held as a replica; other boxes never overlap, and
together they are the whole tensor.

    {"format": 2, "source": {"model": "model.py", "hash": "..."},
     "mesh": {"pp": 1, "tp": 2}, "ranks": ["model-pp0-tp0.safetensors", "model-pp0-tp1.safetensors"],
     "ties": {"head.weight": "tokens.weight"},
     "rows": {"heads": ["tp"], "vocab": ["tp~"]}, "extends": {"heads": "groups"},
     "tensors": {
      "tokens.weight": {"dtype": "F32", "shape": [512, 64], "dims": ["vocab=512", "hidden=64"], "at": [0],
       "placement": {"tp": "Shard(0, vocab)"},
       "files": {"model-pp0-tp0.safetensors": [[[0, 0], [256, 64], [0, 0]]], ...},
       "crc32": {"model-pp0-tp0.safetensors": 305419896, ...}}}}

A box is [offsets in the whole tensor, sizes, offsets in the file's tensor]. `dims` (see `notation.py`), `rows` and
`extends` (the table of splits) tell how a tensor may be split for another mesh, `at` in which layers it is used, by
their numbers. A tensor of an optimizer says `"of"` which parameter it is. `crc32` is there where it is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fxpar.checkpoint import jsonfile
from fxpar.errors import CheckpointError
from fxpar.mesh import Mesh

#: The index, and that of a partition which was written without weights.
NAME, LAYOUT = "fxpar.index.json", "fxpar.layout.json"
#: What Hugging Face calls a file that holds all, and the index of several.
SINGLE, SHARDED = "model.safetensors", "model.safetensors.index.json"
#: Raised whenever an older reader would misunderstand what is written.
FORMAT = 2
_COMPACT = json.JSONEncoder(separators=(",", ":")).encode


class Part(NamedTuple):
    """A box of a whole tensor, and where it lies in the tensor of a file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    local: tuple[int, ...]


@dataclass(frozen=True)
class Indexed:
    """A tensor: its dtype as safetensors writes it, global shape, dims, placement by mesh dim, and parts by file.

    `at` are the numbers of the layers that use it, `of` the parameter whose optimizer state it is, `crc32` the
    checksums of its bytes by file.
    """

    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    placement: Mapping[str, str]
    files: Mapping[str, tuple[Part, ...]]
    at: tuple[int, ...] = (0,)
    of: str = ""
    crc32: Mapping[str, int] = field(default_factory=dict)

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
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The table of splits: axis -> mesh dims with their marks, in the order of precedence."""
    extends: Mapping[str, str] = field(default_factory=dict)
    """Axis -> the axis that takes what is left of a mesh dim larger than its instances."""

    @property
    def files(self) -> tuple[str, ...]:
        """Every file: those of the ranks in their order, then those with what else is kept."""
        return tuple(dict.fromkeys([*self.ranks, *(file for t in self.tensors.values() for file in t.files)]))

    def names(self, file: str) -> list[str]:
        """The tensors that a file holds."""
        return [name for name, tensor in self.tensors.items() if file in tensor.files]

    def file_of(self, rank: int, name: str) -> str:
        """The file from which a rank reads a tensor: its own, or that of the first along `pp` that holds it too.

        Raises KeyError for a tensor that neither has.
        """
        mesh, files = Mesh(self.mesh), self.tensors[name].files
        spot = mesh.coordinate(rank)
        firsts = (mesh.rank(spot | {"pp": place}) for place in range(mesh.sizes.get("pp", 1)))
        found = next((file for each in (rank, *firsts) if (file := self.ranks[each]) in files), None)
        if found is None:
            raise KeyError(name)
        return found

    def parts_of(self, rank: int, name: str) -> tuple[Part, ...]:
        """What a rank holds of a tensor. Raises KeyError as `file_of`."""
        return self.tensors[name].files[self.file_of(rank, name)]

    def summed(self, crc32: Mapping[str, Mapping[str, int]]) -> Index:
        """The index with the checksums of tensors, by file and name."""
        tensors = {
            name: replace(each, crc32={f: crc32[f][name] for f in each.files if name in crc32.get(f, {})})
            for name, each in self.tensors.items()
        }
        return replace(self, tensors=tensors)

    def to_json(self) -> str:
        """The index as text, one line for each tensor; the same for the same index."""
        head = {
            "format": FORMAT,
            "source": {"model": self.source, "hash": self.hash},
            "mesh": dict(self.mesh),
            "ranks": self.ranks,
            "ties": dict(self.ties),
            "rows": dict(self.rows),
            "extends": dict(self.extends),
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        rows = [f"  {json.dumps(name)}: {json.dumps(entry(t))}" for name, t in self.tensors.items()]
        tensors = "{\n" + ",\n".join(rows) + "\n }" if rows else "{}"
        return "{\n" + ",\n".join([*lines, f' "tensors": {tensors}']) + "\n}\n"

    @staticmethod
    def from_json(text: str, origin: str = NAME) -> Index:
        """Read what `to_json` wrote. Raises CheckpointError, naming `origin`, for anything else."""
        try:
            data = json.loads(text, object_pairs_hook=_read)
            _check_format(data["format"], origin)
            source = data["source"]
            tensors = {name: _named(name, each) for name, each in data["tensors"].items()}
            return Index(
                _text(source["model"]),
                _text(source["hash"]),
                {_text(dim): _count(size) for dim, size in data["mesh"].items()},
                tuple(_text(file) for file in data["ranks"]),
                tensors,
                {_text(name): _text(first) for name, first in data["ties"].items()},
                {axis: _texts(words) for axis, words in data["rows"].items()},
                {axis: _text(other) for axis, other in data["extends"].items()},
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{origin} is damaged", details=[reason]) from error

    @staticmethod
    def read(path: Path) -> Index:
        """Read the index of a folder, or an index by its path. Raises CheckpointError."""
        path = path / NAME if path.is_dir() else path
        return Index.from_json(jsonfile.text(path), path.name)


@lru_cache(maxsize=4096)
def shared(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Equal parts as one object: thousands of tensors have the same."""
    return parts


def file_name(family: str, spot: Mapping[str, int]) -> str:
    """The file of the ranks at some coordinates: `model-pp0-tp1.safetensors`."""
    return "-".join([family, *(f"{dim}{at}" for dim, at in spot.items())]) + ".safetensors"


def entry(tensor: Indexed, file: str = "") -> dict[str, Any]:
    """A tensor as plain data; with `file` only what that file has, without its checksum."""
    files = {file: tensor.files[file]} if file else tensor.files
    made: dict[str, Any] = {
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "dims": tensor.dims,
        "at": tensor.at,
    }
    if tensor.of:
        made["of"] = tensor.of
    made["placement"] = dict(tensor.placement)
    made["files"] = {file: [list(part) for part in parts] for file, parts in files.items()}
    if tensor.crc32 and not file:
        made["crc32"] = dict(tensor.crc32)
    return made


def _check_format(found: Any, origin: str) -> None:
    if type(found) is int and found == FORMAT:
        return
    newer = type(found) is int and found > FORMAT
    raise CheckpointError(
        f"{origin} has format {found!r:.20}, this fxpar reads {FORMAT}",
        details=["a newer fxpar wrote it: install that one"] if newer else [],
    )


def _read(pairs: list[tuple[str, Any]]) -> Any:
    """A mapping in which no key stands twice; a tensor at once, as thousands of them would take much as plain data."""
    found = jsonfile.once(pairs)
    try:
        return _indexed(found) if "files" in found else found
    except (KeyError, TypeError, AttributeError, ValueError):
        return found  # What is wrong is said when its name is known.


def _named(name: str, data: Any) -> Indexed:
    """A tensor whose errors name it."""
    if isinstance(data, Indexed):
        return data
    try:
        return _indexed(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"`{name}`: {reason}") from error


def _indexed(data: Mapping[str, Any]) -> Indexed:
    shape = tuple(_count(size) for size in data["shape"])
    files = {
        file: shared(tuple(_part(part, shape) for part in parts)) for file, parts in data["files"].items()
    }
    if not files or not all(files.values()):
        raise ValueError("a tensor has no boxes")
    dims = _texts(data["dims"])
    if len(dims) != len(shape):
        raise ValueError(f"a tensor of shape {list(shape)} has the dims {list(dims)}")
    return Indexed(
        _text(data["dtype"]),
        shape,
        dims,
        {dim: _text(word) for dim, word in data["placement"].items()},
        files,
        tuple(_count(layer) for layer in data["at"]),
        _text(data.get("of", "")),
        {file: _count(value) for file, value in data.get("crc32", {}).items()},
    )


def _part(data: Sequence[Sequence[int]], shape: tuple[int, ...]) -> Part:
    offsets, sizes, local = (tuple(_count(number) for number in numbers) for numbers in data)
    inside = len(offsets) == len(sizes) == len(local) == len(shape) and all(
        start + size <= whole for start, size, whole in zip(offsets, sizes, shape)
    )
    if not inside:
        raise ValueError(f"a tensor of shape {list(shape)} has no box {[list(each) for each in data]}")
    return Part(offsets, sizes, local)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list of texts")
    return tuple(_text(each) for each in value)


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
    # Tensor by tensor: all of them as plain data would take more than the text.
    own = ",".join(f"{_COMPACT(name)}:{_COMPACT(entry(t, file))}" for name, t in held.items())
    mine = {"format": FORMAT, "hash": index.hash, "mesh": dict(index.mesh), "file": file}
    return {
        "format": "pt",
        "fxpar": f'{_COMPACT(mine)[:-1]},"tensors":{{{own}}}}}',
        "DCP_VERSION": "1.0",
        "DCP_SHARDING_INFO": _COMPACT(offsets),
    }
