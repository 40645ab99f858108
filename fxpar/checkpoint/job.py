"""A task that is under way, and the tiles of it that threads carry out one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fxpar.checkpoint import dtypes
from fxpar.checkpoint.crc import Sum
from fxpar.checkpoint.tile import Tile, tiling
from fxpar.checkpoint.transfer import Task


class Underway:
    """A task: how it is cut, which parts are compared, which holders are summed up, and their sums so far."""

    def __init__(self, number: int, task: Task, checksums: bool, most: int) -> None:
        """`checksums`: every target is summed up, and every reader whose crc32 is known."""
        geometry = task.geometry
        self.number, self.task = number, task
        self.holders, self.readers = task.holders, len(task.readers)
        self.unit, self.bits = geometry.unit, dtypes.BITS[task.dtype]
        self.tiling = tiling(geometry, most)
        self.repeated = geometry.repeated(len(task.sources))
        self.summed = [
            checksums and (number >= self.readers or held.crc32 is not None)
            for number, held in enumerate(self.holders)
        ]
        self.left = self.tiling.count
        self._sums = [Sum() if wanted else None for wanted in self.summed]

    def add(self, tile: Tile, sums: Sequence[int]) -> None:
        """Take in the checksums of a tile's runs, those of holders that are not summed up left out."""
        rest = iter(sums)
        for total, runs in zip(self._sums, tile.holders):
            if total is not None:
                for run in runs:
                    total.add(run.start, run.bytes, next(rest))
        self.left -= 1

    def sums(self) -> list[int | None]:
        """The crc32 of each holder's tensor when all tiles are done."""
        return [
            None if total is None else total.result(held.bytes(self.task.dtype))
            for total, held in zip(self._sums, self.holders)
        ]


class Job(NamedTuple):
    """A tile of a task, and its number there."""

    of: Underway
    step: int
    tile: Tile
