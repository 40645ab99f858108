"""Simulated schedules: idle time and live activations are those of the formulas, exactly; transfers; waiting."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest

from fxpar.errors import PipelineError
from fxpar.pipeline.events import Event
from fxpar.pipeline.orders import (
    BACKWARD,
    COMPUTATIONS,
    FORWARD,
    RECV_FORWARD,
    SEND_FORWARD,
    Action,
    forward_orders,
    orders,
    pairs,
    with_transfers,
)
from fxpar.pipeline.simulation import simulate
from fxpar.pipeline.times import Times
from fxpar.pipeline.usage import Usage, live, usage
from fxpar.schedule import SCHEDULES, places

RANKS = (2, 3, 4, 8)


def step(
    schedule: str, ranks: int, virtual: int, microbatches: int, times: Times | None = None
) -> tuple[Event, ...]:
    return simulate(
        orders(schedule, ranks, virtual, microbatches),
        places(schedule, ranks, virtual),
        times or Times.uniform(ranks * virtual),
        pairs(schedule, ranks, virtual, microbatches),
    )


def used(schedule: str, ranks: int, virtual: int, microbatches: int, times: Times | None = None) -> Usage:
    return usage(step(schedule, ranks, virtual, microbatches, times))


def idle(found: Usage) -> list[float]:
    return [rank.idle for rank in found.ranks]


def peaks(found: Usage) -> list[Fraction]:
    return [rank.live for rank in found.ranks]


@pytest.mark.parametrize(
    ("schedule", "virtual", "idle_time", "work"),
    [
        ("gpipe", 1, 9, 24),
        ("1f1b", 1, 9, 24),
        ("looped-bfs", 2, 9, 48),
        ("interleaved-1f1b", 2, 9, 48),
        ("zero-bubble", 1, 3, 24),
        ("interleaved-zero-bubble", 2, 3, 48),
        ("zb-v", 2, 3, 48),
        ("dualpipe-v", 2, 6, 48),
    ],
)
def test_idle_of_work_for_4_ranks_and_8_microbatches(
    schedule: str, virtual: int, idle_time: int, work: int
) -> None:
    found = used(schedule, 4, virtual, 8)
    assert [(rank.idle, rank.work) for rank in found.ranks] == [(idle_time, work)] * 4
    assert (found.makespan, found.idle, found.work) == (work + idle_time, 4 * idle_time, 4 * work)
    assert found.idle_of_work == Fraction(idle_time, work)
    assert found.idle_of_makespan == Fraction(idle_time, work + idle_time)


@pytest.mark.parametrize("p", RANKS)
@pytest.mark.parametrize("m", [1, 2, 5, 8, 19])
def test_gpipe(p: int, m: int) -> None:
    found = used("gpipe", p, 1, m)
    assert idle(found) == [(p - 1) * 3] * p
    assert peaks(found) == [m] * p
    assert (found.idle_of_work, found.idle_of_makespan) == (Fraction(p - 1, m), Fraction(p - 1, m + p - 1))


@pytest.mark.parametrize("p", RANKS)
@pytest.mark.parametrize("m", [1, 2, 5, 8, 19])
def test_1f1b(p: int, m: int) -> None:
    found = used("1f1b", p, 1, m)
    assert idle(found) == [(p - 1) * 3] * p
    assert peaks(found) == [min(m, p - rank) for rank in range(p)]
    assert (found.idle_of_work, found.idle_of_makespan) == (Fraction(p - 1, m), Fraction(p - 1, m + p - 1))


@pytest.mark.parametrize("p", RANKS)
@pytest.mark.parametrize("v", [2, 3, 4])
@pytest.mark.parametrize("more", [0, 1, 9])
def test_looped_bfs(p: int, v: int, more: int) -> None:
    """As many microbatches as ranks are enough."""
    found = used("looped-bfs", p, v, p + more)
    assert idle(found) == [(p - 1) * 3] * p
    assert peaks(found) == [p + more] * p


@pytest.mark.parametrize("p", RANKS)
@pytest.mark.parametrize("v", [2, 3, 4])
@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_interleaved_1f1b(p: int, v: int, rounds: int) -> None:
    """Microbatches in whole rounds of p, two at least. A chunk takes 1/v of what the formula's F and B are."""
    found = used("interleaved-1f1b", p, v, rounds * p)
    assert idle(found) == [(p - 1) * 3] * p
    assert peaks(found) == [Fraction(2 * (p - r - 1) + (v - 1) * p + 1, v) for r in range(p)]


@pytest.mark.parametrize("p", RANKS)
@pytest.mark.parametrize("more", [0, 1, 9])
def test_zero_bubble(p: int, more: int) -> None:
    """As many microbatches as ranks are enough. What is alive counts until W is done: p on every rank."""
    found = used("zero-bubble", p, 1, p + more)
    assert idle(found) == [p - 1] * p
    assert peaks(found) == [p] * p


