"""Traces: what the format demands holds, and what is in them is what happened."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fxpar.pipeline import trace
from fxpar.pipeline.events import Event
from fxpar.pipeline.orders import Action, orders, pairs
from fxpar.pipeline.simulation import simulate
from fxpar.pipeline.times import Times
from fxpar.schedule import SCHEDULES, places

#: What an entry of each phase has, with its type.
NUMBER = (int, float)
SCHEMA: dict[str, dict[str, Any]] = {
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
    "X": {"name": str, "cat": str, "pid": int, "tid": int, "ts": NUMBER, "dur": NUMBER, "args": dict},
    "C": {"name": str, "pid": int, "tid": int, "ts": NUMBER, "args": dict},
    "s": {"name": str, "cat": str, "id": int, "pid": int, "tid": int, "ts": NUMBER},
    "f": {"name": str, "cat": str, "id": int, "pid": int, "tid": int, "ts": NUMBER, "bp": str},
}


def simulated(schedule: str, transfer: float = 0) -> tuple[Event, ...]:
    virtual = SCHEDULES[schedule].least
    return simulate(
        orders(schedule, 4, virtual, 8),
        places(schedule, 4, virtual),
        Times.uniform(4 * virtual, transfer=transfer),
        pairs(schedule, 4, virtual, 8),
    )


def check(found: dict[str, Any]) -> None:
    """Hold a trace against the format: fields and their types, runs that do not overlap in a row, arrows in runs."""
    assert set(found) == {"traceEvents", "displayTimeUnit"}
    assert found["displayTimeUnit"] in ("ms", "ns")
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for entry in found["traceEvents"]:
        schema = SCHEMA[entry["ph"]]
        assert set(entry) == {*schema, "ph"}
        assert all(isinstance(entry[key], kind) for key, kind in schema.items())
        assert entry.get("ts", 0) >= 0
        assert entry.get("dur", 0) >= 0
        if entry["ph"] == "X":
            rows.setdefault((entry["pid"], entry["tid"]), []).append(
                (entry["ts"], entry["ts"] + entry["dur"])
            )
    for row in rows.values():
        assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(sorted(row)))
    sides = Counter((entry["id"], entry["ph"]) for entry in found["traceEvents"] if "id" in entry)
    assert set(sides.values()) <= {1}
    starts, ends = ({e["id"]: e for e in found["traceEvents"] if e["ph"] == phase} for phase in ("s", "f"))
    assert set(starts) == set(ends)
    for number, start in starts.items():
        end = ends[number]
        assert start["pid"] != end["pid"]
        assert start["ts"] <= end["ts"]
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        for side in (start, end):
            assert any(begin <= side["ts"] < until for begin, until in rows[side["pid"], side["tid"]])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("transfer", [0, 2])
def test_the_format(schedule: str, transfer: float) -> None:
    check(json.loads(json.dumps(trace.trace(simulated(schedule, transfer), 1000))))


def test_what_a_trace_has() -> None:
    entries = trace.trace(simulated("1f1b", 1), 1000)["traceEvents"]
    phases = Counter(entry["ph"] for entry in entries)
    boundaries, runs = 2 * 3 * 8, 2 * 4 * 8
    assert phases["X"] == runs + 2 * boundaries
    assert phases["s"] == phases["f"] == boundaries
    named = {(e["name"], e["args"].get("name")) for e in entries if e["ph"] == "M"}
    ranks = range(4)
    assert {("process_name", f"rank {rank}") for rank in ranks} < named
    assert {("thread_name", f"rank {rank}") for rank in ranks} < named
    assert {("thread_name", f"rank {rank} transfers") for rank in ranks} < named
    begun = {e["name"]: e for e in reversed(entries) if e["ph"] == "X" and e["pid"] == 2}
    assert begun["F0 stage 2"] == {
        "name": "F0 stage 2",
        "cat": "forward",
        "ph": "X",
        "pid": 2,
        "tid": 0,
        "ts": 4000.0,
        "dur": 1000.0,
        "args": {"stage": 2, "kind": "F", "microbatch": 0},
    }
    received = begun["RECV_F0 stage 2"]
    assert (received["cat"], received["ts"], received["dur"]) == ("transfer", 3000.0, 1000.0)


def test_the_counter() -> None:
    entries = trace.trace(simulated("1f1b"), 1)["traceEvents"]
    peaks = {
        rank: max(e["args"]["microbatches"] for e in entries if e["ph"] == "C" and e["pid"] == rank)
        for rank in range(4)
    }
    assert peaks == {0: 4, 1: 3, 2: 2, 3: 1}


def test_transfers_that_take_no_time_are_arrows_alone() -> None:
    entries = trace.trace(simulated("zb-v"))["traceEvents"]
    assert {entry["cat"] for entry in entries if entry["ph"] == "X"}.isdisjoint({"transfer"})
    assert sum(entry["ph"] == "s" for entry in entries) == 2 * 6 * 8


def test_what_was_recorded_in_seconds_begins_at_0() -> None:
    """Two steps of two ranks, by a clock that began long ago; the first of either goes with the first."""
    events = [
        Event(rank, Action(rank, "F", 0), 5000.0 + step + rank * 0.25, 5000.25 + step + rank * 0.25)
        for step in (0, 1)
        for rank in (1, 0)
    ]
    found = trace.trace(events)
    check(found)
    runs = [(e["pid"], e["ts"], e["dur"]) for e in found["traceEvents"] if e["ph"] == "X"]
    assert runs == [(0, 0, 250e3), (0, 1e6, 250e3), (1, 250e3, 250e3), (1, 1.25e6, 250e3)]
    arrows = [(e["ts"]) for e in found["traceEvents"] if e["ph"] == "f"]
    assert arrows == [250e3, 1.25e6]


def test_nothing_recorded() -> None:
    assert trace.trace([]) == {"traceEvents": [], "displayTimeUnit": "ms"}


def test_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "timeline.json"
    trace.write(path, simulated("1f1b"), 1000)
    text = path.read_text()
    assert json.loads(text) == json.loads(json.dumps(trace.trace(simulated("1f1b"), 1000)))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        trace.write(path, [])
    assert raised.value.filename == str(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["timeline.json"]
    assert path.read_text() == text
