"""Stages as real processes, by every schedule, under torch's runtime and ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_workers import start


@pytest.mark.gloo
@pytest.mark.parametrize("ranks", [2, 4])
def test_stages_as_processes(ranks: int, tmp_path: Path) -> None:
    start(str(tmp_path / "store"), ranks)
