"""The schedules: as drawn, and as torch plans them."""

from __future__ import annotations

import re

import pytest
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from fxpar.errors import PlanError
from fxpar.runtime.schedule import forward_order, order

NAMES = {"gpipe": "GPipe", "1f1b": "1F1B"}


def test_as_drawn() -> None:
    drawn = {
        ("gpipe", 0): "F0 F1 F2 F3 B0 B1 B2 B3",
        ("gpipe", 3): "F0 F1 F2 F3 B0 B1 B2 B3",
        ("1f1b", 0): "F0 F1 F2 F3 B0 B1 B2 B3",
        ("1f1b", 2): "F0 F1 B0 F2 B1 F3 B2 B3",
        ("1f1b", 3): "F0 B0 F1 B1 F2 B2 F3 B3",
    }
    for (schedule, stage), line in drawn.items():
        assert " ".join(map(str, order(schedule, stage, 4, 4))) == line
    assert " ".join(map(str, forward_order(3))) == "F0 F1 F2"


@pytest.mark.parametrize("microbatches", [4, 7])
@pytest.mark.parametrize("schedule", NAMES)
def test_as_torch_plans_them(schedule: str, microbatches: int) -> None:
    """Kinds only: torch's plan of 1F1B numbers the backward runs of the last rank from 1."""
    plan = get_schedule_ops(NAMES[schedule], 4, microbatches)
    for stage in range(4):
        planned = [match[1] for action in plan[stage] if (match := re.fullmatch(r"\d([FB])\d+", str(action)))]
        assert planned == [str(action)[0] for action in order(schedule, stage, 4, microbatches)]


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (4, 2), (4, 9)])
@pytest.mark.parametrize("schedule", NAMES)
def test_every_microbatch_forward_then_backward(schedule: str, stages: int, microbatches: int) -> None:
    for stage in range(stages):
        actions, alive = order(schedule, stage, stages, microbatches), set()
        for action in actions:
            if action.backward:
                alive.remove(action.microbatch)
            else:
                alive.add(action.microbatch)
            assert len(alive) <= (microbatches if schedule == "gpipe" else stages - stage)
        assert not alive
        assert len(actions) == 2 * microbatches


def test_unknown() -> None:
    with pytest.raises(PlanError, match="there is no schedule `zb`"):
        order("zb", 0, 1, 1)
