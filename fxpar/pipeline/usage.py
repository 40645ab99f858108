"""How well the ranks of a pipeline were used, simulated or recorded: idle time, and what they kept alive.

Idle is what of the makespan a rank does not run anything, transfers counted as nothing. There are two shares of it:
idle/work, which for GPipe and 1F1B is (p-1)/m with p ranks and m microbatches, and idle/makespan, which is
(p-1)/(m+p-1).

An activation is what one microbatch keeps alive on one stage, from the start of its forward run to the end of its
backward run, or of that run's second half (W) where it is split. On a rank with v stages it counts 1/v: the figures are
in microbatches of the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from fxpar.pipeline.events import Event
from fxpar.pipeline.orders import BACKWARD, COMPUTATIONS, FORWARD, WEIGHT


@dataclass(frozen=True)
class RankUsage:
    """One rank: `work` is the time in which it runs something, `start` and `end` are of its first and last run.

    `live` is the peak of live activations in microbatches of the rank, `live_bytes` that of what they weigh, if known.
    """

    rank: int
    work: float
    start: float
    end: float
    makespan: float
    live: Fraction
    live_bytes: int | None = None

    @property
    def idle(self) -> float:
        """The part of the makespan in which nothing runs."""
        return self.makespan - self.work

    @property
    def idle_within(self) -> float:
        """The idle time between the rank's first and last run."""
        return self.end - self.start - self.work

    @property
    def idle_of_work(self) -> Fraction:
        """Idle as a share of the work."""
        return _share(self.idle, self.work)

    @property
    def idle_of_makespan(self) -> Fraction:
        """Idle as a share of the makespan."""
        return _share(self.idle, self.makespan)


@dataclass(frozen=True)
class Usage:
    """All ranks of a pipeline, and the time from the first run's start to the last one's end."""

    ranks: tuple[RankUsage, ...]
    makespan: float

    @property
    def work(self) -> float:
        """The work of all ranks."""
        return sum(rank.work for rank in self.ranks)

    @property
    def idle(self) -> float:
        """The idle time of all ranks."""
        return sum(rank.idle for rank in self.ranks)

    @property
    def idle_of_work(self) -> Fraction:
        """Idle as a share of the work, of all ranks."""
        return _share(self.idle, self.work)

    @property
    def idle_of_makespan(self) -> Fraction:
        """Idle as a share of the makespan, of all ranks."""
        return _share(self.idle, self.makespan * len(self.ranks))

    @property
    def live(self) -> Fraction:
        """The largest peak of live activations of any rank."""
        return max((rank.live for rank in self.ranks), default=Fraction(0))


def usage(events: Iterable[Event], kept_bytes: Sequence[int] | None = None) -> Usage:
    """Measure a run. `kept_bytes` is what an activation of each stage weighs."""
    runs: dict[int, list[Event]] = {}
    for event in events:
        if event.action.kind in COMPUTATIONS:
            runs.setdefault(event.rank, []).append(event)
    everything = [event for mine in runs.values() for event in mine]
    first = min((event.start for event in everything), default=0)
    makespan = max((event.end for event in everything), default=0) - first
    return Usage(tuple(_rank(rank, runs[rank], makespan, kept_bytes) for rank in sorted(runs)), makespan)


def live(events: Sequence[Event]) -> list[tuple[float, Fraction]]:
    """The live activations of one rank's events, as times with what there is from then on."""
    stages = {event.action.stage for event in events if event.action.kind in COMPUTATIONS}
    steps = [(time, sign) for time, sign, _ in _changes(events)]
    counts = accumulate(sign for _, sign in steps)
    curve = {time: Fraction(count, len(stages)) for (time, _), count in zip(steps, counts)}
    return list(curve.items())


def _rank(rank: int, runs: Sequence[Event], makespan: float, kept_bytes: Sequence[int] | None) -> RankUsage:
    weights = [sign * kept_bytes[stage] for _, sign, stage in _changes(runs)] if kept_bytes else []
    return RankUsage(
        rank,
        _covered(runs),
        min(run.start for run in runs),
        max(run.end for run in runs),
        makespan,
        max((count for _, count in live(runs)), default=Fraction(0)),
        max(accumulate(weights), default=0) if kept_bytes else None,
    )


def _changes(events: Iterable[Event]) -> list[tuple[float, int, int]]:
    """When an activation of which stage begins (1) and ends (-1) to live. What ends at a time goes first."""
    events = list(events)
    learns = any(event.action.kind in (BACKWARD, WEIGHT) for event in events)
    ends = (BACKWARD, WEIGHT) if learns else (FORWARD,)
    found = [(e.start, 1, e.action.stage) for e in events if e.action.kind == FORWARD]
    found += [(e.end, -1, e.action.stage) for e in events if e.action.kind in ends]
    return sorted(found)


def _covered(runs: Iterable[Event]) -> float:
    """The time in which at least one of the runs goes on."""
    total: float = 0
    until: float | None = None
    for run in sorted(runs, key=lambda run: (run.start, run.end)):
        begin = run.start if until is None else max(until, run.start)
        if run.end > begin:
            total += run.end - begin
            until = run.end
    return total


def _share(part: float, whole: float) -> Fraction:
    return Fraction(part) / Fraction(whole) if whole else Fraction(0)
