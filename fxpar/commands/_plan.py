"""The options that make a plan, the same for every command that splits a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fxpar.commands import _options as options
from fxpar.schedule import SCHEDULES

if TYPE_CHECKING:
    from fxpar.plan import Plan

#: The settings of a plan that have an option of their own.
SIZES = ("tp", "pp", "dp", "cp", "ep", "vpp")
_PLACED = (*SIZES, "schedule", "microbatches", "dynamic")
DTYPES = ("float64", "float32", "bfloat16", "float16")

dtype = click.option("--dtype", type=click.Choice(DTYPES), help="The dtype of the parameters.")
training = click.option(
    "--train/--eval", "training", default=True, help="The mode that the model is captured in."
)
_sequence = click.option(
    "--sp/--no-sp", "sequence_parallel", default=None, help="Split the sequence over tp where it is free."
)
_dynamic = click.option(
    "--dynamic", metavar="AXIS,...", help="Axes whose sizes may differ from the example's: batch,sequence."
)
_microbatches = click.option("--microbatches", type=int, metavar="N", help="How many a step has.")
_schedule = click.option(
    "--schedule", type=click.Choice(tuple(SCHEDULES)), metavar="NAME", help=f"One of {', '.join(SCHEDULES)}."
)
_settings = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the plan, as splits.ffn=tp."
)


def pipeline_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a plan that say how a pipeline runs."""
    for option in (_microbatches, _schedule, _size("vpp"), _size("pp")):
        function = option(function)
    return function


def _size(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(f"--{name}", type=int, metavar="N", help=f"The size of {name}.")


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a plan; `read_plan` takes them as they come."""
    for option in (
        options.rules,
        options.opaque,
        _settings,
        options.plan,
        _dynamic,
        _sequence,
        _microbatches,
        _schedule,
    ):
        function = option(function)
    for name in reversed(SIZES):
        function = _size(name)(function)
    return function


def read_plan(
    plan_file: Path | None, settings: Sequence[str], rules: Sequence[str], opaque: Sequence[str], **given: Any
) -> Plan | None:
    """The plan of a file, of options, and of --set, the later before the earlier; None if there is not one option."""
    from fxpar.plan import Plan
    from fxpar.settings import Given

    values = {name: value for name, value in given.items() if value is not None}
    if not (plan_file or settings or rules or opaque or values):
        return None
    plan = Plan.from_yaml(plan_file) if plan_file else Plan()
    places = {name: Given(f"--{name} {value}") for name, value in values.items() if name in _PLACED}
    if "dynamic" in values:
        values["dynamic"] = [axis.strip() for axis in values["dynamic"].split(",")]
    if rules:
        values["rules"] = [*(plan.rules or ()), *rules]
    if opaque:
        values["opaque"] = [*(plan.opaque or ()), *split_paths(opaque)]
    if values:
        plan = replace(plan, **values, places={**plan.places, **places})
    return plan.override(settings)


def split_paths(given: Sequence[str]) -> list[str]:
    """The paths of an option that takes several, between commas or each on its own."""
    return [path.strip() for text in given for path in text.split(",") if path.strip()]
