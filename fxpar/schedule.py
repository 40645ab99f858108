"""The schedules of pipelines by name: how many stages of the model a rank runs under each, and which ones.

loop   stage 0 1 2 3 on ranks 0 1 2 3, stage 4 5 6 7 on ranks 0 1 2 3
v      stage 0 1 2 3 on ranks 0 1 2 3, stage 4 5 6 7 on ranks 3 2 1 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Schedule:
    """A schedule: `least` to `most` stages a rank (no most: None), dealt out by the map `loop` or `v`."""

    name: str
    least: int
    most: int | None
    map: str
    source: str

    def misfit(self, virtual: int) -> str:
        """What is wrong with a number of stages a rank, if anything: `at least 2 stages a rank`."""
        if self.least == self.most != virtual:
            return f"{self.least} stage{'s' * (self.least > 1)} a rank"
        return f"at least {self.least} stages a rank" if virtual < self.least else ""


_ALL = (
    Schedule("gpipe", 1, 1, "loop", "Huang et al., GPipe, arXiv:1811.06965"),
    Schedule("1f1b", 1, 1, "loop", "Narayanan et al., PipeDream, arXiv:1806.03377"),
    Schedule(
        "looped-bfs", 2, None, "loop", "Lamy-Poirier, Breadth-First Pipeline Parallelism, arXiv:2211.05953"
    ),
    Schedule(
        "interleaved-1f1b", 2, None, "loop", "Narayanan et al., Megatron-LM, arXiv:2104.04473, section 2.2"
    ),
    Schedule("zero-bubble", 1, 1, "loop", "Qi et al., Zero Bubble, arXiv:2401.10241, section 2.1: ZB-H1"),
    Schedule("interleaved-zero-bubble", 2, None, "loop", "Qi et al., Zero Bubble, arXiv:2401.10241"),
    Schedule("zb-v", 2, 2, "v", "Qi et al., Pipeline Parallelism with Controllable Memory, arXiv:2405.15362"),
    Schedule(
        "dualpipe-v", 2, 2, "v", "Liu et al., arXiv:2412.19437, section 3.2.1; one half of DualPipe, in a V"
    ),
)
SCHEDULES: Mapping[str, Schedule] = MappingProxyType({each.name: each for each in _ALL})


def places(schedule: str, ranks: int, virtual: int = 1) -> tuple[int, ...]:
    """The rank along `pp` of each of the `ranks * virtual` stages."""
    there, back = tuple(range(ranks)), tuple(reversed(range(ranks)))
    turns = SCHEDULES[schedule].map == "v"
    return tuple(rank for chunk in range(virtual) for rank in (back if turns and chunk % 2 else there))
