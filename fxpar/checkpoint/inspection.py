"""What a checkpoint holds, as plain data and as a table for people. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fxpar.checkpoint import dtypes
from fxpar.checkpoint.index import Indexed
from fxpar.checkpoint.request import in_words
from fxpar.checkpoint.stored import Stored, open_folder
from fxpar.errors import CheckpointError

FXPAR, HUGGING_FACE = "fxpar", "Hugging Face"


def inspection(path: Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """The layout, mesh, files, ties and tensors of a checkpoint; of the tensors those whose names fit a pattern.

    Bytes are those of the whole tensors, without replicas, and of each file all that it holds. Raises CheckpointError
    for a checkpoint that is not whole, and for a pattern that fits no name.
    """
    stored = open_folder(path)
    index = stored.index
    for pattern in names:
        if not any(fnmatchcase(name, pattern) for name in index.tensors):
            near = [f"did you mean `{name}`?" for name in get_close_matches(pattern, index.tensors, n=1)]
            raise CheckpointError(f"{path} has no tensor `{pattern}`", details=near)
    chosen = {
        name: tensor
        for name, tensor in index.tensors.items()
        if not names or any(fnmatchcase(name, pattern) for pattern in names)
    }
    return {
        "layout": FXPAR if stored.ours else HUGGING_FACE,
        "source": index.source,
        "mesh": {dim: size for dim, size in index.mesh.items() if size > 1},
        "bytes": sum(map(_bytes, index.tensors.values())),
        "files": {
            file: sum(span.stop - span.start for span in header.tensors.values())
            for file, header in _files(stored)
        },
        "ties": dict(index.ties),
        "tensors": {name: _tensor(tensor) for name, tensor in chosen.items()},
    }


def _files(stored: Stored) -> list[tuple[str, Any]]:
    return sorted(stored.headers.items())


def _bytes(tensor: Indexed) -> int:
    return dtypes.size(tensor.dtype, tensor.shape)


def _tensor(tensor: Indexed) -> dict[str, Any]:
    return {
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "dims": list(tensor.dims),
        "bytes": _bytes(tensor),
        "placement": {dim: word for dim, word in tensor.placement.items() if word != "Replicate"},
        "files": {file: [list(part.sizes) for part in parts] for file, parts in tensor.files.items()},
    }


def text(found: Mapping[str, Any]) -> str:
    """The same for people: a line about all, one for each file, and one for each tensor."""
    mesh = " x ".join(f"{dim} {size}" for dim, size in found["mesh"].items())
    head = [f"{found['layout']} layout", *([mesh] if mesh else []), f"{in_words(found['bytes'])} of tensors"]
    files = [[file, in_words(size)] for file, size in found["files"].items()]
    ties = [f"{name} is {first}" for name, first in found["ties"].items()]
    rows = [
        [
            name,
            f"{tensor['dtype']}{tensor['shape']}",
            ", ".join(tensor["dims"]),
            ", ".join(f"{word} over {dim}" for dim, word in tensor["placement"].items()) or "whole",
            _held(tensor["files"]),
        ]
        for name, tensor in found["tensors"].items()
    ]
    return "\n".join([", ".join(head), "", *_table(files), "", *_table(rows), *ties])


def _held(files: Mapping[str, Sequence[Any]]) -> str:
    return f"{len(files)} files" if len(files) > 1 else "1 file"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
