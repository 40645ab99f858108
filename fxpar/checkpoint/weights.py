"""Weights by name, read in boxes: from tensors in memory or from safetensors files. Never unpickles anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from fxpar.checkpoint import span
from fxpar.checkpoint.box import Box as Box
from fxpar.checkpoint.index import SHARDED, SINGLE
from fxpar.errors import CheckpointError

#: What safetensors calls each dtype that torch has.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


class Weights(Protocol):
    """Where weights come from. Unknown names and boxes outside of the tensor raise CheckpointError."""

    def names(self) -> Sequence[str]:
        """The names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the whole tensor."""

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype."""

    def read(self, name: str, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """The boxes as one tensor, or the whole tensor without them; see `assemble`."""


class TensorWeights:
    """Weights in memory, such as a model's `state_dict`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the whole tensor."""
        return tuple(self._tensor(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype."""
        return self._tensor(name).dtype

    def read(self, name: str, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """The boxes as one new tensor. Raises CheckpointError for a tensor on meta, which has no values."""
        tensor = self._tensor(name).detach()
        if tensor.is_meta:
            raise CheckpointError(f"`{name}` has no value: it lies on the meta device")
        wanted = checked(name, tuple(tensor.shape), boxes)
        return assemble(wanted, [tensor[box.slices] for box in wanted]).clone()

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"there are no weights for `{name}`")
        return self._tensors[name]


class FileWeights:
    """Weights in safetensors files, under the keys that stand there; only what is asked for is read."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """`files` tells for each key which file holds it; see `files_of`."""
        self._files = dict(files)
        self._open: dict[Path, Any] = {}
        self._starts: dict[Path, dict[str, int]] = {}

    @classmethod
    def of(cls, path: Path) -> FileWeights:
        """The weights in a safetensors file, or in a folder in Hugging Face's layout. Raises CheckpointError."""
        return cls(files_of(path))

    def names(self) -> list[str]:
        """The keys of all tensors."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the whole tensor, from the file's header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype, from the file's header."""
        code = self._slice(name).get_dtype()
        if code not in DTYPES:
            raise CheckpointError(f"{self._files[name]}: `{name}` has dtype {code}, which torch cannot hold")
        return DTYPES[code]

    def read(self, name: str, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """The boxes as one new tensor."""
        shape, dtype = self.shape(name), self.dtype(name)
        wanted = checked(name, shape, boxes)
        path = self._files[name]
        try:
            start = self._start(path, name)
            # Read, not mapped: what was read of a mapped file counts as memory of this process.
            with path.open("rb", buffering=0) as file:
                pieces = [span.read(file.fileno(), start, shape, dtype, *box) for box in wanted]
        except (OSError, EOFError) as error:
            raise CheckpointError(f"{path}: `{name}` cannot be read: {error}") from error
        return assemble(wanted, pieces)

    def _start(self, path: Path, name: str) -> int:
        if path not in self._starts:
            self._starts[path] = span.starts(path)
        return self._starts[path][name]

    def _slice(self, name: str) -> Any:
        if name not in self._files:
            raise CheckpointError(f"there are no weights for `{name}`")
        try:
            return self._file(self._files[name]).get_slice(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self._files[name]}: `{name}`: {error}") from error

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = opened(path)
        return self._open[path]


def files_of(path: Path) -> dict[str, Path]:
    """Key -> file, for a safetensors file or a folder with `model.safetensors` or its index.

    Raises CheckpointError for a folder without either, an index that does not agree with its files, or a file that is
    not safetensors.
    """
    if path.is_file():
        return dict.fromkeys(opened(path).keys(), path)
    if (path / SHARDED).is_file():
        return _indexed(path)
    if (path / SINGLE).is_file():
        return files_of(path / SINGLE)
    raise CheckpointError(f"there is no {SINGLE} and no {SHARDED} in {path}")


def assemble(boxes: Sequence[Box], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put boxes side by side: along each dim in the order of their offsets, as a grid without gaps.

        offsets 0, 8 and 16 of sizes 2 along dim 0  ->  6 rows

    Raises CheckpointError where the boxes are no grid.
    """
    if len(parts) == 1:
        return parts[0]
    rank = len(boxes[0].sizes)
    edges = [sorted({(box.offsets[dim], box.sizes[dim]) for box in boxes}) for dim in range(rank)]
    starts = [_starts(edge) for edge in edges]
    result = parts[0].new_empty([sum(size for _, size in edge) for edge in edges])
    places = {box: [starts[dim][box.offsets[dim]] for dim in range(rank)] for box in boxes}
    if sum(part.numel() for part in parts) != result.numel() or len(places) != len(boxes):
        raise CheckpointError(f"the boxes are no grid: {', '.join(map(str, boxes))}")
    for box, part in zip(boxes, parts):
        result[Box(tuple(places[box]), box.sizes).slices] = part
    return result


def checked(name: str, shape: tuple[int, ...], boxes: Sequence[Box] | None) -> list[Box]:
    """The boxes, all of the tensor if None. Raises CheckpointError where one does not lie inside."""
    if boxes is None:
        return [Box.whole(shape)]
    wanted = [Box(tuple(offsets), tuple(sizes)) for offsets, sizes in boxes]
    for box in wanted:
        inside = len(box.offsets) == len(box.sizes) == len(shape) and all(
            start >= 0 and size >= 0 and start + size <= whole
            for start, size, whole in zip(box.offsets, box.sizes, shape)
        )
        if not inside:
            raise CheckpointError(f"`{name}` is {list(shape)}, and has no box {tuple(box)}")
    if not wanted:
        raise CheckpointError(f"no box of `{name}` is asked for")
    return wanted


def read_same(weights: Weights, names: Sequence[str], boxes: Sequence[Box] | None = None) -> torch.Tensor:
    """The boxes of a tensor that stands under several names. Raises CheckpointError where those differ."""
    found = weights.read(names[0], boxes)
    for other in names[1:]:
        same = weights.shape(other) == weights.shape(names[0])
        if not same or not _equal(weights.read(other, boxes), found):
            raise CheckpointError(
                f"`{names[0]}` and `{other}` are one tensor of the model, and differ in the weights"
            )
    return found


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one shape have the same dtype and bytes: what is not a number is equal to itself."""
    if first.dtype != second.dtype:
        return False
    one, two = (each.contiguous().flatten().view(torch.uint8) for each in (first, second))
    return first.data_ptr() == second.data_ptr() or torch.equal(one, two)


def compare(
    wanted: Mapping[str, Sequence[int]],
    weights: Weights,
    ignored: Sequence[str] = (),
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Hold the names and sizes that a model wants, and their `dtypes` if given, against what there is.

    Raises CheckpointError that lists every missing and unexpected name, and every difference in size or dtype.
    """
    present = set(weights.names())
    missing = sorted(wanted.keys() - present)
    unexpected = sorted(present - wanted.keys() - set(ignored))
    wrong = [
        f"size of `{name}`: {list(weights.shape(name))} in the file, {list(shape)} in the model"
        for name, shape in sorted(wanted.items())
        if name in present and tuple(weights.shape(name)) != tuple(shape)
    ]
    wrong += [
        f"dtype of `{name}`: {weights.dtype(name)} in the file, {dtype} in the model".replace("torch.", "")
        for name, dtype in sorted((dtypes or {}).items())
        if name in present and weights.dtype(name) != dtype
    ]
    details = [f"missing: `{name}`" for name in missing] + [f"unexpected: `{name}`" for name in unexpected]
    if details or wrong:
        raise CheckpointError("the weights do not fit the model", details=[*details, *wrong])


def _starts(edges: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Offset in the whole tensor -> offset in the assembled one."""
    starts, position = {}, 0
    for offset, size in edges:
        starts[offset] = position
        position += size
    return starts


def _indexed(folder: Path) -> dict[str, Path]:
    index = _index(folder / SHARDED)
    names = sorted(set(index.values()))
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{folder / SHARDED}: a file name leads out of the folder")
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(f"{folder / SHARDED}: files are missing", details=absent)
    held = {key: name for name in names for key in opened(folder / name).keys()}  # noqa: SIM118
    details = [f"`{key}` is not in {name}" for key, name in index.items() if held.get(key) != name]
    details += [f"`{key}` of {held[key]} is not in the index" for key in sorted(held.keys() - index.keys())]
    if details:
        raise CheckpointError(f"{folder / SHARDED} does not agree with its files", details=details)
    return {key: folder / name for key, name in index.items()}


def _index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: no `weight_map` can be read: {error}") from error
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"{path}: `weight_map` does not map keys to files")
    return index


def opened(path: Path) -> Any:
    """A safetensors file with its header read. Raises CheckpointError, which names it, for anything else."""
    try:
        opened: AbstractContextManager[Any] = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return opened
