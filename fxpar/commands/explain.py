"""`fxpar explain`: why something of a partition is as it is."""

from __future__ import annotations

from pathlib import Path

import click

from fxpar.commands import _options as options
from fxpar.commands._data import DataCommand, data


@click.command(
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar explain out model.layers.0.self_attn.q_proj.weight
  fxpar explain out model.layers.0.reduce_scatter_2
  fxpar explain out model.layers.0.mlp --json
""",
)
@click.argument("folder", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name")
@options.as_json
def command(folder: Path, name: str, as_json: bool) -> None:
    """Tell the dims, the placement, the rule and the line of the model's source of NAME.

    OUT is a folder that `fxpar partition` wrote. NAME is a parameter, buffer, input or output of the model; a value or
    a collective, as stage_*.py call it; or the path of a module, for all that it computes.
    """
    from fxpar.again import again
    from fxpar.explanation import explain, to_json, to_text

    found = explain(again(folder).partition, name)
    data(to_json(found) if as_json else to_text(found))
