"""Choosing where the stages of a graph begin: balanced, and where little has to travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx

from fxpar.errors import PipelineError, Place
from fxpar.pipeline.flow import Flow, analyse
from fxpar.pipeline.named import named_positions
from fxpar.pipeline.partition import bottleneck, partition

#: The flops that an accelerator does in the time in which it sends one byte to the next, roughly, on a fast link.
FLOPS_PER_SENT_BYTE = 64

#: How much slower than best the slowest stage and its sends may be, for the sake of less to send.
SLOWER_FOR_BYTES = 1.25

#: How much slower the slowest stage may be for the sake of cuts between whole layers.
SLOWER_FOR_LAYERS = 1.05


@dataclass(frozen=True)
class Cuts:
    """Where the stages of a graph begin.

    `positions` are indices into `flow.line`, one for each stage but the first; `costs` are the stages' costs (flops,
    with memory traffic converted) and `sent_bytes` what each boundary sends forward for one microbatch.
    """

    flow: Flow
    positions: tuple[int, ...]
    costs: tuple[int, ...]
    sent_bytes: tuple[int, ...]

    @property
    def stages(self) -> int:
        """The number of stages."""
        return len(self.costs)

    @property
    def imbalance(self) -> float:
        """By how much the slowest stage exceeds the mean: 0.25 is a quarter more."""
        return max(self.costs) * self.stages / max(sum(self.costs), 1) - 1

    def before(self) -> tuple[fx.Node, ...]:
        """The node that each stage but the first begins with."""
        return tuple(self.flow.line[position] for position in self.positions)


def choose(graph: fx.Graph, stages: int, at: Sequence[str] = (), place: Place | None = None) -> Cuts:
    """Choose where to cut a flat graph into `stages` stages.

    With `at`, paths of modules, each later stage begins with the first node of one of them. Without, positions are
    allowed by how much they send: as little as makes the slowest stage and its sends at most a quarter slower than
    they could be. Of these, positions between whole layers are taken if that costs at most a twentieth. The choice
    among what is left is `partition`'s.

    Raises `PipelineError` if the graph has too few positions or a path of `at` cannot be cut at; `place` is where the
    plan asks for it.
    """
    flow = analyse(graph)
    if at:
        return _cuts(flow, named_positions(flow, stages, at, place))
    free = [p for p in range(1, len(flow.line)) if p not in flow.barred]
    if len(free) < stages - 1:
        most = f"the graph can be cut at {len(free)}: {len(free) + 1} stages at most"
        raise PipelineError(f"{stages} stages need {stages - 1} places to cut, {most}", place=place)
    return _cuts(flow, _balanced(flow, free, stages))


def cut_at(graph: fx.Graph, known: Cuts) -> Cuts:
    """Cut a graph where another one was cut that has the same nodes, with values of other sizes."""
    return _cuts(analyse(graph), known.positions)


def _balanced(flow: Flow, free: list[int], stages: int) -> tuple[int, ...]:
    costs, live, depths = flow.costs(), flow.live_bytes(), flow.depths()
    light = _least(free, live, costs, stages, FLOPS_PER_SENT_BYTE, SLOWER_FOR_BYTES)
    whole = _least(light, depths, costs, stages, 0, SLOWER_FOR_LAYERS)
    return partition(costs, whole, [live[p] for p in whole], stages)


def _least(
    positions: list[int],
    measure: Sequence[int],
    costs: Sequence[int],
    stages: int,
    price: int,
    tolerance: float,
) -> list[int]:
    """The positions up to the least measure that allows stages within `tolerance` of the fastest ones.

    How fast stages are is their bottleneck, and `price` for each unit of the measure.
    """
    slowness: dict[int, int] = {}
    for cap in sorted({measure[p] for p in positions}):
        allowed = [p for p in positions if measure[p] <= cap]
        if len(allowed) >= stages - 1:
            slowness[cap] = bottleneck(costs, allowed, stages) + price * cap
    enough = tolerance * min(slowness.values(), default=0)
    cap = next((cap for cap in slowness if slowness[cap] <= enough), 0)
    return [p for p in positions if measure[p] <= cap]


def _cuts(flow: Flow, positions: tuple[int, ...]) -> Cuts:
    costs, live = flow.costs(), flow.live_bytes()
    ends = pairwise((0, *positions, len(flow.line)))
    return Cuts(flow, positions, tuple(sum(costs[a:b]) for a, b in ends), tuple(live[p] for p in positions))
