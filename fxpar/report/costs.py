"""What the stages of a pipeline cost: one number for all, or what the manifest of a partition says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxpar.pipeline.spec import StageSpec
from fxpar.pipeline.times import Times


@dataclass(frozen=True)
class Costs:
    """The times of all stages and their unit, and what an activation of each stage weighs in bytes, if known.

    `microseconds` is how long a unit is drawn in a trace.
    """

    times: Times
    unit: str
    microseconds: float
    kept_bytes: tuple[int, ...] | None = None


def uniform(stages: int, runs: Sequence[float] | None = None, transfer: float = 0) -> Costs:
    """The same times F, I and W for every stage, one unit each if none are given. In a trace a unit is 1 ms."""
    forward, input, weight = runs or (1, 1, 1)
    return Costs(Times.uniform(stages, forward, input, weight, transfer), "units", 1e3)


def of_partition(stages: Sequence[StageSpec], transfer: float = 0) -> Costs | None:
    """What the stages of a manifest cost in flops, None if it does not say. In a trace a gigaflop is 1 ms."""
    costs = [stage.costs for stage in sorted(stages, key=lambda stage: stage.index)]
    if not any(cost.total for cost in costs):
        return None
    times = Times(
        [cost.forward for cost in costs],
        [cost.input for cost in costs],
        [cost.weight for cost in costs],
        [transfer] * (len(costs) - 1),
    )
    return Costs(times, "flops", 1e-6, tuple(cost.kept_bytes for cost in costs))
