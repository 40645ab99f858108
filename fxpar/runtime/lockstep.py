"""All ranks of a mesh in one process, without a network: each rank is a thread, and they take strict turns.

    results = simulate(Mesh({"dp": 2, "tp": 4}), lambda rank, groups: module(groups)(inputs[rank]))

The modules and operators are those that run for real, backward passes included: on a CPU these run in the thread that
calls `backward`. A rank runs until it has to wait for others; the order is always the same. Not for accelerators, where
all backward passes of a process share one thread.
"""

from __future__ import annotations

import contextvars
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from fxpar.errors import RankError
from fxpar.mesh import Mesh
from fxpar.runtime.counter import Counter
from fxpar.runtime.groups import Group, Groups, members
from fxpar.runtime.threadstate import ThreadState
from fxpar.runtime.transport import between
from fxpar.runtime.turns import Disagreement, Turns

T = TypeVar("T")


class Results(list[T]):
    """What each rank returned, by rank, and what each sent."""

    def __init__(self, results: Sequence[T], counters: Sequence[Counter]) -> None:
        super().__init__(results)
        self.counters = tuple(counters)


def simulate(mesh: Mesh, function: Callable[[int, Groups], T]) -> Results[T]:
    """Run `function(rank, groups)` for every rank of the mesh, in lockstep, and return what each returned.

    The threads have the caller's grad mode, inference mode, autocast, default device, context variables and state of
    the CPU's random generator, which the caller keeps unchanged.
    Raises RankError, with the rank, for the first error of any rank, after which all stop; if ranks call different
    collectives in one group; if all that are left wait for each other.
    """
    turns = Turns(mesh.world)
    places: _Places = defaultdict(_Place)
    mail: _Mail = defaultdict(deque)
    groups = [_groups(mesh, rank, turns, places, mail) for rank in range(mesh.world)]
    found: dict[int, T] = {}

    state = ThreadState.current()

    def body(rank: int) -> None:
        with state.entered():
            found[rank] = function(rank, groups[rank])

    bodies = [partial(contextvars.copy_context().run, body, rank) for rank in range(mesh.world)]
    try:
        turns.run(bodies)
    finally:
        for own in groups:
            own.close()
    return Results([found[rank] for rank in range(mesh.world)], [own.counter for own in groups])


_Mail = defaultdict[tuple[int, int], deque[torch.Tensor]]
_Combine = Callable[[list[torch.Tensor]], list[torch.Tensor]]


class _Meeting:
    """One collective of one group: who has come with what, and what each takes away."""

    def __init__(self) -> None:
        self.calls: dict[int, str] = {}
        self.brought: dict[int, torch.Tensor] = {}
        self.results: dict[int, torch.Tensor] = {}


class _Place:
    """Where one group meets: the collective that has not been completed yet."""

    def __init__(self) -> None:
        self.meeting = _Meeting()


_Places = defaultdict[tuple[str, tuple[int, ...]], _Place]


class SimulatedGroup(Group):
    """A group of threads. The last rank that comes computes the results of all, in the order of the group."""

    def __init__(
        self, kind: str, ranks: Sequence[int], rank: int, counter: Counter, turns: Turns, place: _Place
    ) -> None:
        super().__init__(kind, ranks, rank, counter)
        self._rank, self._turns, self._place = rank, turns, place

    def _all_reduce(self, x: torch.Tensor, op: str, /) -> torch.Tensor:
        return self._meet(f"all_reduce {op}", x, partial(_reduced, op=op))

    def _all_gather(self, x: torch.Tensor, /) -> torch.Tensor:
        return self._meet("all_gather", x, _gathered)

    def _reduce_scatter(self, stacked: torch.Tensor, /) -> torch.Tensor:
        return self._meet("reduce_scatter", stacked, _scattered)

    def _all_to_all(self, stacked: torch.Tensor, /) -> torch.Tensor:
        return self._meet("all_to_all", stacked, _exchanged)

    def _meet(self, what: str, x: torch.Tensor, combine: _Combine) -> torch.Tensor:
        call = f"{what} of {_described(x)}"
        meeting = self._place.meeting
        self._check_agreement(meeting, call)
        meeting.calls[self._rank], meeting.brought[self._rank] = call, x.detach()
        if len(meeting.brought) == self.size:
            self._place.meeting = _Meeting()
            meeting.results = dict(zip(self.ranks, combine([meeting.brought[rank] for rank in self.ranks])))
            self._turns.wake(self.ranks)
        while self._rank not in meeting.results:
            self._turns.wait(self._rank, f"{call} on `{self.kind}` of ranks {_listed(self.ranks)}")
        return meeting.results.pop(self._rank)

    def _check_agreement(self, meeting: _Meeting, call: str) -> None:
        for other, theirs in meeting.calls.items():
            if theirs != call:
                raise Disagreement(
                    f"ranks {other} and {self._rank} call different collectives on `{self.kind}`",
                    details=[f"rank {other}: {theirs}", f"rank {self._rank}: {call}"],
                )


class SimulatedTransport:
    """Point-to-point transport between threads. Sending never waits."""

    def __init__(self, mesh: Mesh, rank: int, turns: Turns, mail: _Mail, counter: Counter) -> None:
        self._mesh, self._rank, self._turns, self._mail, self._counter = mesh, rank, turns, mail, counter

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Put a copy into the receiver's queue. Raises RankError if there is no such rank."""
        if not 0 <= to < self._mesh.world:
            raise RankError(
                f"rank {self._rank} sends to rank {to}, which the mesh of {self._mesh.world} has not"
            )
        self._counter.record("send", between(self._mesh, self._rank, to), tensor, 2)
        self._mail[self._rank, to].append(tensor.detach().clone(memory_format=torch.contiguous_format))
        self._turns.wake([to])

    def recv(self, source: int, like: torch.Tensor | None = None) -> torch.Tensor:
        """Take the oldest tensor from that rank; RankError if it is not like `like`."""
        queue = self._mail[source, self._rank]
        while not queue:
            self._turns.wait(self._rank, f"recv from rank {source}")
        tensor = queue.popleft()
        if like is not None and (like.shape != tensor.shape or like.dtype != tensor.dtype):
            raise Disagreement(
                f"rank {self._rank} expects {_described(like)} from rank {source}, which sends {_described(tensor)}"
            )
        return tensor

    def flush(self) -> None:
        """Nothing: what was sent is in the queue."""


def _groups(mesh: Mesh, rank: int, turns: Turns, places: _Places, mail: _Mail) -> Groups:
    counter = Counter()

    def make(kind: str) -> Group:
        ranks = members(mesh, rank, kind)
        return SimulatedGroup(kind, ranks, rank, counter, turns, places[kind, ranks])

    transport = SimulatedTransport(mesh, rank, turns, mail, counter)
    return Groups(mesh, rank, make, lazy=True, counter=counter, transport=transport)


def _reduced(parts: list[torch.Tensor], op: str) -> list[torch.Tensor]:
    total = parts[0].clone()
    for part in parts[1:]:
        total = total + part if op == "sum" else torch.maximum(total, part)
    return [total, *(total.clone() for _ in parts[1:])]


def _gathered(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.stack(parts) for _ in parts]


def _scattered(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    return [_reduced([part[i] for part in parts], "sum")[0] for i in range(len(parts))]


def _exchanged(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.stack([part[i] for part in parts]) for i in range(len(parts))]


def _described(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(str(rank) for rank in ranks)
