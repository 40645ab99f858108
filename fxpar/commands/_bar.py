"""How far a command has come with bytes, on a terminal."""

from __future__ import annotations

import sys
from typing import Any

import click


class Bar:
    """A progress bar on a terminal, from the first byte on; nothing anywhere else."""

    def __init__(self, label: str, hidden: bool = False) -> None:
        self._bar: Any = None
        self._label = label
        self._hidden = hidden or not sys.stderr.isatty()
        self._done = 0

    def __enter__(self) -> Bar:
        return self

    def __call__(self, done: int, total: int) -> None:
        """Say how many bytes are done."""
        if self._hidden:
            return
        if self._bar is None:
            self._bar = click.progressbar(length=total, label=self._label, file=sys.stderr)
        self._bar.update(done - self._done)
        self._done = done

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()
