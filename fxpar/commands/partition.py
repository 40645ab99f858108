"""`fxpar partition`: split a model, and write the folder that torchrun runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fxpar.commands import _options as options
from fxpar.commands._data import DataCommand, data

if TYPE_CHECKING:
    from fxpar.plan import Plan

#: The settings of a plan that have an option of their own.
SIZES = ("tp", "pp", "dp", "cp", "ep", "vpp")
DTYPES = ("float64", "float32", "bfloat16", "float16")


def sizes(function: Any) -> Any:
    """The options for the sizes of the mesh."""
    for name in reversed(SIZES):
        function = click.option(f"--{name}", type=int, metavar="N", help=f"The size of {name}.")(function)
    return function


@click.command(
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar partition model.py --tp 2 --pp 2 -o out
  fxpar partition ./checkpoint-folder --tp 8 --dtype bfloat16 -o out
  fxpar partition model.py:build --plan plan.yaml --set microbatches=8 --dry-run
  fxpar partition package.module:Model --input 'tokens:int64[4,128]<32000' --tp 4 --no-weights -o out
""",
)
@options.model
@sizes
@click.option(
    "--sp/--no-sp", "sequence_parallel", default=None, help="Split the sequence over tp where it is free."
)
@options.plan
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the plan, as splits.ffn=tp."
)
@options.rules
@options.inputs
@click.option("--dtype", type=click.Choice(DTYPES), help="The dtype of the parameters.")
@click.option("--train/--eval", "training", default=True, help="The mode that the model is captured in.")
@click.option("--no-weights", is_flag=True, help="Write no weights: they are drawn from the plan's seed.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--force", is_flag=True, help="Replace the folder if it is there.")
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@options.as_json
def command(
    model: str,
    plan_file: Path | None,
    settings: Sequence[str],
    rules: Sequence[str],
    inputs: Sequence[str],
    dtype: str | None,
    training: bool,
    no_weights: bool,
    out: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Split MODEL by a plan, and write a folder that torchrun runs.

    MODEL is FILE.py, FILE.py:ATTRIBUTE, PACKAGE.MODULE:ATTRIBUTE, or a folder with a config.json. Options go before
    the file of the plan, and --set before both. A summary is printed.
    """
    if out is None and not dry_run:
        raise click.UsageError("give a folder to write with -o, or --dry-run")
    plan = _plan(plan_file, given, settings, rules)
    from fxpar.api import partition
    from fxpar.report.summary import summary, text

    target = None if dry_run else out
    found = partition(
        model,
        plan,
        inputs,
        target,
        weights=not no_weights and target is not None,
        dtype=dtype,
        training=training,
        force=force,
    )
    written = {path.name: path.stat().st_size for path in sorted(target.iterdir())} if target else {}
    facts = summary(found, written)
    data(json.dumps(facts, indent=2) if as_json else text(facts))


def _plan(file: Path | None, given: dict[str, Any], settings: Sequence[str], rules: Sequence[str]) -> Plan:
    """The plan of a file, of options, and of --set, the later before the earlier."""
    from fxpar.plan import Plan
    from fxpar.settings import Given

    plan = Plan.from_yaml(file) if file else Plan()
    values = {name: value for name, value in given.items() if value is not None}
    places = {name: Given(f"--{name} {value}") for name, value in values.items() if name in SIZES}
    if rules:
        values["rules"] = [*(plan.rules or ()), *rules]
    if values:
        plan = replace(plan, **values, places={**plan.places, **places})
    return plan.override(settings)
