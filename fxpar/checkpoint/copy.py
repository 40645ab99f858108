"""Carries out tasks on threads, a tile at a time.

Each byte of a source is read once, each byte of a target is written once. Reading, writing, copying and summing up
let other threads run, so two keep two cores busy; with their buffers they take a few MiB each.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from fxpar.checkpoint import differing
from fxpar.checkpoint.differing import Difference
from fxpar.checkpoint.handles import Handles
from fxpar.checkpoint.job import Job, Underway
from fxpar.checkpoint.tile import BYTES
from fxpar.checkpoint.transfer import Task
from fxpar.checkpoint.worker import Worker

#: Threads that copy.
THREADS = 2


class Log(Protocol):
    """Remembers the checksums of tiles that are done."""

    def known(self, task: int, tile: int) -> list[int] | None:
        """The checksums of a tile that an earlier run has written."""

    def add(self, task: int, tile: int, sums: Sequence[int]) -> None:
        """A tile is written."""


class Tasks(Protocol):
    """Tasks by number, made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Task: ...


class Done(NamedTuple):
    """A task that is done, and the crc32 of what each of its `holders` has, None where it was not summed up."""

    task: Task
    sums: list[int | None]

    @property
    def targets(self) -> dict[str, int]:
        """The crc32 by the name of the file that was written, as far as it is known."""
        sums = self.sums[len(self.task.readers) :]
        return {held.path.name: crc32 for held, crc32 in zip(self.task.targets, sums) if crc32 is not None}


def _copied(worker: Worker, job: Job) -> list[int]:
    """Copy a tile. Raises OSError that names the tensor, too."""
    try:
        return worker.copy(job)
    except OSError as error:
        error.strerror = f"{error.strerror} (`{job.of.task.name}`)"
        raise


def _nothing(_: object) -> None:
    pass


class Copy:
    """Copies the tensors of tasks."""

    def __init__(
        self,
        tasks: Tasks,
        *,
        tile: int = BYTES,
        checksums: bool = True,
        log: Log | None = None,
        progress: Callable[[int], object] = _nothing,
        differs: Callable[[Difference], object] = differing.refuse,
        done: Callable[[Done], object] = _nothing,
    ) -> None:
        """Tiles have at most `tile` bytes. With `checksums` targets are summed up, and readers whose crc32 is known.

        `progress` is told the bytes of each tile, `differs` what is not the same in two files or not what it was,
        `done` each task that is finished; all by one thread at a time.
        """
        self._tasks, self._tile, self._checksums = tasks, tile, checksums
        self._log = log if checksums else None
        self._progress, self._differs, self._done = progress, differs, done
        self._lock = threading.Lock()
        self._jobs = self._all_jobs()
        self._failure: BaseException | None = None
        self._inputs, self._outputs = Handles(os.O_RDONLY), Handles(os.O_RDWR)

    def run(self, threads: int = THREADS) -> None:
        """Copy everything, once. The first error stops all threads: OSError, or what a callback raises."""
        started: list[threading.Thread] = []
        try:
            for _ in range(threads):
                started.append(threading.Thread(target=self._work))
                started[-1].start()
            for thread in started:
                thread.join()
        except BaseException as error:  # The keyboard interrupts this thread alone.
            self._failure = error
        for thread in started:
            thread.join()
        self._inputs.close()
        self._outputs.close()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            worker = Worker(self._inputs, self._outputs, self._report, self._tile)
            while (job := self._next()) is not None:
                self._carry_out(worker, job)
        except BaseException as error:
            self._failure = self._failure or error

    def _next(self) -> Job | None:
        with self._lock:
            return None if self._failure else next(self._jobs, None)

    def _all_jobs(self) -> Iterator[Job]:
        for number in range(len(self._tasks)):
            task = Underway(number, self._tasks[number], self._checksums, self._tile)
            if not task.left:
                self._close(task)
            for step in range(task.tiling.count):
                yield Job(task, step, task.tiling.tile(step))

    def _carry_out(self, worker: Worker, job: Job) -> None:
        sums = self._log.known(job.of.number, job.step) if self._log is not None else None
        if sums is None or not worker.lies_there(job, sums):
            sums = _copied(worker, job)
            if self._log is not None:
                self._log.add(job.of.number, job.step, sums)
        with self._lock:
            job.of.add(job.tile, sums)
            self._progress(job.tile.bytes)
            if not job.of.left:
                self._close(job.of)

    def _report(self, difference: Difference) -> None:
        with self._lock:
            self._differs(difference)

    def _close(self, under: Underway) -> None:
        """All tiles of a task are done."""
        sums = under.sums()
        for held, found in zip(under.task.readers, sums):
            if found is not None and found != held.crc32:
                what = f"has the crc32 {found:08x}, and had {held.crc32:08x} when it was written"
                self._differs(Difference(under.task.name, held.path, what))
        self._done(Done(under.task, sums))
