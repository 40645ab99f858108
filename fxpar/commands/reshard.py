"""`fxpar reshard`: give a checkpoint another layout."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fxpar.commands import _options as options
from fxpar.commands._bar import Bar
from fxpar.commands._data import DataCommand, data


@click.command(
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar reshard checkpoint other --tp 4 --pp 1
  fxpar reshard checkpoint other --plan plan.yaml --dry-run
  fxpar reshard checkpoint other --to hf
  fxpar reshard huggingface-folder other --like out --tp 8
""",
)
@click.argument("source", metavar="SRC", type=click.Path(exists=True, path_type=Path))
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option("--tp", type=int, metavar="N", help="The size of tp.")
@click.option("--pp", type=int, metavar="N", help="The size of pp.")
@click.option("--ep", type=int, metavar="N", help="The size of ep.")
@click.option("--vpp", type=int, metavar="N", help="Stages of each pp rank.")
@options.plan
@click.option(
    "--like",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="A partition of the same model, which knows of the axes of its tensors.",
)
@click.option("--to", "layout", type=click.Choice(["hf"]), help="Hugging Face's layout.")
@click.option("--max-shard-size", "most", default="50GB", show_default=True, help="Of a file, with --to hf.")
@click.option("--resume", is_flag=True, help="Go on with a copy that was interrupted.")
@click.option("--force", is_flag=True, help="Replace the checkpoint DST, at the end, if it is there.")
@click.option("--dry-run", is_flag=True, help="Prove that it can be done, and write nothing.")
@options.as_json
def command(
    source: Path,
    destination: Path,
    tp: int | None,
    pp: int | None,
    ep: int | None,
    vpp: int | None,
    plan_file: Path | None,
    like: Path | None,
    layout: str | None,
    most: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Write the checkpoint SRC to a new folder DST, for another mesh or in Hugging Face's layout.

    SRC is a folder of fxpar's or of Hugging Face's, or a safetensors file. Neither torch nor the model is needed. Each
    byte is read once, and DST appears whole at the end or not at all.
    """
    from fxpar.checkpoint.request import Request, said, size, stopped
    from fxpar.checkpoint.reshard import reshard

    try:
        limit = size(most)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--max-shard-size") from error
    sizes = {dim: n for dim, n in (("tp", tp), ("pp", pp), ("ep", ep)) if n is not None}
    request = Request(sizes, vpp, plan_file, like, layout is not None, limit)
    target = request.target()
    with Bar("reshard", hidden=as_json) as bar:
        try:
            report = reshard(source, destination, target, hf=request.hf, progress=bar, **given)
        except KeyboardInterrupt:
            click.echo(f"\n{stopped()}", err=True)
            raise
    data(json.dumps(asdict(report), indent=2) if as_json else said(report, dry=given["dry_run"]))
