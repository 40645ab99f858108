"""The processes of one run: what torchrun tells each of them, and how they fail together.

A rank that fails tells the store first, then prints its error and ends at once, which cuts its connections. The ranks
that notice that find somebody else in the store and say one line; torchrun ends the rest. So the first error is what
is read, whichever rank has it, and nobody waits for a timeout.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fxpar.errors import FxparError, RankError

FAILED, USED_WRONGLY = 1, 2
#: Seconds that a rank which lost a peer waits for torchrun to end it. Left at once it would look like the cause.
PATIENCE = 3.0
#: How gloo, NCCL and the store say that a peer is gone.
LOST = ("closed by peer", "connection reset", "broken pipe", "connection refused", "remote process exited")


@dataclass(frozen=True)
class World:
    """This process among `size` of them: alone if torchrun did not start it. `timeout` is in seconds."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    timeout: float = 120.0

    @staticmethod
    def of_environment(timeout: float = 120.0) -> World:
        """What torchrun set in the environment."""
        rank, size, local_rank = (int(os.environ.get(key, alone)) for key, alone in _ENVIRONMENT.items())
        return World(rank, size, local_rank, timeout)

    @cached_property
    def store(self) -> Store:
        """The store that all processes share."""
        given = rendezvous("env://", timeout=timedelta(seconds=self.timeout))
        return PrefixStore("fxpar", next(iter(given))[0])

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

    def connect(self, device: torch.device) -> None:
        """Make the default process group, with the backend that torch prefers for a device."""
        dist.init_process_group(
            dist.get_default_backend_for_device(device),
            store=self.store,
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self.timeout),
        )

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """End this process at once if the block raises; `name` says which rank it is, in the message."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            self._fail(error, name)

    def _fail(self, error: BaseException, name: str) -> NoReturn:
        text = _told(error, name) if self._first() else f"{name}: stopped, as another rank has failed"
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)
        status = USED_WRONGLY if isinstance(error, FxparError) else FAILED
        if self.size == 1:
            sys.exit(status)
        if _is_lost(error):
            time.sleep(PATIENCE)
        os._exit(status)  # leaving in order would wait for peers

    def _first(self) -> bool:
        """Whether no other rank has failed before this one."""
        if self.size == 1:
            return True
        try:
            return int(self.store.add("failed", 1)) == 1
        except Exception:
            return True  # there is no store any more: better told twice than never


_ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def _is_lost(error: BaseException) -> bool:
    """Whether an error only says that another process is gone."""
    return any(word in str(error).lower() for word in LOST)


def _told(error: BaseException, name: str) -> str:
    """What the user reads of the first error."""
    if isinstance(error, FxparError):
        return f"{name}: {error}"
    lines = str(error).splitlines() or [""]
    if _is_lost(error):
        return f"{name}: another rank has ended without a word (killed, or out of memory?): {lines[0]}"
    if isinstance(error, KeyboardInterrupt):
        return f"{name}: interrupted"
    return f"{''.join(traceback.format_exception(error))}{name}: {type(error).__name__}: {lines[0]}"
