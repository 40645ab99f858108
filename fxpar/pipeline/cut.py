"""Choosing where the stages of a graph begin: balanced, and where little has to travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx

from fxpar.errors import PipelineError, Place
from fxpar.pipeline.balance import Line, balance
from fxpar.pipeline.flow import Flow, analyse
from fxpar.pipeline.layers import layer_positions, layers
from fxpar.pipeline.named import named_positions


@dataclass(frozen=True)
class Cuts:
    """Where the stages of a graph begin.

    `positions` are indices into `flow.line`, one for each stage but the first; `costs` are the stages' costs of the
    forward and the backward run (flops, with memory traffic converted) and `sent_bytes` what each boundary sends
    forward for one microbatch.
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


def choose(
    graph: fx.Graph, stages: int, at: Sequence[str] | Sequence[int] = (), place: Place | None = None
) -> Cuts:
    """Choose where to cut a flat graph into `stages` stages.

    With paths of modules as `at`, each later stage begins with the first node of one of them; with numbers, each stage
    has so many of the model's layers. Without, each stage uses a parameter, and positions are chosen by what a forward
    and a backward run cost and by what has to be sent: `balance` says how.

    Raises `PipelineError` if the graph has too few positions or cannot be cut as `at` asks; `place` is where the plan
    asks for it.
    """
    flow = analyse(graph)
    counts = [each for each in at if isinstance(each, int)]
    if counts:
        return _cuts(flow, layer_positions(flow, stages, counts, place))
    if at:
        return _cuts(flow, named_positions(flow, stages, [str(path) for path in at], place))
    uses = flow.uses()
    free = [p for p in range(1, len(flow.line)) if p not in flow.barred and 0 < uses[p] < uses[-1]]
    most = len({uses[p] for p in free}) + 1
    if most < stages:
        what = f"{stages} stages need {stages - 1} places to cut, the graph can be cut at {most - 1}"
        details = ["each stage needs a parameter", f"pp x vpp is the number of stages: at most {most}"]
        raise PipelineError(f"{what}: {most} stages at most", place=place, details=details)
    costs = tuple(flow.costs())
    line = Line(costs, flow.live_bytes(), _depths(flow), uses, free)
    return _cuts(flow, balance(line, stages), costs)


def _depths(flow: Flow) -> list[int]:
    """How many modules each position cuts through; between two calls of one layer not that layer."""
    depths = flow.depths()
    for layer in layers(flow):
        depths[layer.start] = min(depths[layer.start], layer.path.count("."))
    return depths


def cut_at(graph: fx.Graph, known: Cuts) -> Cuts:
    """Cut a graph where another one was cut that has the same nodes, with values of other sizes; `costs` are its."""
    flow = analyse(graph)
    live = flow.live_bytes()
    return Cuts(flow, known.positions, known.costs, tuple(live[p] for p in known.positions))


def _cuts(flow: Flow, positions: tuple[int, ...], known: tuple[int, ...] = ()) -> Cuts:
    costs, live = known or flow.costs(), flow.live_bytes()
    ends = pairwise((0, *positions, len(flow.line)))
    return Cuts(flow, positions, tuple(sum(costs[a:b]) for a, b in ends), tuple(live[p] for p in positions))
