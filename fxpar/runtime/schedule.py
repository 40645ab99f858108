"""The order in which a pipeline stage runs its microbatches forward and backward.

4 stages, 4 microbatches                      time ->
gpipe   stage 0   F0 F1 F2 F3                                B0 B1 B2 B3
        stage 3            F0 F1 F2 F3  B0 B1 B2 B3
1f1b    stage 0   F0 F1 F2 F3          B0    B1    B2    B3
        stage 3            F0 B0 F1 B1 F2 B2 F3 B3
"""

from __future__ import annotations

from typing import NamedTuple

from fxpar.errors import PlanError

#: gpipe: Huang et al., GPipe, arXiv:1811.06965. 1f1b: Narayanan et al., PipeDream, arXiv:1806.03377.
SCHEDULES = ("gpipe", "1f1b")


class Action(NamedTuple):
    """One run of a stage: microbatch number `microbatch`, forward or backward."""

    backward: bool
    microbatch: int

    def __str__(self) -> str:
        return f"{'B' if self.backward else 'F'}{self.microbatch}"


def check_schedule(schedule: str) -> None:
    """Raise `PlanError` unless there is such a schedule."""
    if schedule not in SCHEDULES:
        raise PlanError(f"there is no schedule `{schedule}`", details=[f"there are {', '.join(SCHEDULES)}"])


def order(schedule: str, stage: int, stages: int, microbatches: int) -> list[Action]:
    """What stage number `stage` of `stages` runs, in order. Under 1f1b it keeps at most `stages - stage` alive."""
    check_schedule(schedule)
    ahead = min(microbatches, stages - stage) if schedule == "1f1b" else microbatches
    actions = [Action(False, microbatch) for microbatch in range(ahead)]
    for microbatch in range(microbatches):
        actions.append(Action(True, microbatch))
        if ahead + microbatch < microbatches:
            actions.append(Action(False, ahead + microbatch))
    return actions


def forward_order(microbatches: int) -> list[Action]:
    """What every stage runs when nothing is learnt."""
    return [Action(False, microbatch) for microbatch in range(microbatches)]
