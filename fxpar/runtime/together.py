"""The processes of one run: what torchrun tells each of them, how they meet, and how they fail together.

A rank that fails tells the store first, then prints its error and ends at once, which cuts its connections. The ranks
that notice that find somebody else in the store and say nothing; torchrun ends the rest. A rank that is killed can say
nothing: its neighbours do (`fxpar.runtime.watch`). So the first error is what is read, whichever rank has it, and
nobody waits for a timeout.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from itertools import count
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from fxpar.errors import FxparError, RankError
from fxpar.runtime.ring import FAILED as FAILURE
from fxpar.runtime.ring import Ring
from fxpar.runtime.watch import PATIENCE, TELLING, Board, Watch

FAILED, USED_WRONGLY = 1, 2
#: How gloo, NCCL and the store say that a peer is gone.
LOST = ("closed by peer", "connection reset", "broken pipe", "connection refused", "remote process exited")
#: How they say that a peer does not answer.
LATE = ("timed out", "timeout")
#: Seconds to wait for the next rank to start.
START = 10.0
#: The logger of torch that draws the schedule on every rank where an exchange fails, after the cause was said.
SCHEDULES = "torch.distributed.pipelining.schedules"
_PAUSE = 0.05
#: How often this process has asked who it is among others; all of them ask equally often.
_uses = count()
#: The stores that this process has, which stay: where rank 0 has the store, others may look there later.
_stores: dict[tuple[str, int], TCPStore] = {}


@dataclass(frozen=True)
class World:
    """This process among `size` of them: alone if torchrun did not start it.

    A collective may take `timeout` seconds. Ranks may start at different times: `start` seconds are waited for the
    next of them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    timeout: float = 120.0
    start: float = START
    use: str = ""
    """Tells this meeting of the processes from others in the same store: earlier attempts, or uses in a script."""
    _watches: list[Watch] = field(default_factory=list, compare=False, repr=False)

    @staticmethod
    def of_environment(timeout: float = 120.0, start: float = START) -> World:
        """What torchrun set in the environment."""
        rank, size, local_rank = (int(os.environ.get(key, alone)) for key, alone in _ENVIRONMENT.items())
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return World(rank, size, local_rank, timeout, start, f"{attempt}/{next(_uses)}")

    @cached_property
    def store(self) -> Store:
        """The store that all processes share. Raises RankError where nobody has it."""
        host, port = self._master()
        try:
            if (host, port) not in _stores:
                _stores[host, port] = TCPStore(
                    host,
                    port,
                    is_master=self._has_store(),
                    timeout=timedelta(seconds=self.start),
                    wait_for_workers=False,
                    multi_tenant=True,
                )
        except dist.DistError as error:
            what = f"nobody answers at {host}:{port} (MASTER_ADDR:MASTER_PORT) within {self.start:g} s"
            raise RankError(what, details=["torchrun, or else rank 0, has to be started there"]) from error
        store = _stores[host, port]
        return PrefixStore(f"fxpar/{self.use}", store)

    @cached_property
    def board(self) -> Board:
        """What all processes know of a failure; over a connection of its own, as the store's may be waiting."""
        return Board(self.store.clone())  # type: ignore[attr-defined]

    def _master(self) -> tuple[str, int]:
        missing = [key for key in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(key)]
        if missing:
            raise RankError(
                f"{' and '.join(missing)} not set in the environment", details=["torchrun sets them"]
            )
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    def _has_store(self) -> bool:
        """Whether the store is in this process: in that of rank 0, unless torchrun has it."""
        return self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def device(self, name: str | None = None) -> torch.device:
        """The device of this process: of the named type, else the accelerator if there is one, else the CPU.

        Raises RankError where a machine has fewer accelerators than processes.
        """
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = torch.device(name) if name else accelerator or torch.device("cpu")
        if device.type == "cpu":
            return device
        count = torch.accelerator.device_count() if accelerator and accelerator.type == device.type else 0
        if self.local_rank >= count:
            raise RankError(
                f"process {self.local_rank} of this machine has no device: there are {count} of type {device.type}",
                details=["start fewer processes here, or give --device cpu"],
            )
        torch.accelerator.set_device_index(self.local_rank)
        return torch.device(device.type, self.local_rank)

    def connect(self, device: torch.device, name: Callable[[int], str] = "rank {}".format) -> None:
        """Wait for all ranks, and make the default process group with the backend that torch prefers for a device.

        `name` gives what a rank is called in a message. Raises RankError if a rank does not come.
        """
        logging.getLogger(SCHEDULES).setLevel(logging.CRITICAL)
        ring = Ring(self.rank, self.size, self._master())
        self.store.set(f"address/{self.rank}", ring.address)
        self._meet(name)
        ring.join(self.store.get(f"address/{(self.rank + 1) % self.size}").decode())
        self._watches.append(Watch(self.rank, self.size, ring, self.board, name))
        dist.init_process_group(
            dist.get_default_backend_for_device(device),
            store=self.store,
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self.timeout),
        )

    def _meet(self, name: Callable[[int], str]) -> None:
        """Wait until all ranks have come. Raises RankError if none came for some time and some are missing."""
        came = self.store.add("came", 1)
        until = time.monotonic() + self.start
        while came < self.size:
            if time.monotonic() > until:
                missing = [rank for rank in range(self.size) if not self.store.check([f"address/{rank}"])]
                raise RankError(
                    f"{came} of {self.size} ranks have started, and no other came within {self.start:g} s; "
                    f"{_listed([name(rank) for rank in missing])} missing",
                    details=["--start-timeout SECONDS (start_timeout of fxpar.together) waits longer"],
                )
            time.sleep(_PAUSE)
            before, came = came, self.store.add("came", 0)
            until = time.monotonic() + self.start if came > before else until

    def close(self) -> None:
        """Wait until all ranks have come to the end, and destroy the default process group.

        A rank that has done its part ends well only if the others do too.
        """
        if dist.is_initialized():
            on_cpu = dist.get_backend() == "gloo"
            dist.barrier(device_ids=None if on_cpu else [torch.accelerator.current_device_index()])
        self.leave()
        if dist.is_initialized():
            dist.destroy_process_group()

    def leave(self) -> None:
        """Say that this process ends well."""
        while self._watches:
            self._watches.pop().close()

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """End this process at once if the block raises; `name` says which rank it is, in the message."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            self._fail(error, _cause(error), name)
        except SystemExit as error:
            if error.code and self._watches:
                self._fail(error, error, name)
            raise

    def _fail(self, raised: BaseException, error: BaseException, name: str) -> NoReturn:
        status = USED_WRONGLY if isinstance(error, FxparError) else FAILED
        if self.size > 1 and _is(error, LOST):
            time.sleep(PATIENCE)  # those who know why say so
        sys.stdout.flush()
        with TELLING:
            if self._first(error):
                print(self._told(raised, error, name), file=sys.stderr, flush=True)
        if self.size == 1:
            sys.exit(status)
        for watch in self._watches:
            watch.say(FAILURE)
        if self._has_store():
            time.sleep(PATIENCE)  # the others look there whether somebody has told
        os._exit(status)  # leaving in order would wait for peers

    def _first(self, error: BaseException) -> bool:
        """Whether no other rank has failed before this one. Without a store better told twice than never."""
        if self.size == 1:
            return True
        try:
            return self.board.first(alone=not _is(error, LOST))
        except Exception:
            return True

    def _told(self, raised: BaseException, error: BaseException, name: str) -> str:
        """What the user reads of the first error."""
        if isinstance(error, FxparError):
            return f"{name}: {error}"
        line = (str(error).splitlines() or [""])[0]
        if _is(error, LOST):
            return f"{name}: another rank has ended without a word (killed, or out of memory?): {line}"
        if isinstance(error, KeyboardInterrupt):
            return f"{name}: interrupted"
        if isinstance(error, SystemExit):
            return f"{name}: exited with {error.code!r}"
        text = f"{''.join(traceback.format_exception(raised))}{name}: {type(error).__name__}: {line}"
        silent = self.board.all_silent(self.size) if self._watches and _is(error, LATE) else []
        return (
            f"{text}\n  {_listed([self._watches[0].name(rank) for rank in silent])} silent"
            if silent
            else text
        )


@contextmanager
def together(
    *, device: str | None = None, timeout: float = 120.0, start_timeout: float = START
) -> Iterator[torch.device]:
    """Make the process group of a script that torchrun started, and let its ranks fail together.

    Gives the device of this process: of the named type, else the accelerator if there is one, else the CPU. If the
    block raises on any rank, or a rank is killed or leaves with an error, all processes end within seconds, and the
    first error is printed once. At the end of the block ranks wait for each other and the process group is destroyed.
    A collective may take `timeout` seconds; ranks may start at different times: `start_timeout` seconds are waited for
    the next. A script may use it several times, one after the other.

    Without torchrun there is nothing to watch: there is no process group, and errors go their way. Raises RankError
    where a process group exists already.
    """
    world = World.of_environment(timeout, start_timeout)
    if dist.is_initialized():
        raise RankError("there is a process group already", details=["`fxpar.together` makes it"])
    if world.size == 1:
        yield world.device(device)
        return
    with world.together(f"rank {world.rank}"):
        place = world.device(device)
        world.connect(place)
        try:
            yield place
        except SystemExit as error:
            if not error.code:
                world.leave()
            raise
        world.close()


def _cause(error: BaseException) -> BaseException:
    """What an error was raised from in the end: torch's pipelining wraps what a stage raises."""
    while error.__cause__ is not None and not isinstance(error, FxparError):
        error = error.__cause__
    return error


def _listed(names: list[str]) -> str:
    """`rank 3 is`, `rank 2, rank 3 are`; of many only the first."""
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} others" if len(names) > 8 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _is(error: BaseException, words: tuple[str, ...]) -> bool:
    """Whether an error of a collective or of the store says one of these; others may say the same of anything."""
    text = str(error).lower()
    return (
        isinstance(error, RuntimeError)
        and not isinstance(error, FxparError)
        and any(w in text for w in words)
    )


_ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
