"""The demo does what it says, on real processes and with real weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.gloo
def test_demo(tmp_path: Path) -> None:
    command = [sys.executable, "examples/minilm.py", str(tmp_path / "minilm")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    difference = re.search(r"of any number (\S+)", done.stdout)
    assert float(difference[1]) < 1e-5
    assert re.search(r"^heads +12 +6 ", done.stdout, re.M)
    assert "model-pp1-tp1.safetensors" in done.stdout
    assert "ok: float32 on 4 ranks" in done.stdout
    assert (tmp_path / "minilm" / "stage_1.py").is_file()
