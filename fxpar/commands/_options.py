"""The arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

#: FILE.py, FILE.py:ATTRIBUTE, PACKAGE.MODULE:ATTRIBUTE, or a folder in Hugging Face's layout.
model = click.argument("model")
inputs = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SPEC",
    help="An example input, as NAME:DTYPE[SIZE,...]<HIGH. Several times for several inputs.",
)
rules = click.option(
    "--rules",
    multiple=True,
    metavar="DIR",
    help="A folder of rules that is read after the built-in ones. Several times for several folders.",
)
opaque = click.option(
    "--opaque",
    multiple=True,
    metavar="PATH,...",
    help="Modules that no graph can follow: each stays whole. Patterns, as blocks.*.experts.",
)
plan = click.option(
    "--plan",
    "plan_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A plan, plan.yaml.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON.")
