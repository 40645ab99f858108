"""Events in the Chrome trace format, which https://ui.perfetto.dev and chrome://tracing open.

A process for each rank, with its runs in one row and its transfers in the rows below, an arrow from each run to that
which needs its result on another rank, and a counter of live activations. The format is "Trace Event Format", Google,
2016.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fxpar import textfile
from fxpar.pipeline.events import Event, lanes
from fxpar.pipeline.orders import BACKWARD, COMPUTATIONS, FORWARD, INPUT
from fxpar.pipeline.usage import live

#: Of a second, the unit of what is recorded.
MICROSECONDS = 1e6
_CATEGORIES = {"F": "forward", "B": "backward", "I": "backward input", "W": "backward weight"}
#: Where in a run its arrow begins: an arrow belongs to the run in which it stands.
_INSIDE = 0.999


def trace(events: Iterable[Event], microseconds: float = MICROSECONDS) -> dict[str, Any]:
    """The events as plain data; `microseconds` is how many a unit of their time has. The first begins at 0.

    Transfers that take no time are left out, their arrows are not.
    """
    ordered = sorted(events, key=lambda event: (event.start, event.end))
    first = ordered[0].start if ordered else 0
    scaled = [
        Event(
            event.rank,
            event.action,
            float(event.start - first) * microseconds,
            float(event.end - first) * microseconds,
        )
        for event in ordered
    ]
    entries = [entry for rank, mine in _by_rank(scaled) for entry in _process(rank, mine)]
    return {"traceEvents": [*entries, *_arrows(scaled)], "displayTimeUnit": "ms"}


def write(path: Path, events: Iterable[Event], microseconds: float = MICROSECONDS) -> None:
    """Write the events to a file, at once. Raises OSError."""
    textfile.put(path, json.dumps(trace(events, microseconds), separators=(",", ":")) + "\n")


def _by_rank(events: Sequence[Event]) -> Iterator[tuple[int, list[Event]]]:
    for rank in sorted({event.rank for event in events}):
        yield rank, [event for event in events if event.rank == rank]


def _process(rank: int, events: Sequence[Event]) -> Iterator[dict[str, Any]]:
    """The names, rows and the counter of a rank."""
    runs = [event for event in events if event.action.kind in COMPUTATIONS]
    transfers = [e for e in events if e.action.kind not in COMPUTATIONS and e.end > e.start]
    yield _named("process_name", rank, 0, {"name": f"rank {rank}"})
    yield _named("process_sort_index", rank, 0, {"sort_index": rank})
    row = 0
    for name, some in ((f"rank {rank}", runs), (f"rank {rank} transfers", transfers)):
        for lane in lanes(some):
            yield _named("thread_name", rank, row, {"name": name})
            yield _named("thread_sort_index", rank, row, {"sort_index": row})
            yield from (_complete(event, row) for event in lane)
            row += 1
    for time, count in live(runs):
        args = {"microbatches": round(float(count), 3)}
        yield {
            "name": "live activations",
            "ph": "C",
            "pid": rank,
            "tid": 0,
            "ts": _rounded(time),
            "args": args,
        }


def _named(kind: str, rank: int, row: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": rank, "tid": row, "args": args}


def _complete(event: Event, row: int) -> dict[str, Any]:
    stage, kind, microbatch = event.action
    return {
        "name": f"{kind}{microbatch} stage {stage}",
        "cat": _CATEGORIES.get(kind, "transfer"),
        "ph": "X",
        "pid": event.rank,
        "tid": row,
        "ts": _rounded(event.start),
        "dur": _rounded(_rounded(event.end) - _rounded(event.start)),
        "args": {"stage": stage, "kind": kind, "microbatch": microbatch},
    }


def _arrows(events: Sequence[Event]) -> Iterator[dict[str, Any]]:
    """An arrow from each run to its follower on another rank: forward to the next stage, backward to the one before.

    Where a run is there several times, as in several steps, the first goes with the first.
    """
    rows = {
        id(e): row
        for _, mine in _by_rank(events)
        for row, lane in enumerate(lanes(_runs(mine)))
        for e in lane
    }
    made: dict[tuple[int, str, int], list[Event]] = {}
    for event in _runs(events):
        stage, kind, microbatch = event.action
        made.setdefault((stage, BACKWARD if kind == INPUT else kind, microbatch), []).append(event)
    number = 0
    for (stage, kind, microbatch), sources in sorted(made.items()):
        step = {FORWARD: 1, BACKWARD: -1}.get(kind)
        targets = made.get((stage + step, kind, microbatch), ()) if step else ()
        for source, target in zip(sources, targets):
            if source.rank == target.rank:
                continue
            number += 1
            arrow = {"name": "activation" if kind == FORWARD else "gradient", "cat": "transfer", "id": number}
            leaves = source.start + _INSIDE * (source.end - source.start)
            yield arrow | {"ph": "s", "pid": source.rank, "tid": rows[id(source)], "ts": _rounded(leaves)}
            yield arrow | {
                "ph": "f",
                "bp": "e",
                "pid": target.rank,
                "tid": rows[id(target)],
                "ts": _rounded(target.start),
            }


def _runs(events: Iterable[Event]) -> list[Event]:
    return [event for event in events if event.action.kind in COMPUTATIONS]


def _rounded(time: float) -> float:
    return round(time, 3)
