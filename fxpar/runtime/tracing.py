"""Recording a real run, so that it can be laid beside what `fxpar schedule` expects of it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fxpar.pipeline import trace
from fxpar.pipeline.events import Event
from fxpar.pipeline.orders import Action
from fxpar.runtime.agree import exchange
from fxpar.runtime.engine import Recorder
from fxpar.runtime.rank import Rank


def record(rank: Rank) -> None:
    """Record from now on when a rank runs what. On an accelerator each run is waited for, which takes time."""
    device = next((tensor.device for tensor in rank.parameters()), torch.device("cpu"))
    rank.pipeline.recorder = Recorder(rank.groups.coordinate.get("pp", 0), device)


def write(rank: Rank, path: Path) -> None:
    """Write what was recorded as a Chrome trace, from its first event on; all ranks call it, one writes.

    Of ranks that run the same stages those are in it that are first along all other mesh dims. Clocks of several hosts
    are taken as they are. Raises OSError.
    """
    events = [event for text in exchange(rank, _text(rank)) for event in _events(text)]
    if rank.groups.rank == 0:
        start = min((event.start for event in events), default=0.0)
        moved = [each._replace(start=each.start - start, end=each.end - start) for each in events]
        trace.write(path, sorted(moved, key=lambda event: (event.rank, event.start)))


def _text(rank: Rank) -> str:
    """The events of a rank, if it is one of those that a trace has."""
    recorder, spot = rank.pipeline.recorder, rank.groups.coordinate
    if recorder is None or any(at for dim, at in spot.items() if dim != "pp"):
        return "[]"
    return json.dumps([[event.rank, *event.action, event.start, event.end] for event in recorder.events])


def _events(text: str) -> list[Event]:
    return [
        Event(rank, Action(stage, kind, microbatch), start, end)
        for rank, stage, kind, microbatch, start, end in json.loads(text)
    ]
