"""Files are sent to disk each time that they have grown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxpar.checkpoint import writeback
from fxpar.checkpoint.writeback import Writeback


def test_each_file_is_counted() -> None:
    sent: list[int] = []
    counted = Writeback(10, sent.append)
    for path, descriptor, size in [
        ("a", 1, 9),
        ("b", 2, 9),
        ("a", 1, 1),
        ("a", 1, 25),
        ("b", 2, 1),
        ("b", 2, 0),
    ]:
        counted.wrote(Path(path), descriptor, size)
    assert sent == [1, 1, 2]


def test_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(b"text")
        file.flush()
        counted = Writeback(1)
        counted.wrote(tmp_path / "file", file.fileno(), 4)
        monkeypatch.setattr(writeback.ctypes, "CDLL", lambda _: object())
        counted.wrote(tmp_path / "file", file.fileno(), 4)
    assert os.path.getsize(tmp_path / "file") == 4
