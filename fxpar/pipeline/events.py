"""What happened on the ranks of a pipeline, or would happen."""

from __future__ import annotations

from typing import NamedTuple

from fxpar.pipeline.orders import Action


class Event(NamedTuple):
    """One run of a stage on a rank along `pp`, from `start` to `end`, in units of time or in seconds."""

    rank: int
    action: Action
    start: float
    end: float
