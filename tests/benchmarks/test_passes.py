"""The benchmark of the passes runs, and what it counts: more layers are no more text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "passes.py"


def table(*arguments: str) -> list[dict[str, str]]:
    """The rows that the script prints, by the heads of their columns."""
    command = [sys.executable, str(SCRIPT), "--size", "toy", "--rounds", "1", *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCRIPT.parents[1]).stdout
    lines = [line.strip("| \n").split(" | ") for line in said.splitlines() if line.startswith("| ")]
    return [dict(zip(lines[0], line)) for line in lines[1:]]


def test_a_row_has_every_pass_and_more_layers_are_no_more_text() -> None:
    few, many = table("--layers", "4", "8", "--plans", "tp=2")
    assert (few["layers"], few["ranks"], many["layers"]) == ("4", "2", "8")
    assert all(float(few[name]) >= 0 for name in ("export", "capture", "axes", "shard", "emit", "write"))
    assert float(few["peak MiB"]) > 0
    assert few["lines"] == many["lines"]
