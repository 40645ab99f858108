"""The pictures of the documentation are what a partition says today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_pictures_are_drawn_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "tools" / "draw.py"), str(tmp_path)], check=True)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    kept = {
        path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "pictures").glob("*.svg")
    }
    assert sorted(drawn) == sorted(kept)
    stale = [name for name in drawn if drawn[name] != kept[name]]
    assert stale == [], "run tools/draw.py"
