"""Every benchmark of speed and memory runs at toy size and prints its rows. No time is looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def rows(script: str, *options: str) -> list[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--toy", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.splitlines()


def test_step() -> None:
    machine, head, *found = rows("step.py", "--mode", "eager", "--model", "gpt2")
    assert "cores" in machine
    assert head.split()[:4] == ["model", "mode", "emitted", "original"]
    assert [row.split()[:2] for row in found] == [["gpt2", "eager"]]


@pytest.mark.gloo
def test_tensor() -> None:
    _, _, row, emitted, by_hand = rows("tensor.py", "--plan", "tp")
    assert row.split()[0] == "tp"
    assert emitted.strip() == "emitted: 12 all-reduce"
    assert by_hand.strip().startswith("by hand: ")


@pytest.mark.gloo
def test_memory() -> None:
    _, model, _, *found = rows("memory.py", "--tp", "2")
    assert model.startswith("model ")
    assert [row.split("  ")[0].strip() for row in found] == [
        "passes alone",
        "fxpar partition",
        "load, tp 2",
        "and a step",
    ]


@pytest.mark.gloo
def test_pipeline() -> None:
    found = rows("pipeline.py", "--ranks", "2", "--schedule", "1f1b", "--schedule", "zb-v")
    assert [row.split()[:2] for row in found if row[:4] in ("1f1b", "zb-v")][2:] == [
        ["1f1b", "same"],
        ["1f1b", "chosen"],
        ["zb-v", "chosen"],
    ]
