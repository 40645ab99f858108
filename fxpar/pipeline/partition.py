"""Cutting a row of costs into stretches: the least maximum, and among those the lightest and most even cuts.

Positions may stand in groups of which at most one is cut at: between two cuts of a group a stage would have nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


def bottleneck(
    costs: Sequence[int], positions: Sequence[int], stages: int, groups: Sequence[int] | None = None
) -> int:
    """The least possible maximum of the stages' costs, if cuts may only lie at `positions` (sorted).

    `groups` stands beside `positions` and ascends; without it each position is a group. Parametric search: a bound can
    be met if filling stage after stage to the brim needs no more than `stages`; with groups, if the end can be reached
    in so many steps. With at least `stages - 1` groups, fewer stages can always be split further at no cost.
    """
    ends = [0, *_sums(costs, positions), sum(costs)]
    least = _search(max(costs, default=0), ends[-1], lambda bound: _fits(ends, stages, bound))
    if groups is None:
        return least
    sums, kinds = np.array(ends, dtype=np.int64), _kinds(positions, groups)
    return _search(least, ends[-1], lambda bound: _fits_in_groups(sums, kinds, stages, bound))


def _search(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The least bound that fits; most often it is the first."""
    if low >= high or fits(low):
        return low
    low += 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def _fits(ends: list[int], stages: int, bound: int) -> bool:
    at = 0
    for _ in range(stages):
        at = bisect_right(ends, ends[at] + bound) - 1
        if at == len(ends) - 1:
            return True
    return False


def _fits_in_groups(ends: Integers, kinds: Integers, stages: int, bound: int) -> bool:
    starts, stops = np.searchsorted(ends, ends - bound), np.searchsorted(kinds, kinds)
    reached = np.zeros(len(ends), dtype=bool)
    reached[0] = True
    for _ in range(stages):
        before = np.concatenate([[0], np.cumsum(reached)])
        reached |= before[stops] > before[np.minimum(starts, stops)]
        if reached[-1]:
            return True
    return False


def _kinds(positions: Sequence[int], groups: Sequence[int] | None) -> Integers:
    """A group for each end of a stage; the two ends of the row are in groups of their own."""
    given = range(len(positions)) if groups is None else groups
    return np.array([-1, *given, max(given, default=0) + 1], dtype=np.int64)


def _sums(costs: Sequence[int], positions: Sequence[int]) -> list[int]:
    totals = [0, *accumulate(costs)]
    return [totals[position] for position in positions]


def partition(
    costs: Sequence[int],
    positions: Sequence[int],
    weights: Sequence[int],
    stages: int,
    groups: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Choose `stages - 1` of `positions` by dynamic programming.

    The choice minimises, in this order: the maximal cost of a stage, the sum of the weights of the chosen positions
    (`weights` stands beside `positions`), and, in float64, the sum of the squares of the stages' costs. For `groups`
    see `bottleneck`; there have to be at least `stages - 1` of them.
    """
    bound = bottleneck(costs, positions, stages, groups)
    kinds = _kinds(positions, groups)[1:]
    ends = np.array([*_sums(costs, positions), sum(costs)], dtype=np.int64)
    extra = np.array([*weights, 0], dtype=np.float64)
    weight, squares = extra.copy(), ends.astype(np.float64) ** 2
    weight[ends > bound] = np.inf
    best: list[list[int]] = []
    for _ in range(stages - 1):
        weight, squares, before = _next_stage(ends, kinds, extra, weight, squares, bound)
        best.append(before)
    chosen, at = [], len(ends) - 1
    for before in reversed(best):
        at = before[at]
        chosen.append(positions[at])
    return tuple(reversed(chosen))


def _next_stage(
    ends: Integers, kinds: Integers, extra: Floats, weight: Floats, squares: Floats, bound: int
) -> tuple[Floats, Floats, list[int]]:
    """One more stage: the lightest and most even way to each end, and the end of the stage before it."""
    new_weight, new_squares, before = np.full_like(weight, np.inf), np.zeros_like(squares), [0] * len(ends)
    starts, stops = np.searchsorted(ends, ends - bound), np.searchsorted(kinds, kinds)
    for end in range(1, len(ends)):
        window = slice(int(starts[end]), int(stops[end]))
        least = weight[window].min(initial=np.inf)
        if least == np.inf:
            continue
        costs = (ends[end] - ends[window]).astype(np.float64)
        total = np.where(weight[window] == least, squares[window] + costs**2, np.inf)
        before[end] = window.start + int(total.argmin())
        new_weight[end], new_squares[end] = least + extra[end], total.min()
    return new_weight, new_squares, before
