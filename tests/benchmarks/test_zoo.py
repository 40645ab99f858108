"""The zoo: some of its models are tried."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "zoo.py"

#: One of each way to be built.
CHOSEN = (
    "gemma2",
    "olmo2, eager",
    "falcon (one key head), sdpa",
    "mixtral, sdpa",
    "deepseek_v3, sdpa",
    "bloom",
)
CHOSEN += (
    "whisper, sdpa",
    "albert, eager",
    "vit, sdpa",
    "mamba2",
    "torch.nn.Transformer",
    "MLP-Mixer",
    "ResNet",
)


def trials(names: tuple[str, ...], *columns: str) -> list[dict[str, Any]]:
    """What the script says of some models."""
    words = [word for name in names for word in ("--only", name)]
    plans = [word for column in columns for word in ("--column", column)]
    command = [sys.executable, str(SCRIPT), "--no-dropout", "--jobs", "1", "--json", *words, *plans]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_some_models_are_exact() -> None:
    for trial in trials(CHOSEN, "tp 2, sp"):
        assert not trial["refused"], trial
        assert trial["errors"]["tp 2, sp"] <= 1e-9, trial


def test_a_model_that_cannot_be_captured_says_why() -> None:
    (trial,) = trials(("wav2vec2 (ctc), sdpa",), "tp 2")
    assert "cannot be captured: modeling_wav2vec2.py:" in trial["refused"]


def test_the_page_has_a_row_for_every_class_and_no_wrong_one() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")][2:]
    shown = {row[0].removesuffix(" (float32)") for row in rows} | {
        name
        for line in page.splitlines()
        if line.endswith(":")
        for name in re.split(r", (?!sdpa|eager)", line[:-1])
    }
    classes = yaml.safe_load((ROOT / "benchmarks" / "models" / "public.yaml").read_text())["classes"]
    for name, entry in classes.items():
        for attention in entry.get("attention", ["sdpa", "eager"]):
            assert (name if attention == "none" else f"{name}, {attention}") in shown
    for row in rows:
        limit = 1e-4 if row[0].endswith("(float32)") else 1e-9
        assert all(cell == "none" or float(cell) <= limit for cell in row[4:]), row
