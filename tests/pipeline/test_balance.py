"""The choice of cuts against all that are possible, by the rule that `balance` states."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxpar.pipeline.balance import (
    FLOPS_PER_SENT_BYTE,
    SLOWER_FOR_BYTES,
    SLOWER_FOR_LAYERS,
    WAYS,
    Line,
    balance,
)


@st.composite
def lines(draw: st.DrawFn) -> tuple[Line, int]:
    """A row of up to 9 nodes with positions that allow the number of stages."""
    count = draw(st.integers(2, 9))
    scale = draw(st.sampled_from([1, 300, 20_000]))
    costs = [scale * draw(st.integers(0, 20)) for _ in range(count)]
    live = [draw(st.integers(1, 30)) for _ in range(count)]
    depths = [draw(st.integers(0, 2)) for _ in range(count)]
    uses = [0, *accumulate(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))]
    free = [p for p in range(1, count) if draw(st.integers(0, 4)) and 0 < uses[p] < uses[-1]]
    return Line(costs, live, depths, uses, free), draw(st.integers(1, len({uses[p] for p in free}) + 1))


def choices(line: Line, positions: Sequence[int], stages: int) -> list[tuple[int, ...]]:
    """All choices of cuts that leave a parameter to each stage."""
    every = combinations(positions, stages - 1)
    return [chosen for chosen in every if len({line.uses[p] for p in chosen}) == stages - 1]


def stage_costs(line: Line, chosen: tuple[int, ...]) -> list[int]:
    return [sum(line.costs[a:b]) for a, b in pairwise((0, *chosen, len(line.costs)))]


def slowest(line: Line, positions: Sequence[int], stages: int) -> float:
    every = choices(line, positions, stages)
    return min((max(stage_costs(line, chosen)) for chosen in every), default=float("inf"))


def upto(line: Line, positions: Sequence[int], measure: Sequence[int], stages: int, price: int, slack: float):
    """The positions up to the least measure that is good enough."""
    caps = sorted({measure[p] for p in positions})
    sets = {cap: [p for p in positions if measure[p] <= cap] for cap in caps}
    slow = {cap: slowest(line, sets[cap], stages) + price * cap for cap in caps}
    best = min(slow.values(), default=0)
    return next((sets[cap] for cap in caps if slow[cap] <= slack * best and slow[cap] < float("inf")), [])


@given(lines())
def test_no_choice_is_better(row: tuple[Line, int]) -> None:
    line, stages = row
    light = upto(line, line.positions, line.live, stages, WAYS * FLOPS_PER_SENT_BYTE, SLOWER_FOR_BYTES)
    whole = upto(line, light, line.depths, stages, 0, SLOWER_FOR_LAYERS)
    found = balance(line, stages)

    def value(chosen: tuple[int, ...]) -> tuple[int, int, int]:
        costs = stage_costs(line, chosen)
        return max(costs), sum(line.live[p] for p in chosen), sum(cost**2 for cost in costs)

    assert found in choices(line, line.positions, stages)
    assert set(found) <= set(whole)
    assert value(found) == min(value(chosen) for chosen in choices(line, whole, stages))
    if stages > 1:  # what the tolerances promise of all positions
        fastest = slowest(line, line.positions, stages)
        allowed = SLOWER_FOR_BYTES * (fastest + WAYS * FLOPS_PER_SENT_BYTE * max(line.live)) + 1
        assert max(stage_costs(line, found)) <= SLOWER_FOR_LAYERS * allowed


def row(costs: Sequence[int], live: Sequence[int], depths: Sequence[int] | None = None) -> Line:
    count = len(costs)
    return Line(costs, live, depths or [0] * count, list(range(count + 1)), list(range(1, count)))


@pytest.mark.parametrize(("more", "cut"), [(5, 2), (11, 1)])
def test_less_to_send_may_cost_a_tenth(more: int, cut: int) -> None:
    """The second cut sends nothing, and makes the slowest stage slower by so many hundredths."""
    million = 1_000_000
    line = row([million, more * million // 100, million - more * million // 100], [0, 1, 0])
    assert balance(line, 2) == (cut,)


def test_whole_layers_may_cost_a_twentieth() -> None:
    flat = [0, 0, 0, 0]
    assert balance(row([50, 2, 2, 50], flat, [0, 1, 2, 1]), 2) == (1,)
    assert balance(row([50, 9, 9, 50], flat, [0, 1, 0, 1]), 2) == (2,)
    assert balance(row([50, 9, 9, 50], flat, [0, 1, 2, 1]), 2) == (2,)


def test_each_stage_has_a_parameter() -> None:
    line = Line([5, 5, 5, 5], [0] * 4, [0] * 4, [0, 1, 1, 1, 2], [1, 2, 3])
    assert balance(line, 2) == (2,)
