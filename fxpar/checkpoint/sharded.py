"""Weights from a checkpoint in fxpar's layout: boxes of whole tensors, put together from the boxes that files hold.

    wanted          files                       read
    +-------+       +---+---+                   +---+---+
    |  ###  |       | a | b |      ->           | a#|#b |     of each file only what both have
    +-------+       +---+---+                   +---+---+

A replica that several files hold is read from the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fxpar.checkpoint import header, paths, proof, span
from fxpar.checkpoint.box import Box
from fxpar.checkpoint.header import Header
from fxpar.checkpoint.index import NAME, SHARDED, SINGLE, Index, Indexed, Part
from fxpar.checkpoint.stored import labelled, refuse
from fxpar.checkpoint.weights import DTYPES, FileWeights, Weights, assemble, checked
from fxpar.errors import CheckpointError


def open_weights(path: Path) -> Weights:
    """The weights of a checkpoint in either layout, or of one safetensors file. Raises CheckpointError."""
    if (path / NAME).is_file():
        return CheckpointWeights(path)
    if not path.exists():
        raise CheckpointError(f"there is no {path}")
    if path.is_dir() and not any((path / name).exists() for name in (SINGLE, SHARDED)):
        inside = sorted(file.parent.name for file in path.glob(f"*/{NAME}"))
        near = [f"did you mean {path / inside[-1]}?"] if inside else []
        raise CheckpointError(
            f"{path} is no checkpoint: it has no {NAME}, {SHARDED} or {SINGLE}", details=near
        )
    return FileWeights.of(path)


class CheckpointWeights:
    """The tensors of a folder with a `fxpar.index.json`, whatever mesh it was written for.

    Only what is asked for is read, and only the headers of files that have some of it. `names` are those of the model;
    the state of an optimizer, which stands in the same index, is read by its own names.
    """

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError for a folder without an index, or one whose boxes are not each tensor exactly once."""
        if not (folder / NAME).is_file():
            raise CheckpointError(f"{folder} is no checkpoint: it has no {NAME}")
        self.folder, self.index = folder, Index.read(folder)
        refuse(f"{folder / NAME} is damaged", proof.sound(self.index))
        self._parts: dict[str, list[tuple[Part, str]]] = {}
        self._headers: dict[str, Header] = {}

    def names(self) -> list[str]:
        """The names of the model's tensors."""
        return [name for name, tensor in self.index.tensors.items() if not tensor.of]

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the whole tensor."""
        return self._tensor(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype."""
        code = self._tensor(name).dtype
        if code not in DTYPES:
            raise CheckpointError(f"{self.folder}: `{name}` has dtype {code}, which torch cannot hold")
        return DTYPES[code]

    def read(self, name: str, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """The boxes as one new tensor. Raises CheckpointError for a file that is missing or damaged."""
        wanted = checked(name, self.shape(name), boxes)
        return assemble(wanted, [self._box(name, box) for box in wanted])

    def check(self, wanted: Mapping[str, Sequence[Part]]) -> None:
        """Read the headers of all files that have some of these parts. Raises CheckpointError for all that is wrong."""
        files = {
            file: None
            for name, parts in wanted.items()
            for own in parts
            for part, file in self._distinct(name)
            if meet(part, Box(own.offsets, own.sizes))
        }
        wrong = []
        for file in files:
            try:
                self._header(file)
            except CheckpointError as error:
                wrong += [error.what, *error.details]
        refuse(f"{self.folder} is no whole checkpoint", wrong)

    def _tensor(self, name: str) -> Indexed:
        if name not in self.index.tensors:
            raise CheckpointError(f"there are no weights for `{name}`")
        return self.index.tensors[name]

    def _distinct(self, name: str) -> list[tuple[Part, str]]:
        """The boxes of a tensor, each once, and the first file that holds it."""
        if name not in self._parts:
            found: dict[Box, tuple[Part, str]] = {}
            for file, parts in self._tensor(name).files.items():
                for part in parts:
                    found.setdefault(Box(part.offsets, part.sizes), (part, file))
            self._parts[name] = list(found.values())
        return self._parts[name]

    def _box(self, name: str, box: Box) -> torch.Tensor:
        result = torch.empty(box.sizes, dtype=self.dtype(name))
        for part, file in self._distinct(name):
            common = meet(part, box)
            if common is None:
                continue
            inside = tuple(at + c - p for at, c, p in zip(part.local, common.offsets, part.offsets))
            piece = self._piece(name, file, Box(inside, common.sizes))
            if common == box:
                return piece
            own = tuple(c - b for c, b in zip(common.offsets, box.offsets))
            result[Box(own, common.sizes).slices] = piece
        return result

    def _piece(self, name: str, file: str, box: Box) -> torch.Tensor:
        """A box of a file's own tensor."""
        found = self._header(file)
        shape, dtype = found.tensors[name].shape, self.dtype(name)
        try:
            with found.path.open("rb", buffering=0) as stream:
                return span.read(stream.fileno(), found.start(name), shape, dtype, *box)
        except (OSError, EOFError) as error:
            raise CheckpointError(f"{found.path}: `{name}` cannot be read: {error}") from error

    def _header(self, file: str) -> Header:
        """The header of a file, held against the index."""
        if file not in self._headers:
            if fault := paths.fault(self.folder, file):
                raise CheckpointError(f"{self.folder / file} {fault}")
            found = header.read(self.folder / file)
            wrong = [*proof.agree(self.index, {file: found}), *labelled(self.index, file, found)]
            refuse(f"{found.path} is not what {NAME} says", wrong)
            self._headers[file] = found
        return self._headers[file]


def meet(part: Part, box: Box) -> Box | None:
    """What a part and a box have in common, None if that is nothing."""
    starts = tuple(map(max, part.offsets, box.offsets))
    ends = (min(p + n, b + m) for p, n, b, m in zip(part.offsets, part.sizes, box.offsets, box.sizes))
    sizes = tuple(end - start for start, end in zip(starts, ends))
    return Box(starts, sizes) if all(size > 0 for size in sizes) else None
