"""`fxpar axes`: the axes of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from fxpar.commands import _options as options
from fxpar.commands._data import DataCommand, data
from fxpar.commands._plan import split_paths


@click.command(
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar axes model.py
  fxpar axes model.py:build --input 'tokens:int64[2,128]<32000'
  fxpar axes ./checkpoint-folder --plan plan.yaml
  fxpar axes package.module:Model --json
""",
)
@options.model
@options.inputs
@options.rules
@options.opaque
@options.plan
@options.as_json
def command(
    model: str,
    inputs: Sequence[str],
    rules: Sequence[str],
    opaque: Sequence[str],
    plan_file: Path | None,
    as_json: bool,
) -> None:
    """Print the axes of MODEL: sizes, instances, what they touch, and the mesh sizes that divide them.

    Below stand the ops without an equation and the parameters on no axis. MODEL is FILE.py, FILE.py:ATTRIBUTE,
    PACKAGE.MODULE:ATTRIBUTE, or a folder with a config.json. With a plan, each axis says what it is divided over.
    """
    from fxpar.api import infer_axes
    from fxpar.plan import Plan

    plan = Plan.from_yaml(plan_file) if plan_file else None
    found = infer_axes(model, inputs=inputs, rules=rules, plan=plan, opaque=split_paths(opaque))
    data(found.to_json() if as_json else found.text())
