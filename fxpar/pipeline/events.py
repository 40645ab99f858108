"""What happened in a pipeline and when: the events of a run, simulated or recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fxpar.pipeline.orders import Action


class Event(NamedTuple):
    """An action of a rank, from `start` to `end`: seconds where it was recorded, the unit of its costs where simulated.

    A transfer is two events, one on either rank.
    """

    rank: int
    action: Action
    start: float
    end: float


def lanes(events: Sequence[Event]) -> list[list[Event]]:
    """The events in as few rows as have no two of them at a time; events come by their starts."""
    rows: list[list[Event]] = []
    for event in events:
        free = next((lane for lane in rows if lane[-1].end <= event.start), None)
        if free is None:
            rows.append([event])
        else:
            free.append(event)
    return rows
