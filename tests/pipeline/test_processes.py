"""Stages as real processes, under torch's schedules."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_workers import start


@pytest.mark.gloo
def test_stages_as_processes(tmp_path: Path) -> None:
    start(str(tmp_path / "store"))
