"""Where a row of costs is best cut: fast stages, little to send, between whole modules. Numbers alone, no graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fxpar.pipeline.partition import bottleneck, partition

#: The flops that an accelerator does in the time in which it sends one byte to the next, roughly, on a fast link.
FLOPS_PER_SENT_BYTE = 64

#: What crosses a boundary forward comes back as gradients.
WAYS = 2

#: How much slower than best the slowest stage and its sends may be, for the sake of less to send.
SLOWER_FOR_BYTES = 1.1

#: How much slower the slowest stage may be for the sake of cuts between whole layers.
SLOWER_FOR_LAYERS = 1.05


@dataclass(frozen=True)
class Line:
    """What is to be cut: the `costs` of its nodes, and of each position (`p` is before node `p`) what is cut.

    `live` are the bytes that it sends, `depths` how many modules it cuts through. A cut may lie at `positions`, sorted,
    and only at one of those that have the same number in `uses`, which ascends.
    """

    costs: Sequence[int]
    live: Sequence[int]
    depths: Sequence[int]
    uses: Sequence[int]
    positions: Sequence[int]

    def groups(self, positions: Iterable[int]) -> list[int]:
        """The number in `uses` of each position."""
        return [self.uses[p] for p in positions]


def balance(line: Line, stages: int) -> tuple[int, ...]:
    """Choose `stages - 1` positions; there have to be as many different `uses`.

    Let b(P) be the least possible cost of the slowest stage if all cuts lie in a set P of positions.

    1. P1 is the set of positions that send at most x bytes, for the least x that makes b(P1) plus the cost of sending x
       at most `SLOWER_FOR_BYTES` times as much as the best x does.
    2. P2 is the set of those in P1 that cut through at most y modules, for the least y that makes b(P2) at most
       `SLOWER_FOR_LAYERS` times b(P1).
    3. Of all choices in P2, one has the cheapest slowest stage, of those the least bytes to send in all, and of those
       the least sum of squared costs.

    Each step is exact: bounds are met by search (`bottleneck`), the choice is made by dynamic programming
    (`partition`).
    """
    light = _least(line, line.positions, line.live, stages, WAYS * FLOPS_PER_SENT_BYTE, SLOWER_FOR_BYTES)
    whole = _least(line, light, line.depths, stages, 0, SLOWER_FOR_LAYERS)
    return partition(line.costs, whole, [line.live[p] for p in whole], stages, line.groups(whole))


def _least(
    line: Line, positions: Sequence[int], measure: Sequence[int], stages: int, price: int, tolerance: float
) -> list[int]:
    """The positions up to the least measure that allows stages within `tolerance` of the fastest ones.

    How fast stages are is their bottleneck, and `price` for each unit of the measure.
    """
    slowness: dict[int, int] = {}
    fastest = bottleneck(line.costs, positions, stages, line.groups(positions))
    for cap in sorted({measure[p] for p in positions}):
        if slowness and fastest + price * cap > min(slowness.values()):
            break  # every further one is slower
        allowed = [p for p in positions if measure[p] <= cap]
        groups = line.groups(allowed)
        if len(set(groups)) >= stages - 1:
            slowness[cap] = bottleneck(line.costs, allowed, stages, groups) + price * cap
    enough = tolerance * min(slowness.values(), default=0)
    cap = next((cap for cap in slowness if slowness[cap] <= enough), 0)
    return [p for p in positions if measure[p] <= cap]