@pytest.mark.parametrize("p", RANKS)
@pytest.mark.parametrize("v", [2, 3, 4])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_interleaved_zero_bubble(p: int, v: int, rounds: int) -> None:
    """Microbatches in whole rounds of p. What is alive counts until W is done: p on every rank."""
    found = used("interleaved-zero-bubble", p, v, rounds * p)
    assert idle(found) == [p - 1] * p
    assert peaks(found) == [p] * p


@pytest.mark.parametrize("p", RANKS)
@pytest.mark.parametrize("more", [0, 1, 9])
def test_zb_v(p: int, more: int) -> None:
    """From 2p - 1 microbatches on: no idle time from a rank's first run to its last, and a stagger between ranks."""
    found = used("zb-v", p, 2, 2 * p - 1 + more)
    assert [rank.idle_within for rank in found.ranks] == [0] * p
    assert [rank.start for rank in found.ranks] == [*range(p)]
    assert idle(found) == [p - 1] * p
    assert peaks(found) == [p] * p


@pytest.mark.parametrize("p", RANKS)
@pytest.mark.parametrize("more", [0, 1, 9])
def test_dualpipe_v(p: int, more: int) -> None:
    """From 2p microbatches on, its pairs one run each: F&B = F + B = 3 and B = 2."""
    found = used("dualpipe-v", p, 2, 2 * p + more)
    assert idle(found) == [(p - 1) * (3 + 2 - 3)] * p
    assert peaks(found) == [p + Fraction(1, 2)] * p


@pytest.mark.parametrize("p", RANKS)
@pytest.mark.parametrize("more", [0, 1, 9])
def test_dualpipe_v_waits_less_with_its_pairs_apart(p: int, more: int) -> None:
    found = usage(
        simulate(orders("dualpipe-v", p, 2, 2 * p + more), places("dualpipe-v", p, 2), Times.uniform(2 * p))
    )
    assert idle(found) == [p - 1] * p
    assert peaks(found) == [p + Fraction(1, 2)] * p


@pytest.mark.parametrize(("f", "i", "w"), [(2, 3, 1), (3, 2, 2), (Fraction(7, 3), 2, Fraction(1, 5))])
def test_formulas_hold_for_other_times_exactly(f: float, i: float, w: float) -> None:
    p, m = 4, 12
    for schedule, virtual in (("gpipe", 1), ("1f1b", 1), ("looped-bfs", 3), ("interleaved-1f1b", 2)):
        found = used(schedule, p, virtual, m, Times.uniform(p * virtual, f, i, w))
        assert idle(found) == [(p - 1) * (f + i + w)] * p, schedule
    for schedule, virtual in (("zero-bubble", 1), ("interleaved-zero-bubble", 2)):
        found = used(schedule, p, virtual, m, Times.uniform(p * virtual, f, i, w))
        assert idle(found) == [(p - 1) * (f + i - w)] * p, schedule


@pytest.mark.parametrize(("f", "i", "w"), [(2, 3, 3), (2, 2, 3), (4, 1, 2), (1, 3, 7)])
def test_zero_bubbles_that_long_runs_for_parameters_do_not_fill(f: int, i: int, w: int) -> None:
    """Where W takes longer than F or than I, the formula's W counts as no more than the shorter of both."""
    for schedule, virtual in (("zero-bubble", 1), ("interleaved-zero-bubble", 2)):
        found = used(schedule, 4, virtual, 12, Times.uniform(4 * virtual, f, i, w))
        assert idle(found) == [3 * (f + i - min(f, i, w))] * 4, schedule


@pytest.mark.parametrize("p", RANKS)
def test_zb_v_never_waits_within_where_all_runs_are_equal(p: int) -> None:
    found = used("zb-v", p, 2, 2 * p, Times.uniform(2 * p, 7, 7, 7))
    assert [(rank.idle_within, rank.idle) for rank in found.ranks] == [(0, 7 * (p - 1))] * p


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("microbatches", [1, 3, 4, 9])
def test_ranks_run_their_orders(schedule: str, microbatches: int) -> None:
    """One run after the other and each after what it needs, whether or not it is said when ranks send and receive."""
    virtual = SCHEDULES[schedule].least
    planned, stage_ranks = orders(schedule, 4, virtual, microbatches), places(schedule, 4, virtual)
    times = Times.uniform(4 * virtual, 3, 2, 1, transfer=1)
    for given in (planned, with_transfers(planned, stage_ranks)):
        events = [e for e in simulate(given, stage_ranks, times) if e.action.kind in COMPUTATIONS]
        for rank, order in enumerate(planned):
            mine = [event for event in events if event.rank == rank]
            assert tuple(event.action for event in mine) == order
            assert all(before.end <= after.start for before, after in pairwise(mine))
        ends = {(e.action.stage, e.action.microbatch): e.end for e in events if e.action.kind == FORWARD}
        for event in events:
            stage, kind, microbatch = event.action
            if kind == FORWARD and stage > 0:
                away = stage_ranks[stage] != stage_ranks[stage - 1]
                assert event.start >= ends[stage - 1, microbatch] + away


