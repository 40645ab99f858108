"""How long the runs of each stage take, and what travels between them, in any one unit of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxpar.pipeline.orders import (
    BACKWARD,
    FORWARD,
    INPUT,
    RECV_FORWARD,
    SEND_BACKWARD,
    SEND_FORWARD,
    WEIGHT,
    Action,
)


@dataclass(frozen=True)
class Times:
    """What one microbatch takes on each stage: the forward run and both halves of the backward run.

    A backward run that is not split takes `input + weight`. `transfer[i]` is what travels between the stages i and
    i + 1 takes, in either direction. Sums of ints are ints: what is simulated with them is exact.
    """

    forward: Sequence[float]
    input: Sequence[float]
    weight: Sequence[float]
    transfer: Sequence[float]

    @staticmethod
    def uniform(
        stages: int, forward: float = 1, input: float = 1, weight: float = 1, transfer: float = 0
    ) -> Times:
        """Stages that all take the same, by default one unit for each run."""
        return Times([forward] * stages, [input] * stages, [weight] * stages, [transfer] * (stages - 1))

    def of(self, action: Action) -> float:
        """How long an action takes."""
        stage = action.stage
        if action.kind == FORWARD:
            return self.forward[stage]
        if action.kind == INPUT:
            return self.input[stage]
        if action.kind == WEIGHT:
            return self.weight[stage]
        if action.kind == BACKWARD:
            return self.input[stage] + self.weight[stage]
        ahead = action.kind in (SEND_FORWARD, RECV_FORWARD)
        sends = action.kind in (SEND_FORWARD, SEND_BACKWARD)
        return self.transfer[stage if ahead == sends else stage - 1]
