"""A step of a pipeline as it would run: when each rank does what, from the orders and how long each run takes.

A rank does one run after the other, in its order; a run begins when its rank is free and all that it is given is
there. Transfers go on beside the runs, those from one rank to another one after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fxpar.errors import PipelineError
from fxpar.pipeline.events import Event
from fxpar.pipeline.orders import (
    BACKWARD,
    COMPUTATIONS,
    FORWARD,
    INPUT,
    RECV_BACKWARD,
    RECV_FORWARD,
    SEND_BACKWARD,
    SEND_FORWARD,
    WEIGHT,
    Action,
    Order,
)
from fxpar.pipeline.times import Times

_SENDS = (SEND_FORWARD, SEND_BACKWARD)
_RECEIVED = {SEND_FORWARD: RECV_FORWARD, SEND_BACKWARD: RECV_BACKWARD}
_SENT = {received: sent for sent, received in _RECEIVED.items()}


def simulate(
    planned: Sequence[Order],
    stage_ranks: Sequence[int],
    times: Times,
    together: Collection[tuple[Action, Action]] = (),
) -> tuple[Event, ...]:
    """The events of one step, each rank's in their order; times start at 0.

    `planned` is what each rank runs, as `fxpar.pipeline.orders` gives it, and `stage_ranks` the rank of each stage. A
    transfer begins at once when its value is made; in orders that say when ranks send and receive (`with_transfers`),
    it begins when both ranks have come to it. The pairs of `together`, neighbours in an order, are one run each: it
    begins when both can, takes as long as both, and gives what it makes at its end. With `int` times all is exact.

    Raises PipelineError if ranks wait for each other for ever.
    """
    pairs = frozenset(together)
    steps = [list(_steps(order, pairs)) for order in planned]
    at_once = all(action.kind in COMPUTATIONS for order in planned for action in order)
    return _Simulation(stage_ranks, times, steps, at_once).run()


def _steps(order: Order, pairs: Collection[tuple[Action, Action]]) -> Iterator[tuple[Action, ...]]:
    """What a rank does, one at a time. A pair receives all it needs before, and sends what it makes after."""
    runs = [index for index, action in enumerate(order) if action.kind in COMPUTATIONS]
    partners = dict(pairwise(runs)) if pairs else {}
    partners = {here: there for here, there in partners.items() if (order[here], order[there]) in pairs}
    index = 0
    while index < len(order):
        partner = partners.get(index, index)
        between = order[index + 1 : partner]
        yield from ((action,) for action in between if action.kind not in _SENDS)
        yield (order[index], order[partner]) if partner > index else (order[index],)
        yield from ((action,) for action in between if action.kind in _SENDS)
        index = partner + 1


@dataclass
class _Simulation:
    stage_ranks: Sequence[int]
    times: Times
    steps: Sequence[Sequence[tuple[Action, ...]]]
    at_once: bool
    #: When what an action gives is there; of a backward run in halves, what its first half gives.
    done: dict[Action, float] = field(default_factory=dict)
    #: When a rank came to a send or a receive whose other side has not come yet.
    asked: dict[Action, float] = field(default_factory=dict)
    #: When the last transfer from one rank to another was through.
    through: dict[tuple[int, int], float] = field(default_factory=dict)

    def run(self) -> tuple[Event, ...]:
        ranks = range(len(self.steps))
        self.clocks: list[float] = [0 for _ in ranks]
        self.events: list[list[Event]] = [[] for _ in ranks]
        at = [0 for _ in ranks]
        while True:
            before = list(at)
            for rank in ranks:
                while at[rank] < len(self.steps[rank]) and self._step(rank, self.steps[rank][at[rank]]):
                    at[rank] += 1
            if at == before:
                break
        waiting = [rank for rank in ranks if at[rank] < len(self.steps[rank])]
        if waiting:
            lines = [f"rank {rank} waits before {self.steps[rank][at[rank]][0]}" for rank in waiting]
            raise PipelineError("the orders of the ranks wait for each other for ever", details=lines)
        return tuple(event for events in self.events for event in events)

    def _step(self, rank: int, step: tuple[Action, ...]) -> bool:
        """Do what comes next on a rank, unless what it needs is not known yet."""
        if step[0].kind not in COMPUTATIONS:
            self._ask(rank, step[0])
            return True
        needed = [need for action in step for need in self._needs(action)]
        if not all(need in self.done for need in needed):
            return False
        start = max([self.clocks[rank], *(self.done[need] for need in needed)])
        end = start + sum(self.times.of(action) for action in step)
        for action in step:
            self.events[rank].append(Event(rank, action, start, end))
            self.done[_made(action)] = end
        self.clocks[rank] = end
        for action in step if self.at_once else ():
            self._send(action, end)
        return True

    def _needs(self, action: Action) -> Iterator[Action]:
        stage, kind, microbatch = action
        if kind == FORWARD:
            if stage > 0:
                yield self._given(stage, stage - 1, FORWARD, RECV_FORWARD, microbatch)
            return
        if kind == WEIGHT:
            yield Action(stage, BACKWARD, microbatch)
            return
        yield Action(stage, FORWARD, microbatch)
        if stage + 1 < len(self.stage_ranks):
            yield self._given(stage, stage + 1, BACKWARD, RECV_BACKWARD, microbatch)

    def _given(self, stage: int, source: int, kind: str, received: str, microbatch: int) -> Action:
        """What brings a stage the values of its neighbour: the neighbour itself if it is on the same rank."""
        if self.stage_ranks[stage] == self.stage_ranks[source]:
            return Action(source, kind, microbatch)
        return Action(stage, received, microbatch)

    def _send(self, action: Action, made: float) -> None:
        """Transfer what a run gave, if the stage that needs it is on another rank."""
        ahead = action.kind == FORWARD
        stage = action.stage + (1 if ahead else -1)
        if action.kind == WEIGHT or not 0 <= stage < len(self.stage_ranks):
            return
        if self.stage_ranks[stage] != self.stage_ranks[action.stage]:
            self._transfer(action._replace(kind=SEND_FORWARD if ahead else SEND_BACKWARD), made)

    def _ask(self, rank: int, action: Action) -> None:
        """Come to one side of a transfer; it begins if the other side has come before."""
        other = _other_side(action)
        if other not in self.asked:
            self.asked[action] = self.clocks[rank]
            return
        self._transfer(
            action if action.kind in _SENDS else other, max(self.clocks[rank], self.asked.pop(other))
        )

    def _transfer(self, send: Action, earliest: float) -> None:
        """Transfer a value, as soon as what went before it the same way is through."""
        receive = _other_side(send)
        way = self.stage_ranks[send.stage], self.stage_ranks[receive.stage]
        start = max(earliest, self.through.get(way, 0))
        end = start + self.times.of(send)
        self.through[way] = self.done[receive] = end
        self.events[way[0]].append(Event(way[0], send, start, end))
        self.events[way[1]].append(Event(way[1], receive, start, end))


def _other_side(action: Action) -> Action:
    """The receive of a send, and the send of a receive."""
    kind = _RECEIVED.get(action.kind) or _SENT[action.kind]
    ahead = action.kind in (SEND_FORWARD, RECV_BACKWARD)
    return Action(action.stage + (1 if ahead else -1), kind, action.microbatch)


def _made(action: Action) -> Action:
    """What others wait for: after both a whole backward run and its first half, the input's gradient."""
    return action._replace(kind=BACKWARD) if action.kind == INPUT else action
