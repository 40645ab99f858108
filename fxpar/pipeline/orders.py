"""The order in which each rank of a pipeline runs its stages: the plans of torch.distributed.pipelining.

4 ranks, 4 microbatches                     time ->
gpipe   rank 0   F0 F1 F2 F3                                B0 B1 B2 B3
        rank 3            F0 F1 F2 F3  B0 B1 B2 B3
1f1b    rank 0   F0 F1 F2 F3          B0    B1    B2    B3
        rank 3            F0 B0 F1 B1 F2 B2 F3 B3

torch's plans exist for some numbers of microbatches only. For another one, the plan for the next larger number is
taken, without the microbatches that there are not: what is left keeps its order, so that nothing waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from fxpar.schedule import places

FORWARD, BACKWARD = "F", "B"
#: The two halves of a backward run: gradients of what a stage received, and of its parameters.
INPUT, WEIGHT = "I", "W"
SEND_FORWARD, RECV_FORWARD = "SEND_F", "RECV_F"
SEND_BACKWARD, RECV_BACKWARD = "SEND_B", "RECV_B"
COMPUTATIONS = (FORWARD, BACKWARD, INPUT, WEIGHT)

#: What torch calls them.
_CLASSES = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "looped-bfs": "ScheduleLoopedBFS",
    "interleaved-1f1b": "ScheduleInterleaved1F1B",
    "zero-bubble": "ScheduleInterleavedZeroBubble",
    "interleaved-zero-bubble": "ScheduleInterleavedZeroBubble",
    "zb-v": "ScheduleZBVZeroBubble",
    "dualpipe-v": "ScheduleDualPipeV",
}


class Action(NamedTuple):
    """What a rank does next: run a stage for a microbatch, or give or take what travels: `2F0`, `2RECV_F0`."""

    stage: int
    kind: str
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


Order = tuple[Action, ...]


@cache
def orders(schedule: str, ranks: int, virtual: int, microbatches: int) -> tuple[Order, ...]:
    """What each rank runs, in order, of a schedule that `fxpar.schedule` lists; `virtual` stages a rank."""
    if ranks == 1 and virtual == 1:
        return (tuple(Action(0, kind, m) for m in range(microbatches) for kind in (FORWARD, BACKWARD)),)
    planned = _planned(schedule, ranks, virtual, _enough(schedule, ranks, microbatches))
    return tuple(tuple(a for a in order if a.microbatch < microbatches) for order in planned)


def forward_orders(schedule: str, ranks: int, virtual: int, microbatches: int) -> tuple[Order, ...]:
    """What each rank runs when nothing is learnt: the forward runs of the schedule."""
    planned = orders(schedule, ranks, virtual, microbatches)
    return tuple(tuple(action for action in order if action.kind == FORWARD) for order in planned)


def with_transfers(planned: Sequence[Order], stage_ranks: Sequence[int]) -> tuple[Order, ...]:
    """The same orders with what is sent and received in between, in one order for each pair of ranks.

    A rank begins to receive one run before it has to, so that the transfer runs beside that one. Nothing is sent
    between stages on one rank.
    """
    if len(planned) == 1:
        return tuple(planned)
    from torch.distributed.pipelining.schedules import _add_send_recv

    waiting = {rank: [theirs(action) for action in order] for rank, order in enumerate(planned) if order}
    made = _add_send_recv(waiting, lambda stage: stage_ranks[stage], len(stage_ranks))
    late = (tuple(map(_ours, made.get(rank, ()))) for rank in range(len(planned)))
    return tuple(_early(order, stage_ranks) for order in late)


def peer(action: Action, stage_ranks: Sequence[int]) -> int:
    """The rank that the other end of a transfer is on."""
    return stage_ranks[action.stage + (1 if action.kind in (SEND_FORWARD, RECV_BACKWARD) else -1)]


def _early(order: Order, stage_ranks: Sequence[int]) -> Order:
    """The order with each receive one run earlier, unless a transfer with the same rank stands before it.

    torch puts it where the sender is done, which is often right before the use. Transfers of a pair of ranks keep their
    order: accelerators do them one by one.
    """
    made: list[Action] = []
    for action in order:
        at = len(made)
        if action.kind in (RECV_FORWARD, RECV_BACKWARD):
            ahead = 0
            while at and (
                made[at - 1].kind in COMPUTATIONS
                or peer(made[at - 1], stage_ranks) != peer(action, stage_ranks)
            ):
                ahead += made[at - 1].kind in COMPUTATIONS
                if ahead > 1:
                    break
                at -= 1
        made.insert(at, action)
    return tuple(made)


def _enough(schedule: str, ranks: int, microbatches: int) -> int:
    """The least number of microbatches, that many at least, for which torch has a plan."""
    if schedule == "1f1b":
        return max(microbatches, ranks)
    if schedule == "dualpipe-v":
        return max(microbatches, 2 * ranks)
    if "interleaved" in _CLASSES[schedule].lower():
        while microbatches % max(1, microbatches // ranks):
            microbatches += 1
    return microbatches


def _planned(schedule: str, ranks: int, virtual: int, microbatches: int) -> list[Order]:
    """The runs of torch's plan."""
    plan = _plan(schedule, ranks, virtual, microbatches)
    return [tuple(_numbered(schedule, map(_ours, _runs(order)))) for order in plan]


