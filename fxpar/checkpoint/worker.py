"""What a thread does with a tile, in two buffers of a tile's size.

file -> tile -> file            rows, or all bytes of a tile: directly, without a copy in memory
file -> run -> tile             columns: the run of a file is read at once, then copied to its place in the tile
        tile -> run -> file                       and the reverse
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxpar.checkpoint.differing import Difference, element
from fxpar.checkpoint.handles import Handles, fill, put
from fxpar.checkpoint.job import Job
from fxpar.checkpoint.tile import Move, Run
from fxpar.checkpoint.transfer import Held
from fxpar.checkpoint.writeback import Writeback

UNITS: dict[int, type[np.unsignedinteger[Any]]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
Array = NDArray[np.unsignedinteger[Any]]


class Worker:
    """The buffers of one thread."""

    def __init__(
        self, inputs: Handles, outputs: Handles, differs: Callable[[Difference], None], most: int
    ) -> None:
        """`differs` is told of parts that are not the same in two files; a tile has at most `most` bytes."""
        self._inputs, self._outputs, self._differs = inputs, outputs, differs
        self._tile = np.empty(most, np.uint8)
        self._run = np.empty(most, np.uint8)
        self._views = self._tile.data, self._run.data
        self._sums: dict[tuple[int, int], int] = {}
        self._writeback = Writeback()

    def copy(self, job: Job) -> list[int]:
        """Copy a tile; return the checksums of its runs in all holders that are summed up. Raises OSError."""
        self._sums.clear()
        tile = self._tile[: job.tile.bytes].view(UNITS[job.of.unit]).reshape(job.tile.shape)
        sums = []
        for number, (held, runs) in enumerate(zip(job.of.holders, job.tile.holders)):
            for run in runs:
                read = number < job.of.readers
                data = self._read(job, number, run, tile) if read else self._write(held, run, tile)
                if job.of.summed[number]:
                    sums.append(self._sum(run, data))
        return sums

    def lies_there(self, job: Job, sums: list[int]) -> bool:
        """Whether the files that are written to have a tile already, by its checksums."""
        runs = [
            (number, run)
            for number, wanted in enumerate(job.of.summed)
            if wanted
            for run in job.tile.holders[number]
        ]
        if len(sums) != len(runs):
            return False
        for (number, run), wanted in zip(runs, sums):
            if number >= job.of.readers:
                held = job.of.holders[number]
                with self._outputs.open(held.path) as file:
                    data = self._views[1][: run.bytes]
                    fill(file, data, held.start + run.start)
                if zlib.crc32(data) != wanted:
                    return False
        return True

    def _read(self, job: Job, number: int, run: Run, tile: Array) -> memoryview:
        """Read a run and put it into the tile, or compare what lies there already; return its bytes."""
        held = job.of.holders[number]
        repeated = {move.part for move in run.moves if (number, move.part) in job.of.repeated}
        direct = run.place is not None and not repeated
        data = self._place(run) if direct else self._views[1][: run.bytes]
        with self._inputs.open(held.path) as file:
            fill(file, data, held.start + run.start)
        if not direct:
            values = self._run[: run.bytes].view(tile.dtype).reshape(run.shape)
            for move in run.moves:
                if move.part in repeated:
                    self._compare(job, number, move, tile[move.tile], values[move.run])
                else:
                    tile[move.tile] = values[move.run]
        return data

    def _write(self, held: Held, run: Run, tile: Array) -> memoryview:
        """Write a run of a tile; return its bytes."""
        if run.place is not None:
            data = self._place(run)
        else:
            values = self._run[: run.bytes].view(tile.dtype).reshape(run.shape)
            for move in run.moves:
                values[move.run] = tile[move.tile]
            data = self._views[1][: run.bytes]
        with self._outputs.open(held.path) as file:
            put(file, data, held.start + run.start)
            self._writeback.wrote(held.path, file, run.bytes)
        return data

    def _place(self, run: Run) -> memoryview:
        assert run.place is not None
        return self._views[0][run.place : run.place + run.bytes]

    def _sum(self, run: Run, data: memoryview) -> int:
        """The crc32 of a run; bytes of the tile that were read and are written as they are, are summed up once."""
        if run.place is None or data.obj is not self._views[0].obj:
            return zlib.crc32(data)
        key = run.place, run.bytes
        if key not in self._sums:
            self._sums[key] = zlib.crc32(data)
        return self._sums[key]

    def _compare(self, job: Job, number: int, move: Move, first: Array, second: Array) -> None:
        """Tell of the first element that is not the same in a tile and in a run."""
        if np.array_equal(first, second):
            return
        task = job.of.task
        step = tuple(np.argwhere(first != second)[0])
        byte = job.of.tiling.byte(job.step, [part.start + int(at) for part, at in zip(move.tile, step)])
        byte += next(
            n for n, (a, b) in enumerate(zip(first[step].tobytes(), second[step].tobytes())) if a != b
        )
        index = element(byte, job.of.bits, task.shape)
        other = next(held.path.name for held in task.readers if held.has(index))
        what = f"differs at {list(index)} from {other}, and should be the same"
        self._differs(Difference(task.name, job.of.holders[number].path, what, index))
