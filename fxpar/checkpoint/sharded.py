"""Weights from a checkpoint in fxpar's layout: boxes of whole tensors, put together from the boxes that files hold.

    wanted          files                       read
    +-------+       +---+---+                   +---+---+
    |  ###  |       | a | b |      ->           | a#|#b |     of each file only what both have
    +-------+       +---+---+                   +---+---+

A replica that several files hold is read from the first of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from fxpar.checkpoint import span
from fxpar.checkpoint.index import NAME, Index, Indexed, Part
from fxpar.checkpoint.weights import DTYPES, Box, FileWeights, Weights, assemble, checked, opened
from fxpar.errors import CheckpointError


def open_weights(path: Path) -> Weights:
    """The weights of a checkpoint in either layout, or of one safetensors file. Raises CheckpointError."""
    if (path / NAME).is_file():
        return CheckpointWeights(path)
    if not path.exists():
        raise CheckpointError(f"there is no {path}")
    return FileWeights.of(path)


class CheckpointWeights:
    """The tensors of a folder with a `fxpar.index.json`, whatever mesh it was written for.

    Only what is asked for is read, and only the headers of files that have some of it. `names` are those of the model;
    the state of an optimizer, which stands in the same index, is read by its own names.
    """

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError for a folder without an index, or one that cannot be read."""
        if not (folder / NAME).is_file():
            raise CheckpointError(f"{folder} is no checkpoint: it has no {NAME}")
        self.folder, self.index = folder, Index.read(folder)
        self._parts: dict[str, list[tuple[Part, str]]] = {}
        self._headers: dict[str, tuple[Any, dict[str, int]]] = {}

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
        """The boxes as one new tensor. Raises CheckpointError for what no file has, and for what two disagree on."""
        wanted = checked(name, self.shape(name), boxes)
        return assemble(wanted, [self._box(name, box) for box in wanted])

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
        pieces = [(common, part, file) for part, file in self._distinct(name) if (common := meet(part, box))]
        self._check_cover(name, box, [common for common, _, _ in pieces])
        for common, part, file in pieces:
            inside = tuple(at + c - p for at, c, p in zip(part.local, common.offsets, part.offsets))
            piece = self._piece(name, file, Box(inside, common.sizes))
            if common == box:
                return piece
            own = tuple(c - b for c, b in zip(common.offsets, box.offsets))
            result[Box(own, common.sizes).slices] = piece
        return result

    def _check_cover(self, name: str, box: Box, found: Sequence[Box]) -> None:
        missing = [box] if prod(box.sizes) else []
        for common in found:
            missing = [rest for each in missing for rest in without(each, common)]
        if missing:
            raise CheckpointError(
                f"{self.folder}: no file has a part of `{name}` {list(self.shape(name))}",
                details=[f"missing: offsets {list(b.offsets)}, sizes {list(b.sizes)}" for b in missing],
            )
        if sum(prod(common.sizes) for common in found) != prod(box.sizes):
            raise CheckpointError(f"{self.folder}: boxes of `{name}` overlap", details=_lines(found))

    def _piece(self, name: str, file: str, box: Box) -> torch.Tensor:
        """A box of a file's own tensor."""
        path, shape = self.folder / file, self._tensor(name).local_shape(file)
        start = self._start(file, name)
        try:
            with path.open("rb", buffering=0) as stream:
                return span.read(stream.fileno(), start, shape, self.dtype(name), *box)
        except (OSError, EOFError) as error:
            raise CheckpointError(f"{path}: `{name}` cannot be read: {error}") from error

    def _start(self, file: str, name: str) -> int:
        """Where a tensor starts in its file, which is held against the index. Raises CheckpointError."""
        header, starts = self._header(file)
        if name not in starts:
            raise CheckpointError(f"{self.folder / file} has no `{name}`, as {NAME} says")
        found = header.get_slice(name)
        has = found.get_dtype(), tuple(found.get_shape())
        tensor = self._tensor(name)
        if has != (tensor.dtype, tensor.local_shape(file)):
            wanted = f"{tensor.dtype} {list(tensor.local_shape(file))}"
            what = f"{self.folder / file}: `{name}` is {has[0]} {list(has[1])}, and {wanted} by {NAME}"
            raise CheckpointError(what)
        return starts[name]

    def _header(self, file: str) -> tuple[Any, dict[str, int]]:
        if file not in self._headers:
            path = self.folder / file
            if Path(file).name != file or path.resolve().parent != self.folder.resolve():
                raise CheckpointError(f"{self.folder / NAME}: `{file}` leads out of the folder")
            if not path.is_file():
                raise CheckpointError(f"{self.folder} lacks the file {file}")
            self._headers[file] = opened(path), span.starts(path)
        return self._headers[file]


def meet(part: Part, box: Box) -> Box | None:
    """What a part and a box have in common, None if that is nothing."""
    starts = tuple(map(max, part.offsets, box.offsets))
    ends = (min(p + n, b + m) for p, n, b, m in zip(part.offsets, part.sizes, box.offsets, box.sizes))
    sizes = tuple(end - start for start, end in zip(starts, ends))
    return Box(starts, sizes) if all(size > 0 for size in sizes) else None


def without(box: Box, taken: Box) -> Iterator[Box]:
    """What is left of a box without another one, as disjoint boxes."""
    common = meet(Part(taken.offsets, taken.sizes, taken.offsets), box)
    if common is None:
        yield box
        return
    offsets, sizes = list(box.offsets), list(box.sizes)
    for dim, (start, size) in enumerate(zip(common.offsets, common.sizes)):
        for first, length in (
            (offsets[dim], start - offsets[dim]),
            (start + size, offsets[dim] + sizes[dim] - start - size),
        ):
            if length > 0:
                yield Box(
                    (*offsets[:dim], first, *offsets[dim + 1 :]), (*sizes[:dim], length, *sizes[dim + 1 :])
                )
        offsets[dim], sizes[dim] = start, size


def _lines(boxes: Sequence[Box]) -> list[str]:
    return [f"offsets {list(box.offsets)}, sizes {list(box.sizes)}" for box in boxes]
