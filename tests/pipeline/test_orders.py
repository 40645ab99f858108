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
    """Run the orders: what is sent between two ranks arrives in the order in which it is received."""
    at, mail = [0] * len(planned), {}
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(planned):
            while at[rank] < len(order):
                action = order[at[rank]]
                step = 1 if action.kind in ("SEND_F", "RECV_B") else -1
                if action.kind.startswith("SEND"):
                    there = Action(action.stage + step, f"RECV{action.kind[4:]}", action.microbatch)
                    mail.setdefault((rank, stages[there.stage]), []).append(there)
                elif action.kind.startswith("RECV"):
                    box = mail.get((stages[action.stage + step], rank), [])
                    if not box:
                        break
                    assert box.pop(0) == action
                at[rank] += 1
                moved = True
    assert at == [len(order) for order in planned]
    assert not any(mail.values())


def test_places() -> None:
    assert places("1f1b", 3) == (0, 1, 2)
    assert places("interleaved-1f1b", 2, 3) == (0, 1, 0, 1, 0, 1)
    assert places("zb-v", 3, 2) == (0, 1, 2, 2, 1, 0)
