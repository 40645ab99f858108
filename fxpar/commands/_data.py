"""Commands whose stdout has data only: whatever else is printed while they run goes to stderr."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

import click

_STDOUT = "fxpar.stdout"


class DataCommand(click.Command):
    """A command that gives out its data by `data`. The callback returns the exit status, None for 0."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with stdout kept for data."""
        ctx.meta[_STDOUT] = sys.stdout
        with redirect_stdout(sys.stderr):
            return super().invoke(ctx)


def data(text: str) -> None:
    """Write a line, or several, to the stdout of the command that is running; without a reader left, end it.

    What its encoding does not have is written as an escape, and so is what a terminal would obey.
    """
    stdout = click.get_current_context().meta[_STDOUT]
    encoding = getattr(stdout, "encoding", None) or "utf-8"
    try:
        click.echo(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=stdout)
    except BrokenPipeError:
        raise click.exceptions.Exit(0) from None


def printable(text: str) -> str:
    """A text of lines in which nothing moves the cursor or colours a terminal: names in files may be anybody's."""
    return "".join(
        each if each in "\n\t" or each.isprintable() else each.encode("unicode_escape").decode()
        for each in text
    )
