"""Threads that take strict turns: one runs until it has to wait, then the next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch

from fxpar.errors import RankError


class Disagreement(RankError):
    """An error that already says which ranks it is about."""


class _Stopped(BaseException):
    """Unwinds a rank after another one has failed; never seen by a caller."""


class Turns:
    """The turns of ranks 0 .. n-1. Only the rank whose turn it is runs; those that can go on queue up.

    Each rank has its own state of torch's CPU generator, as a process has: it is put aside when the rank waits.
    """

    def __init__(self, ranks: int) -> None:
        self._gates = [threading.Semaphore(0) for _ in range(ranks)]
        self._ready = deque(range(ranks))
        self._waiting: dict[int, str] = {}
        self._failure: BaseException | None = None
        self._over = threading.Event()

    def run(self, bodies: Sequence[Callable[[], None]]) -> None:
        """Run a body a rank, each in its thread. Raises the first error, when all ranks have stopped."""
        generator = torch.get_rng_state()
        threads = [
            threading.Thread(
                target=self._body, args=(rank, body, generator), name=f"rank {rank}", daemon=True
            )
            for rank, body in enumerate(bodies)
        ]
        for thread in threads:
            thread.start()
        self._pass_on()
        try:
            self._over.wait()
        except BaseException as error:
            self._fail(error)
            self._over.wait()
        torch.set_rng_state(generator)
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def wait(self, rank: int, reason: str) -> None:
        """Let the others run until somebody wakes this rank; the reason is told if nobody can."""
        generator = torch.get_rng_state()
        self._waiting[rank] = reason
        self._pass_on()
        self._gates[rank].acquire()
        if self._failure is not None:
            raise _Stopped
        torch.set_rng_state(generator)

    def wake(self, ranks: Iterable[int]) -> None:
        """Queue up those of the ranks that wait."""
        self._ready.extend(rank for rank in ranks if self._waiting.pop(rank, None) is not None)

    def _body(self, rank: int, body: Callable[[], None], generator: torch.Tensor) -> None:
        self._gates[rank].acquire()
        try:
            if self._failure is None:
                torch.set_rng_state(generator)
                body()
        except _Stopped:
            pass
        except Disagreement as error:
            self._fail(error)
        except BaseException as error:
            failure = RankError(f"rank {rank} failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._fail(failure)
        self._pass_on()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error

    def _pass_on(self) -> None:
        """Give the turn away: to the next that can run, or to all that wait once something has failed."""
        if not self._ready and self._waiting:
            self._fail(_deadlock(self._waiting))
        if self._failure is not None:
            self.wake(list(self._waiting))
        if self._ready:
            self._gates[self._ready.popleft()].release()
        else:
            self._over.set()


def _deadlock(waiting: dict[int, str]) -> RankError:
    return Disagreement(
        "the ranks wait for each other, or for ranks that have finished",
        details=[f"rank {rank} waits in {reason}" for rank, reason in sorted(waiting.items())],
    )
