"""The zoo: some of its models are tried."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
