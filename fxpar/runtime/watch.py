"""A thread that ends this process when the run has failed elsewhere, whatever the process does at that time."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from torch.distributed.distributed_c10d import Store

from fxpar.runtime.ring import ALIVE, BYE, FAILED, LOST, PULSE, Ring

#: Seconds that a process which lost a peer waits for torchrun to end it. Left at once it would look like the cause.
PATIENCE = 3.0
#: Seconds that a process which is told to end listens for the reason.
GRACE = 0.5
#: Seconds without a word after which a neighbour counts as silent.
SILENCE = 3 * PULSE
STATUS = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_KEY = "silent/{}"
#: Held while a thread of this process finds out whether it is the first to tell of a failure, and tells.
TELLING = threading.Lock()


class Board:
    """What all processes know of a failure, in the store that they share."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def first(self, alone: bool = True) -> bool:
        """Whether no other process has told of a failure before; `alone` where there is no store any more."""
        try:
            return int(self._store.add("failed", 1)) == 1
        except Exception:
            return alone

    def silent(self, rank: int, is_silent: bool) -> None:
        """Note that a rank is silent, or no longer."""
        try:
            self._store.set(_KEY.format(rank), str(int(is_silent)))
        except Exception:
            return

    def all_silent(self, size: int) -> list[int]:
        """The ranks that are silent."""
        try:
            keys = {rank: _KEY.format(rank) for rank in range(size)}
            return [
                rank
                for rank, key in keys.items()
                if self._store.check([key]) and self._store.get(key) == b"1"
            ]
        except Exception:
            return []


class Watch:
    """Hears the neighbours of a rank, and signals. `name` gives what a rank is called in a message.

    The first process that knows why the run fails says it, and all end with a status that is not zero: where a
    neighbour was killed, where it has failed and said why, and where this process is told to end by a signal. A signal
    ends it also while it waits in a collective.
    """

    def __init__(self, rank: int, size: int, ring: Ring, board: Board, name: Callable[[int], str]) -> None:
        self._rank, self._size, self._ring, self._board, self.name = rank, size, ring, board, name
        self._quiet: set[int] = set()
        self._over = False
        self._told_to_end = 0
        self._until = 0.0
        self._signals, self._writer = socket.socketpair()
        for end in (self._signals, self._writer):
            end.setblocking(False)
        self._handlers: dict[int, Any] = {}
        threading.Thread(target=self._run, name="fxpar-watch", daemon=True).start()
        self._catch()

    def close(self) -> None:
        """Say that this process ends well, and hear no more."""
        self._over = True
        self._ring.say(BYE)
        if self._handlers:
            signal.set_wakeup_fd(-1)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def say(self, word: bytes) -> None:
        """Tell both neighbours something."""
        self._ring.say(word)

    def _catch(self) -> None:
        """Let signals wake the thread: a handler in Python would wait until the collective ends."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: None)

    def _run(self) -> None:
        for rank, word in self._ring.hear(self._signals):
            if self._over:
                return
            if rank == -1:
                self._own(word)
            elif word == LOST:
                self._lost(rank)
            elif word == FAILED:
                self._end()

    def _own(self, word: bytes) -> None:
        if word != ALIVE and word and word[0] in _SIGNALS and not self._told_to_end:
            self._told_to_end, self._until = word[0], time.monotonic() + GRACE
        if self._told_to_end and time.monotonic() >= self._until:
            what = signal.Signals(self._told_to_end).name
            self._say(f"{self.name(self._rank)}: ended from outside by {what}", alone=False)
            self._end()
        self._ring.say(ALIVE)
        for rank, heard in self._ring.last.items():
            if rank >= 0 and (time.monotonic() - heard > SILENCE) != (rank in self._quiet):
                self._quiet ^= {rank}
                self._board.silent(rank, rank in self._quiet)

    def _lost(self, rank: int) -> None:
        what = "has ended without a word (killed, or out of memory?)"
        self._say(f"{self.name(rank)} {what}", alone=rank == (self._rank - 1) % self._size)
        self._end()

    def _say(self, text: str, alone: bool) -> None:
        with TELLING:
            if self._board.first(alone):
                sys.stdout.flush()
                print(text, file=sys.stderr, flush=True)

    def _end(self) -> None:
        self._ring.say(FAILED)
        if not self._told_to_end:
            select.select([self._signals], [], [], PATIENCE)
        TELLING.acquire(timeout=PATIENCE)  # the main thread may be telling
        os._exit(128 + self._told_to_end if self._told_to_end else STATUS)
