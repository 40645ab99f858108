"""Text files are replaced at once, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxpar.textfile import put


def test_new_and_in_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("a long text\nof two lines\n", "é\n"):
        put(path, text)
        assert path.read_bytes() == text.encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_modes_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    put(tmp_path / "notes.txt", "")
    assert (tmp_path / "notes.txt").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_after_an_error_the_old_text_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    path = tmp_path / "notes.txt"
    put(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, at, full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        put(path, "new")
    assert raised.value.filename == str(path)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("notes.txt", "old")]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        put(tmp_path / "none" / "notes.txt", "")
    assert raised.value.filename == str(tmp_path / "none" / "notes.txt")
