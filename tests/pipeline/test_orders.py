"""The orders of schedules: as drawn, whole for every number of microbatches, and never waiting for ever."""

from __future__ import annotations

import pytest
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from fxpar.pipeline.orders import (
    BACKWARD,
    COMPUTATIONS,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    forward_orders,
    orders,
    peer,
    with_transfers,
)
from fxpar.schedule import SCHEDULES, places

#: What torch calls those that it plans for any of these numbers.
TORCHS = {
    "gpipe": "GPipe",
    "looped-bfs": "LoopedBFS",
    "interleaved-1f1b": "Interleaved1F1B",
    "interleaved-zero-bubble": "InterleavedZeroBubble",
    "zb-v": "ZBVZeroBubble",
}


def text(order: tuple[Action, ...]) -> str:
    return " ".join(f"{action.kind}{action.microbatch}" for action in order)


def test_as_drawn() -> None:
    drawn = {
        ("gpipe", 0): "F0 F1 F2 F3 B0 B1 B2 B3",
        ("gpipe", 3): "F0 F1 F2 F3 B0 B1 B2 B3",
        ("1f1b", 0): "F0 F1 F2 F3 B0 B1 B2 B3",
        ("1f1b", 2): "F0 F1 B0 F2 B1 F3 B2 B3",
        ("1f1b", 3): "F0 B0 F1 B1 F2 B2 F3 B3",
        ("zero-bubble", 3): "F0 I0 F1 I1 F2 I2 F3 I3 W0 W1 W2 W3",
    }
    for (schedule, rank), line in drawn.items():
        assert text(orders(schedule, 4, 1, 4)[rank]) == line
    assert text(forward_orders("1f1b", 4, 1, 3)[2]) == "F0 F1 F2"


@pytest.mark.parametrize("microbatches", [4, 8])
@pytest.mark.parametrize("schedule", TORCHS)
def test_as_torch_plans_them(schedule: str, microbatches: int) -> None:
    virtual = SCHEDULES[schedule].least
    planned = get_schedule_ops(TORCHS[schedule], 4, microbatches, virtual)
    for order, theirs in zip(orders(schedule, 4, virtual, microbatches), planned):
        runs = [action for action in theirs if action and action.computation_type.value in COMPUTATIONS]
        assert list(map(str, order)) == list(map(str, runs))


@pytest.mark.parametrize("microbatches", [1, 2, 3, 4, 5, 7, 8, 9, 13])
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_stage_runs_every_microbatch_once(schedule: str, ranks: int, microbatches: int) -> None:
    virtual = SCHEDULES[schedule].most or 3
    stages = places(schedule, ranks, virtual)
    planned = orders(schedule, ranks, virtual, microbatches)
    for rank, order in enumerate(planned):
        here = [stage for stage, place in enumerate(stages) if place == rank]
        wanted = [(stage, number) for stage in here for number in range(microbatches)]
        for kinds in ((FORWARD,), (BACKWARD, INPUT), (BACKWARD, WEIGHT)):
            assert sorted((a.stage, a.microbatch) for a in order if a.kind in kinds) == wanted
    for made in (planned, forward_orders(schedule, ranks, virtual, microbatches)):
        assert_finishes(with_transfers(made, stages), stages)


def assert_finishes(planned: tuple[tuple[Action, ...], ...], stages: tuple[int, ...]) -> None:
    """Run the orders: a run waits for what it needs, and two ranks do their transfers in the same order."""
    at, done = [0] * len(planned), set()
    between = {
        (rank, other): pairs(order, other, stages) for rank, order in enumerate(planned) for other in stages
    }
    for rank, other in between:
        assert between[rank, other] == [mirrored(a) for a in between[other, rank]]
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(planned):
            while at[rank] < len(order) and ready(order[at[rank]], len(stages), done):
                action = order[at[rank]]
                if action.kind in COMPUTATIONS:
                    assert posted(order[: at[rank]], action, stages)
                    done.add(action)
                at[rank] += 1
                moved = True
    assert at == [len(order) for order in planned]


def pairs(order: tuple[Action, ...], other: int, stages: tuple[int, ...]) -> list[Action]:
    """The transfers of a rank with another one."""
    return [a for a in order if a.kind not in COMPUTATIONS and peer(a, stages) == other]


def mirrored(action: Action) -> Action:
    """The other end of a transfer."""
    verb, way = action.kind.split("_")
    step = 1 if (verb == "SEND") == (way == "F") else -1
    return Action(action.stage + step, f"{'RECV' if verb == 'SEND' else 'SEND'}_{way}", action.microbatch)


def ready(action: Action, stages: int, done: set[Action]) -> bool:
    """Whether what a run needs has been computed; a transfer may begin at any time."""
    stage, kind, number = action
    if kind == FORWARD:
        return not stage or Action(stage - 1, FORWARD, number) in done
    if kind in (BACKWARD, INPUT):
        after = {Action(stage + 1, way, number) for way in (BACKWARD, INPUT)}
        return Action(stage, FORWARD, number) in done and (stage + 1 == stages or bool(after & done))
    return kind != WEIGHT or Action(stage, INPUT, number) in done


def posted(before: tuple[Action, ...], action: Action, stages: tuple[int, ...]) -> bool:
    """Whether a rank has begun to receive what a run of its needs from another rank."""
    stage, kind, number = action
    if kind == FORWARD and stage and stages[stage - 1] != stages[stage]:
        return Action(stage, "RECV_F", number) in before
    if kind in (BACKWARD, INPUT) and stage + 1 < len(stages) and stages[stage + 1] != stages[stage]:
        return Action(stage, "RECV_B", number) in before
    return True


def test_a_receive_begins_a_run_before_its_use() -> None:
    planned = with_transfers(orders("gpipe", 2, 1, 3), (0, 1))
    assert " ".join(map(str, planned[1])) == (
        "1RECV_F0 1RECV_F1 1F0 1RECV_F2 1F1 1F2 1B0 1SEND_B0 1B1 1SEND_B1 1B2 1SEND_B2"
    )


def test_places() -> None:
    assert places("1f1b", 3) == (0, 1, 2)
    assert places("interleaved-1f1b", 2, 3) == (0, 1, 0, 1, 0, 1)
    assert places("zb-v", 3, 2) == (0, 1, 2, 2, 1, 0)
