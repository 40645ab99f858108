"""What happened in a pipeline and when: the events of a run, simulated or recorded."""

from __future__ import annotations

from typing import NamedTuple

from fxpar.pipeline.orders import Action


class Event(NamedTuple):
    """An action of a rank, from `start` to `end`: seconds where it was recorded, the unit of its costs where simulated.

    A transfer is two events, one on either rank. Both begin when both ranks have asked for it.
    """

    rank: int
    action: Action
    start: float
    end: float
