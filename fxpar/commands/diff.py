"""`fxpar diff`: are two checkpoints the same, bit by bit?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from fxpar.commands import _options as options
from fxpar.commands._bar import Bar
from fxpar.commands._data import DataCommand, data

FOUND_WRONG = 1


@click.command(
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar diff checkpoint other
  fxpar diff checkpoint huggingface-folder --json
""",
)
@click.argument("first", metavar="A", type=click.Path(exists=True, path_type=Path))
@click.argument("second", metavar="B", type=click.Path(exists=True, path_type=Path))
@options.as_json
def command(first: Path, second: Path, as_json: bool) -> int:
    """Compare the checkpoints A and B bit by bit, whatever their layouts.

    Both are folders in fxpar's layout or Hugging Face's, or safetensors files. Each tensor that differs is told with
    its first element that does. The exit status is 1 where they differ.
    """
    from fxpar.checkpoint.checking import diff
    from fxpar.checkpoint.request import in_words

    with Bar("diff", hidden=as_json) as bar:
        found = diff(first, second, bar)
    if as_json:
        data(json.dumps(asdict(found), indent=2))
    else:
        verdict = f"{len(found.wrong)} differ" if found.wrong else "the same"
        data("\n".join([*found.wrong, f"{found.tensors} tensors, {in_words(found.bytes)}: {verdict}"]))
    return FOUND_WRONG if found.wrong else 0
