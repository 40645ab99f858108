"""`fxpar verify`: is a partition the model?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fxpar.commands import _options as options
from fxpar.commands import _plan
from fxpar.commands._data import DataCommand, data, printable
from fxpar.errors import RankError

FOUND_WRONG = 1


@click.command(
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar verify out
  fxpar verify out --simulate --json
  fxpar verify model.py --tp 2 --pp 2 --dtype float64
  fxpar verify ./checkpoint-folder --plan plan.yaml --eval --simulate
""",
)
@click.argument("target", metavar="OUT|MODEL")
@_plan.plan_options
@options.inputs
@_plan.dtype
@_plan.training
@click.option("--simulate", is_flag=True, help="Run all ranks in this process, on the CPU.")
@click.option("--device", metavar="TYPE", help="cpu, or a type of accelerator. Default: the accelerator.")
@click.option("--timeout", type=float, default=120.0, show_default=True, help="Seconds to wait for a rank.")
@options.as_json
def command(
    target: str,
    inputs: Sequence[str],
    dtype: str | None,
    training: bool,
    simulate: bool,
    device: str | None,
    timeout: float,
    as_json: bool,
    **given: Any,
) -> int:
    """Run every rank for one step and compare with the whole model.

    OUT is a folder that `fxpar partition` wrote; its modules and files are run as they are. MODEL is as for
    `fxpar partition`, with the same options. Compared are the loss, every gradient, the gradient norm, the parameters
    after a step of AdamW, and the outputs; a model that draws random numbers is given those of the ranks. The exit
    status is 1 where something is beyond the tolerance of the dtype, or a rank fails.
    """
    plan = _plan.read_plan(**given)
    if (Path(target) / "manifest.json").is_file():
        if plan is not None or inputs or dtype or not training:
            raise click.UsageError(f"{target} has its own plan and batch: leave the options of a model out")
    elif plan is None:
        raise click.UsageError("give a plan for the model, such as --tp 2")
    import torch

    from fxpar.verification.run import verify

    try:
        report = verify(
            target,
            plan=plan,
            simulate=simulate,
            inputs=inputs,
            training=training,
            dtype=getattr(torch, dtype) if dtype else None,
            device=device,
            timeout=timeout,
        )
    except RankError as error:
        click.echo(printable(str(error)), err=True)
        return FOUND_WRONG
    data(report.to_json() if as_json else report.text())
    return 0 if report.ok else FOUND_WRONG
