"""`python -m fxpar` is the command `fxpar`."""

from __future__ import annotations

from fxpar.cli import main

main()
