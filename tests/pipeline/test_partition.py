"""The partition against all that are possible."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from fxpar.pipeline.partition import bottleneck, partition


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], int]:
    costs = draw(st.lists(st.integers(0, 20), min_size=2, max_size=10))
    every = range(1, len(costs))
    positions = sorted(draw(st.sets(st.sampled_from(every), min_size=1)))
    weights = [draw(st.integers(1, 3)) for _ in positions]
    return costs, positions, weights, draw(st.integers(1, len(positions) + 1))


def value(costs: list[int], weight: dict[int, int], chosen: tuple[int, ...]) -> tuple[int, int, int]:
    """What is minimised: the slowest stage, the weights, the squares."""
    stages = [sum(costs[a:b]) for a, b in pairwise((0, *chosen, len(costs)))]
    return max(stages), sum(weight[p] for p in chosen), sum(stage**2 for stage in stages)


@given(rows())
def test_no_choice_is_better(row: tuple[list[int], list[int], list[int], int]) -> None:
    costs, positions, weights, stages = row
    weight = dict(zip(positions, weights))
    chosen = partition(costs, positions, weights, stages)
    assert len(chosen) == stages - 1
    assert list(chosen) == sorted(set(chosen) & set(positions))
    best = min(value(costs, weight, some) for some in combinations(positions, stages - 1))
    assert value(costs, weight, chosen) == best
    assert bottleneck(costs, positions, stages) == best[0]


def test_what_cannot_be_balanced_is_still_even() -> None:
    assert partition([1] * 8 + [9], list(range(1, 9)), [1] * 8, 5) == (2, 4, 6, 8)


@given(rows(), st.data())
def test_no_choice_of_groups_is_better(
    row: tuple[list[int], list[int], list[int], int], data: st.DataObject
) -> None:
    costs, positions, weights, _ = row
    groups = sorted(data.draw(st.lists(st.integers(0, 4), min_size=len(positions), max_size=len(positions))))
    stages = data.draw(st.integers(1, len(set(groups)) + 1))
    weight, group = dict(zip(positions, weights)), dict(zip(positions, groups))
    every = [
        some for some in combinations(positions, stages - 1) if len({group[p] for p in some}) == stages - 1
    ]
    chosen = partition(costs, positions, weights, stages, groups)
    assert chosen in every
    best = min(value(costs, weight, some) for some in every)
    assert value(costs, weight, chosen) == best
    assert bottleneck(costs, positions, stages, groups) == best[0]
