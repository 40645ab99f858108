"""The command `fxpar`. Each module of `fxpar/commands` is one subcommand and is imported when it is asked for.

Exit status: 0 done, 1 something was found wrong, 2 used wrongly.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from fxpar import commands
from fxpar.commands._data import printable
from fxpar.errors import FxparError

USED_WRONGLY = 2
INTERRUPTED = 130


class Commands(click.Group):
    """The group of all subcommands: those of the folder `fxpar/commands`, by the names of its modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all commands."""
        names = (module.name for module in pkgutil.iter_modules(commands.__path__))
        return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command; its `command` is what runs."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"fxpar.commands.{cmd_name.replace('-', '_')}").command
        return command


@click.group(cls=Commands, epilog="'fxpar COMMAND --help' shows examples.")
@click.version_option(package_name="fxpar")
def cli() -> None:
    """Split unmodified PyTorch models over device meshes."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Errors are said on stderr, without a traceback."""
    try:
        status = cli.main(args=arguments, prog_name="fxpar", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except click.ClickException as error:
        error.show()
    except FxparError as error:
        click.echo(printable(str(error)), err=True)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        click.echo(printable(f"{name}{error.strerror or error}"), err=True)
    return USED_WRONGLY


def main() -> None:
    """Run the command that the process was started with."""
    sys.exit(run())
