"""What `fxpar schedule` says of a pipeline: a table of its ranks, a comparison of schedules, and both as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fxpar.axes.columns import aligned, size_text
from fxpar.pipeline.events import Event
from fxpar.pipeline.orders import orders, pairs
from fxpar.pipeline.simulation import simulate
from fxpar.pipeline.times import Times
from fxpar.pipeline.usage import RankUsage, Usage, usage
from fxpar.report.costs import Costs
from fxpar.report.number import amount, count, percent
from fxpar.schedule import SCHEDULES, places


@dataclass(frozen=True)
class Pipeline:
    """A schedule with `virtual` stages on each of `ranks`, and how many microbatches a step has.

    `apart`: what the schedule puts beside each other on a rank runs one after the other.
    """

    schedule: str
    ranks: int
    virtual: int
    microbatches: int
    apart: bool = False

    @property
    def stage_ranks(self) -> tuple[int, ...]:
        """The rank of each stage."""
        return places(self.schedule, self.ranks, self.virtual)

    @property
    def title(self) -> str:
        """The pipeline in words."""
        virtual = f", vpp {self.virtual}" if self.virtual > 1 else ""
        microbatches = f"{self.microbatches} microbatch{'es' if self.microbatches > 1 else ''}"
        return f"{self.schedule}: pp {self.ranks}{virtual}, {microbatches}"

    def simulated(self, times: Times) -> tuple[Event, ...]:
        """The events of one step."""
        step = (self.schedule, self.ranks, self.virtual, self.microbatches)
        return simulate(orders(*step), self.stage_ranks, times, () if self.apart else pairs(*step))


def facts(
    pipeline: Pipeline, costs: Costs, events: Sequence[Event], others: Sequence[Pipeline] = ()
) -> dict[str, Any]:
    """A simulated step as plain data. `others` are pipelines to compare it with, for the same costs or equal stages."""
    used = usage(events, costs.kept_bytes)
    times = costs.times
    stages = [
        {"stage": stage, "rank": rank, "forward": times.forward[stage], "input": times.input[stage]}
        | {"weight": times.weight[stage]}
        for stage, rank in enumerate(pipeline.stage_ranks)
    ]
    found = {
        "schedule": pipeline.schedule,
        "pp": pipeline.ranks,
        "vpp": pipeline.virtual,
        "microbatches": pipeline.microbatches,
        "unit": costs.unit,
        "transfer": max(times.transfer, default=0),
        "stages": stages,
        **_figures(used),
        "ranks": [_rank(pipeline, rank) for rank in used.ranks],
        "compared": [_compared(other, costs) for other in others],
        "notes": _notes(pipeline, costs),
        "files": {},
    }
    return {key: _plain(value) for key, value in found.items()}


def text(data: Mapping[str, Any]) -> str:
    """What the facts say, for people."""
    pipeline = Pipeline(data["schedule"], data["pp"], data["vpp"], data["microbatches"])
    blocks = [f"{pipeline.title}\n{_times(data)}", _table(data)]
    if data["compared"]:
        blocks.append(_comparison(data["compared"]))
    if data["notes"]:
        blocks.append("\n".join(["notes", *(f"  {note}" for note in data["notes"])]))
    if data["files"]:
        rows = [[name, size_text(size)] for name, size in data["files"].items()]
        blocks.append(f"files\n{aligned(rows, '  ')}")
    return "\n\n".join(blocks)


def _figures(used: Usage | RankUsage) -> dict[str, Any]:
    return {
        "makespan": used.makespan,
        "work": used.work,
        "idle": used.idle,
        "idle_of_work": used.idle_of_work,
        "idle_of_makespan": used.idle_of_makespan,
        "live": used.live,
    }


def _rank(pipeline: Pipeline, rank: RankUsage) -> dict[str, Any]:
    stages = [stage for stage, at in enumerate(pipeline.stage_ranks) if at == rank.rank]
    found = {"rank": rank.rank, "stages": stages, **_figures(rank), "idle_within": rank.idle_within}
    return found if rank.live_bytes is None else found | {"live_bytes": rank.live_bytes}


def _compared(other: Pipeline, costs: Costs) -> dict[str, Any]:
    stages = other.ranks * other.virtual
    times = costs.times
    if len(times.forward) != stages:
        first = (times.forward[0], times.input[0], times.weight[0])
        times = Times.uniform(stages, *first, transfer=max(times.transfer, default=0))
    used = usage(other.simulated(times))
    found = {"schedule": other.schedule, "vpp": other.virtual, **_figures(used)}
    return {key: found[key] for key in ("schedule", "vpp", "idle_of_work", "idle_of_makespan", "live")}


def _notes(pipeline: Pipeline, costs: Costs) -> list[str]:
    """What the figures leave out."""
    step = (pipeline.schedule, pipeline.ranks, pipeline.virtual, pipeline.microbatches)
    if pipeline.apart or not pairs(*step):
        return []
    apart = usage(Pipeline(*step, apart=True).simulated(costs.times))
    shares = f"{percent(apart.idle_of_work)} of the work, {percent(apart.idle_of_makespan)} of the makespan"
    return [
        "a forward and a backward run beside each other count as one, as long as both together",
        f"one after the other (--apart), idle is {shares}",
    ]


def _times(data: Mapping[str, Any]) -> str:
    """The times of the runs: of any stage where all have the same, else the least and the most of all."""
    words = []
    for letter, key in (("F", "forward"), ("I", "input"), ("W", "weight")):
        values = [stage[key] for stage in data["stages"]]
        least, most = amount(min(values)), amount(max(values))
        words.append(f"{letter} {least}" if least == most else f"{letter} {least} to {most}")
    return (
        f"a run takes {', '.join(words)}, a transfer {amount(data['transfer'])} {data['unit']}; B is I and W"
    )


def _table(data: Mapping[str, Any]) -> str:
    head = ["rank", "stages", "work", "idle", "within", "idle/work", "idle/makespan", "live"]
    rows = [[str(rank["rank"]), " ".join(map(str, rank["stages"])), *_cells(rank)] for rank in data["ranks"]]
    rows.append(["all", "", *_cells(data)])
    if "live_bytes" in data["ranks"][0]:
        head.append("live bytes")
        cells = [size_text(rank["live_bytes"]) for rank in data["ranks"]]
        rows = [[*row, cell] for row, cell in zip(rows, [*cells, ""])]
    makespan = f"makespan {amount(data['makespan'])} {data['unit']}"
    return f"{aligned([head, *rows])}\n{makespan}"


def _cells(figures: Mapping[str, Any]) -> list[str]:
    within = amount(figures["idle_within"]) if "idle_within" in figures else ""
    shares = [percent(figures["idle_of_work"]), percent(figures["idle_of_makespan"])]
    return [amount(figures["work"]), amount(figures["idle"]), within, *shares, count(figures["live"])]


def _comparison(compared: Sequence[Mapping[str, Any]]) -> str:
    head = ["schedule", "vpp", "idle/work", "idle/makespan", "live"]
    rows = [
        [
            other["schedule"],
            str(other["vpp"]),
            percent(other["idle_of_work"]),
            percent(other["idle_of_makespan"]),
            count(other["live"]),
        ]
        for other in compared
    ]
    return aligned([head, *rows])


def comparable(pipeline: Pipeline, fixed: bool) -> list[Pipeline]:
    """The pipelines of all schedules for as many ranks and microbatches.

    They have as many stages a rank if that is `fixed`, else each the least that its schedule takes.
    """
    return [
        Pipeline(
            name,
            pipeline.ranks,
            pipeline.virtual if fixed else each.least,
            pipeline.microbatches,
            pipeline.apart,
        )
        for name, each in SCHEDULES.items()
        if not (fixed and each.misfit(pipeline.virtual))
    ]


def _plain(value: Any) -> Any:
    """The same in what JSON has: whole fractions are integers, others decimal numbers."""
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
