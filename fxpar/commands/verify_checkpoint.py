"""`fxpar verify-checkpoint`: are the bytes of a checkpoint what was written?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fxpar.commands import _options as options
from fxpar.commands._bar import Bar
from fxpar.commands._data import DataCommand, data

if TYPE_CHECKING:
    from fxpar.checkpoint.checking import Checked

FOUND_WRONG = 1


@click.command(
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar verify-checkpoint checkpoint
  fxpar verify-checkpoint checkpoint --json
""",
)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@options.as_json
def command(checkpoint: Path, as_json: bool) -> int:
    """Read all of CHECKPOINT: its headers, every tensor against its checksum, and replicas against each other.

    CHECKPOINT is a folder in fxpar's layout or Hugging Face's, or a safetensors file. The exit status is 1 where
    something is not as it was written.
    """
    from fxpar.checkpoint.checking import verify
    from fxpar.checkpoint.request import in_words

    with Bar("verify", hidden=as_json) as bar:
        found = verify(checkpoint, bar)
    if as_json:
        data(json.dumps(asdict(found), indent=2))
    else:
        sums = f"{found.summed} of {found.parts} parts have checksums"
        data(
            "\n".join(
                [*found.wrong, f"{found.tensors} tensors, {in_words(found.bytes)}, {sums}: {_verdict(found)}"]
            )
        )
    return FOUND_WRONG if found.wrong else 0


def _verdict(found: Checked) -> str:
    return f"{len(found.wrong)} wrong" if found.wrong else "all right"
