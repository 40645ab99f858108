"""`fxpar schedule`: simulate the pipeline of a plan, and write its timeline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from fxpar.commands import _options as options
from fxpar.commands import _plan
from fxpar.commands._data import DataCommand, data

if TYPE_CHECKING:
    from fxpar.errors import FxparError
    from fxpar.pipeline.spec import StageSpec
    from fxpar.plan import Plan
    from fxpar.report.costs import Costs

TRACE, DRAWING, PLAN = "timeline.json", "timeline.svg", "plan.yaml"
#: How many forward runs a step may have.
MOST = 1_000_000


@click.command(
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar schedule out/plan.yaml
  fxpar schedule --pp 4 --schedule 1f1b --microbatches 8
  fxpar schedule --pp 4 --vpp 2 --schedule zb-v --microbatches 8 --times 1,1.2,0.8 --transfer 0.1 -o drawings
  fxpar schedule --pp 4 --microbatches 8 --compare --json
""",
)
@click.argument("plan_file", metavar="[PLAN]", required=False, type=click.Path(exists=True, path_type=Path))
@_plan.pipeline_options
@click.option(
    "--times", metavar="F,I,W", help="What a run takes on every stage: forward, and both halves of backward."
)
@click.option("--transfer", metavar="T", help="What a transfer between two ranks takes, 0 if not given.")
@click.option(
    "--apart", is_flag=True, help="Runs that dualpipe-v puts beside each other run one after the other."
)
@click.option("--compare", is_flag=True, help="Compare all schedules for as many ranks and microbatches.")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write to: the plan's.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@options.as_json
def command(
    plan_file: Path | None,
    times: str | None,
    transfer: str | None,
    apart: bool,
    compare: bool,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Simulate a step of the pipeline of PLAN: when each rank runs what, how long it is idle, what it keeps alive.

    PLAN is a plan.yaml or its folder; options go before it. In a folder that `fxpar partition` wrote, runs take what
    its cost model says of each stage; else every run takes one unit, a backward run as a whole two. Writes
    timeline.json, which https://ui.perfetto.dev opens, and timeline.svg, beside PLAN or to the folder of -o.
    """
    if plan_file is not None and plan_file.is_dir():
        plan_file /= PLAN
    if plan_file is None and given["pp"] is None:
        raise click.UsageError("give a PLAN, or how many ranks a pipeline has with --pp")
    plan, runs, wait = _read(plan_file, times, transfer, given)
    from fxpar.pipeline import trace
    from fxpar.report import pipeline as report
    from fxpar.report.timeline import timeline
    from fxpar.textfile import put

    beside = plan_file.parent if plan_file else None
    stages = _partitioned(beside) if beside else ()
    notes: list[str] = []
    costs = _costs(plan, stages, runs, wait, notes)
    pipeline = report.Pipeline(str(plan.schedule), plan.pp, plan.vpp, plan.microbatches or 1, apart)
    fixed = plan.vpp > 1 or plan.pp == 1 or costs.kept_bytes is not None
    events = pipeline.simulated(costs.times)
    facts = report.facts(pipeline, costs, events, report.comparable(pipeline, fixed) if compare else ())
    facts["notes"] = [*notes, *facts["notes"]]
    target = None if dry_run else out or beside
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
        trace.write(target / TRACE, events, costs.microseconds)
        put(target / DRAWING, timeline(events, pipeline.title, costs.unit).text())
        facts["files"] = {name: (target / name).stat().st_size for name in (TRACE, DRAWING)}
    elif not dry_run:
        facts["notes"].append("no file is written without a folder: give one with -o")
    data(json.dumps(facts, indent=2) if as_json else report.text(facts))


def _read(
    plan_file: Path | None, times: str | None, transfer: str | None, given: Mapping[str, Any]
) -> tuple[Plan, list[float] | None, float]:
    """The plan with a schedule and a number of microbatches, and the times; all that is wrong with them at once."""
    from fxpar.errors import PlanError, Violations, raise_all
    from fxpar.plan import Plan

    errors: list[FxparError] = []
    plan = Plan()
    try:
        plan = _resolved(_plan.read_plan(plan_file, (), (), (), **given) or plan)
    except PlanError as error:
        errors += error.errors if isinstance(error, Violations) else [error]
    runs = _numbers("--times", times, 3, errors) if times is not None else None
    wait = _numbers("--transfer", transfer, 1, errors) if transfer is not None else [0]
    raise_all(errors)
    return plan, runs, wait[0]


def _resolved(plan: Plan) -> Plan:
    """The plan with what it leaves open as for a large batch. Raises PlanError for more runs than are simulated."""
    from fxpar.errors import PlanError

    count = plan.microbatches or 2 * plan.pp
    runs = plan.stages * count
    if runs > MOST:
        raise PlanError(
            f"{plan.stages} stages and {count} microbatches make {runs} forward runs, and {MOST} are simulated at most",
            details=["fewer microbatches show the same: what repeats is in the middle of a step"],
        )
    return replace(plan, microbatches=count).resolve(count * plan.dp * plan.ep)


def _numbers(option: str, text: str, count: int, errors: list[FxparError]) -> list[float]:
    """The numbers of an option, as ints or Fractions; what is wrong with them is added to the errors."""
    from fxpar.errors import PlanError
    from fxpar.settings import Given

    found: list[float] = []
    words = text.split(",")
    for word in words:
        try:
            value = float(word)
            exact = Fraction(word.strip()) if value else Fraction(0)
        except ValueError:
            value = -1
        if not 0 <= value < float("inf"):
            errors.append(PlanError(f"`{word}` is no time of at least 0", place=Given(f"{option} {text}")))
        else:
            found.append(cast("float", int(exact) if exact.denominator == 1 else exact))
    if len(words) != count:
        example = "1,1,1: of F, I and W" if count > 1 else "0.5"
        what = f"wants {count} number{'s' * (count > 1)}, has {len(words)}"
        errors.append(PlanError(what, place=Given(f"{option} {text}"), details=[f"{option} {example}"]))
    elif len(found) == count and count > 1 and not all(found):
        errors.append(PlanError("a run takes more than 0", place=Given(f"{option} {text}")))
    return found


def _partitioned(folder: Path) -> tuple[StageSpec, ...]:
    """The stages of the partition in a folder, none if there is no manifest. Raises EmitError."""
    from fxpar.emit.folder import MANIFEST
    from fxpar.runtime.manifest import Manifest

    return Manifest.read(folder).stages if (folder / MANIFEST).is_file() else ()


def _costs(
    plan: Plan, stages: Sequence[StageSpec], runs: list[float] | None, transfer: float, notes: list[str]
) -> Costs:
    """The times that were given, or those of the partition, or one unit for each run; why is added to the notes."""
    from fxpar.report import costs

    if runs is not None:
        return costs.uniform(plan.stages, runs, transfer)
    found = costs.of_partition(stages, transfer) if len(stages) == plan.stages else None
    if stages and found is None:
        why = "its manifest has no costs" if len(stages) == plan.stages else f"it has {len(stages)} stages"
        notes.append(f"every run takes one unit, not what the partition's stages cost: {why}")
    return found or costs.uniform(plan.stages, transfer=transfer)