def _plan(schedule: str, ranks: int, virtual: int, microbatches: int) -> list[list[Any]]:
    """torch's plan. It asks of its stages no more than how many there are, and of no process group."""
    from torch.distributed.pipelining import schedules as torchs

    stage: Any = SimpleNamespace(group_rank=0, group_size=ranks, num_stages=ranks * virtual, submod=None)
    kind = getattr(torchs, _CLASSES[schedule])
    single = issubclass(kind, torchs.PipelineScheduleSingle)
    made = kind(stage if single else [stage] * virtual, microbatches)
    order = made._get_pipeline_order() if single else made.pipeline_order
    return [order[rank] for rank in range(ranks)]


def _runs(actions: Iterable[Any]) -> Iterable[Any]:
    """The runs of stages among a rank's actions: pairs that may overlap one after the other, and nothing empty."""
    for action in actions:
        for each in (action.sub_actions or (action,)) if action is not None else ():
            if each.computation_type.value in COMPUTATIONS:
                yield each


def _numbered(schedule: str, actions: Iterable[Action]) -> Iterable[Action]:
    """Forward runs of 1f1b counted from 0 on every rank: torch 2.13 counts those of the last rank from 1."""
    seen = 0
    for action in actions:
        if schedule == "1f1b" and action.kind == FORWARD:
            action = action._replace(microbatch=seen)
            seen += 1
        yield action


def _ours(action: Any) -> Action:
    return Action(action.stage_index, action.computation_type.value, action.microbatch_index)


def theirs(action: Action) -> Any:
    """The action as torch's runtime takes it."""
    from torch.distributed.pipelining.schedules import _Action, _ComputationType

    return _Action(action.stage, _ComputationType(action.kind), action.microbatch)


def check_orders(planned: Sequence[Order], schedule: str, virtual: int, microbatches: int) -> None:
    """Assert that every stage runs each microbatch forward and backward once, on the rank where it is."""
    stage_ranks = places(schedule, len(planned), virtual)
    for rank, order in enumerate(planned):
        here = [stage for stage, place in enumerate(stage_ranks) if place == rank]
        for kinds in ((FORWARD,), (BACKWARD, INPUT), (BACKWARD, WEIGHT)):
            found = sorted((a.stage, a.microbatch) for a in order if a.kind in kinds)
            assert found == [(stage, number) for stage in here for number in range(microbatches)]


@cache
def pairs(schedule: str, ranks: int, virtual: int, microbatches: int) -> frozenset[tuple[Action, Action]]:
    """The runs, a forward and a backward one, that the schedule puts beside each other on a rank.

    In `orders` they stand one after the other. Only dualpipe-v has any.
    """
    if schedule != "dualpipe-v" or ranks == 1:
        return frozenset()
    planned = _plan(schedule, ranks, virtual, _enough(schedule, ranks, microbatches))
    found = (
        tuple(map(_ours, _runs([action])))
        for order in planned
        for action in order
        if action is not None and action.sub_actions
    )
    return frozenset(
        (first, second) for first, second in found if max(first.microbatch, second.microbatch) < microbatches
    )
