"""Few files are open at a time, and each once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxpar.checkpoint.handles import Handles, fill, put


def test_unused_files_are_closed_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(4)]
    for path in paths:
        path.write_text(path.name)
    handles = Handles(os.O_RDONLY, idle=2)
    with handles.open(paths[0]) as first, handles.open(paths[0]) as again:
        assert first == again
    numbers = []
    for path in paths:
        with handles.open(path) as file:
            numbers.append(file)
    with handles.open(paths[3]) as file:
        assert file == numbers[3]
    handles.close()
    for number in set(numbers):
        with pytest.raises(OSError):
            os.fstat(number)


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    handles = Handles(os.O_RDONLY)
    with (
        pytest.raises(OSError, match="the file ends at byte 3") as caught,
        handles.open(tmp_path / "short") as file,
    ):
        fill(file, memoryview(bytearray(4)), 0)
    assert caught.value.filename == str(tmp_path / "short")
    with pytest.raises(FileNotFoundError), handles.open(tmp_path / "absent"):
        pass
    handles.close()


def test_bytes_go_where_they_should(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(8))
    handles = Handles(os.O_RDWR)
    into = bytearray(3)
    with handles.open(tmp_path / "file") as file:
        put(file, memoryview(b"abc"), 4)
        fill(file, memoryview(into), 3)
    handles.close()
    assert bytes(into) == b"\0ab"
