"""`fxpar inspect`: what a checkpoint holds."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fxpar.commands import _options as options
from fxpar.commands._data import DataCommand, data


@click.command(
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar inspect checkpoint
  fxpar inspect checkpoint 'model.layers.0.*'
  fxpar inspect checkpoint --json
""",
)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@options.as_json
def command(checkpoint: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Print the tensors of CHECKPOINT, or those whose names fit a NAME such as 'layers.0.*'.

    CHECKPOINT is a folder in fxpar's layout or Hugging Face's, or a safetensors file. Only headers are read; what is
    wrong with them is an error.
    """
    from fxpar.checkpoint.inspection import inspection, text

    found = inspection(checkpoint, names)
    data(json.dumps(found, indent=2) if as_json else text(found))
