"""Are the bytes of a checkpoint what was written, and are two checkpoints the same? No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fxpar.checkpoint import dtypes
from fxpar.checkpoint.copy import Copy
from fxpar.checkpoint.differing import Difference
from fxpar.checkpoint.stored import Stored, open_folder
from fxpar.checkpoint.transfer import Side, Task
from fxpar.errors import CheckpointError

Progress = Callable[[int, int], object]


def _quiet(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Checked:
    """How many tensors and bytes were looked at, how many of the tensors' parts have a checksum, and what is wrong."""

    tensors: int
    bytes: int
    summed: int = 0
    parts: int = 0
    wrong: list[str] = field(default_factory=list)


def verify(path: Path, progress: Progress = _quiet) -> Checked:
    """Read all of a checkpoint: every part against its crc32, where it has one, and all replicas against each other.

    Raises CheckpointError if headers or index say already that it is not whole.
    """
    stored = open_folder(path)
    tensors = stored.index.tensors.values()
    parts = [(tensor, file) for tensor in tensors for file in tensor.files]
    tasks = _Alone(stored.side)
    wrong = _run(tasks, progress)
    summed = sum(file in tensor.crc32 for tensor, file in parts)
    return Checked(len(tasks), tasks.bytes, summed, len(parts), wrong)


def diff(first: Path, second: Path, progress: Progress = _quiet) -> Checked:
    """Compare two checkpoints of any layouts, byte by byte; tied tensors may stand under any of their names.

    Raises CheckpointError if one of them is not whole.
    """
    one, two = open_folder(first), open_folder(second)
    aliases = {**_aliases(two), **{name: name for name in two.index.tensors}}
    partners = ((name, _partner(one, name, aliases)) for name in one.index.tensors)
    pairs = {name: other for name, other in partners if other is not None}
    wrong = [f"`{name}` is only in {first}" for name in one.index.tensors if name not in pairs]
    found = set(pairs.values())
    wrong += [f"`{name}` is only in {second}" for name in two.index.tensors if name not in found]
    same = {}
    for name, other in pairs.items():
        a, b = one.index.tensors[name], two.index.tensors[other]
        if (a.dtype, a.shape) == (b.dtype, b.shape):
            same[name] = other
        else:
            wrong.append(f"`{name}` is {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}")
    tasks = _Pairs(one.side, two.side, same)
    return Checked(len(tasks), tasks.bytes, wrong=wrong + _run(tasks, progress))


def _aliases(stored: Stored) -> dict[str, str]:
    """The tied names of a checkpoint -> the name under which each stands."""
    return {name: first for name, first in stored.index.ties.items() if first in stored.index.tensors}


def _partner(one: Stored, name: str, names: dict[str, str]) -> str | None:
    """The name of a tensor in another checkpoint, which may be empty; None if it is not there."""
    tied = [other for other, first in one.index.ties.items() if first == name]
    return next((names[each] for each in (name, *tied) if each in names), None)


class _Alone:
    """The tasks that read each tensor of a checkpoint, and write nothing."""

    def __init__(self, side: Side) -> None:
        self._side, self._names = side, list(side.index.tensors)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> Task:
        tensor = self._side.index.tensors[self._names[number]]
        return Task(self._names[number], tensor.dtype, tensor.shape, self._side.held(self._names[number]))

    @property
    def bytes(self) -> int:
        """Of all whole tensors."""
        tensors = (self._side.index.tensors[name] for name in self._names)
        return sum(dtypes.size(tensor.dtype, tensor.shape) for tensor in tensors)


class _Pairs(_Alone):
    """The tasks that read each of some tensors from two checkpoints."""

    def __init__(self, first: Side, second: Side, names: dict[str, str]) -> None:
        super().__init__(first)
        self._other, self._partners, self._names = second, names, list(names)

    def __getitem__(self, number: int) -> Task:
        task = super().__getitem__(number)
        others = self._other.held(self._partners[task.name])
        return Task(task.name, task.dtype, task.shape, task.sources, others=others)


def _run(tasks: _Alone, progress: Progress) -> list[str]:
    """Carry out tasks that only read; say what differs, once for each tensor and file."""
    found: dict[tuple[str, Path], Difference] = {}
    total, done = tasks.bytes, 0

    def told(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    def differs(difference: Difference) -> None:
        found.setdefault((difference.name, difference.path), difference)

    try:
        Copy(tasks, progress=told, differs=differs).run()
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror or error}") from error
    return [str(difference) for _, difference in sorted(found.items())]
