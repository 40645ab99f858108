"""`fxpar partition`: split a model, and write the folder that torchrun runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fxpar.commands import _options as options
from fxpar.commands import _plan
from fxpar.commands._data import DataCommand, data


@click.command(
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar partition model.py --tp 2 --pp 2 -o out
  fxpar partition ./checkpoint-folder --tp 8 --dtype bfloat16 -o out
  fxpar partition model.py:build --plan plan.yaml --set microbatches=8 --dry-run
  fxpar partition model.py --tp 4 --weights checkpoint -o out
  fxpar partition package.module:Model --input 'tokens:int64[4,128]<32000' --tp 4 --no-weights -o out
""",
)
@options.model
@_plan.plan_options
@options.inputs
@_plan.dtype
@_plan.training
@click.option("--no-weights", is_flag=True, help="Write no weights: they are drawn from the plan's seed.")
@click.option("--weights", metavar="PATH", help="Read weights from this checkpoint, of any mesh.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--force", is_flag=True, help="Replace the folder if it is there.")
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@options.as_json
def command(
    model: str,
    inputs: Sequence[str],
    dtype: str | None,
    training: bool,
    no_weights: bool,
    weights: str | None,
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
    if no_weights and weights:
        raise click.UsageError("--weights and --no-weights exclude each other")
    from fxpar.plan import Plan

    plan = _plan.read_plan(**given) or Plan()
    from fxpar.api import partition
    from fxpar.report.summary import summary, text

    target = None if dry_run else out
    found = partition(
        model,
        plan,
        inputs,
        target,
        weights=(weights or not no_weights) if target is not None else False,
        dtype=dtype,
        training=training,
        force=force,
    )
    written = {path.name: path.stat().st_size for path in sorted(target.iterdir())} if target else {}
    facts = summary(found, written)
    data(json.dumps(facts, indent=2) if as_json else text(facts))