def test_transfers_go_on_beside_work() -> None:
    """Each step to the next rank and back costs one transfer, and nothing more."""
    found = used("gpipe", 4, 1, 8, Times.uniform(4, transfer=1))
    assert idle(found) == [3 * 3 + 2 * 3] * 4


def test_transfers_one_way_follow_each_other() -> None:
    events = step("gpipe", 2, 1, 3, Times.uniform(2, transfer=5))
    sends = [event for event in events if event.action.kind == SEND_FORWARD]
    assert [(event.rank, event.start, event.end) for event in sends] == [(0, 1, 6), (0, 6, 11), (0, 11, 16)]
    receives = [event for event in events if event.action.kind == RECV_FORWARD]
    assert [(e.rank, e.start, e.end) for e in receives] == [(1, e.start, e.end) for e in sends]
    assert {event.action.stage for event in receives} == {1}


def test_transfers_begin_when_both_ranks_have_come_to_them() -> None:
    """Orders receive one run ahead, so that the transfer of the next microbatch runs beside it."""
    planned = with_transfers(orders("gpipe", 2, 1, 2), (0, 1))
    events = simulate(planned, (0, 1), Times.uniform(2, transfer=1))
    starts = {str(e.action): e.start for e in events if e.rank == 1}
    assert (starts["1F0"], starts["1RECV_F1"], starts["1F1"]) == (2, 2, 3)


@pytest.mark.parametrize("p", RANKS)
def test_pairs_receive_before_and_send_after(p: int) -> None:
    """Also in orders that say when ranks send and receive, some of it between the two runs of a pair."""
    step = ("dualpipe-v", p, 2, 2 * p)
    stage_ranks = places("dualpipe-v", p, 2)
    planned = with_transfers(orders(*step), stage_ranks)
    found = usage(simulate(planned, stage_ranks, Times.uniform(2 * p), pairs(*step)))
    assert idle(found) == [2 * (p - 1)] * p


def test_each_stage_takes_its_own_time() -> None:
    times = Times(forward=[1, 4], input=[2, 5], weight=[3, 6], transfer=[0.5])
    events = step("1f1b", 2, 1, 1, times)
    runs = [
        (str(e.action), e.start, e.end)
        for e in sorted(events, key=lambda e: e.start)
        if e.action.kind in COMPUTATIONS
    ]
    assert runs == [("0F0", 0, 1), ("1F0", 1.5, 5.5), ("1B0", 5.5, 16.5), ("0B0", 17, 22)]


def test_forward_only() -> None:
    found = usage(simulate(forward_orders("1f1b", 4, 1, 8), places("1f1b", 4), Times.uniform(4)))
    assert idle(found) == [3] * 4
    assert peaks(found) == [1] * 4


def test_orders_that_wait_for_each_other() -> None:
    first = (Action(0, BACKWARD, 0), Action(0, FORWARD, 0))
    second = (Action(1, FORWARD, 0), Action(1, BACKWARD, 0))
    with pytest.raises(PipelineError) as raised:
        simulate((first, second), (0, 1), Times.uniform(2))
    assert str(raised.value) == (
        "the orders of the ranks wait for each other for ever\n"
        "  rank 0 waits before 0B0\n"
        "  rank 1 waits before 1F0"
    )


def test_live_activations_over_time() -> None:
    events = [event for event in step("1f1b", 2, 1, 3) if event.rank == 0]
    assert live(events) == [(0, 1), (1, 2), (6, 2), (9, 1), (12, 0)]


def test_bytes_that_are_kept_alive() -> None:
    """On the first rank of two, four microbatches of stage 0 and one of stage 2 are alive together."""
    found = usage(step("interleaved-1f1b", 2, 2, 4), kept_bytes=[100, 0, 1, 0])
    assert [rank.live for rank in found.ranks] == [Fraction(5, 2), Fraction(3, 2)]
    assert [rank.live_bytes for rank in found.ranks] == [401, 0]


def test_a_large_pipeline() -> None:
    """16 ranks of 4 chunks, 256 microbatches: p-1 of m·v in shares of the work."""
    found = used("interleaved-1f1b", 16, 4, 256)
    assert found.idle_of_work == Fraction(15, 4 * 256)
    assert len(found.ranks) == 16
