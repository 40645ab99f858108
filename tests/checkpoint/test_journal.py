"""What a journal remembers, and what becomes of one that was torn."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxpar.checkpoint.journal import Head, Journal

HEAD = Head("3f0a", 1234)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal.create(tmp_path / "journal", HEAD)
    journal.add(7, 1, [5, 0xFFFFFFFF])
    journal.add(7, 0, [])
    journal.add(3, 2, [1])
    journal.close()
    return tmp_path / "journal"


def read(path: Path) -> dict[tuple[int, int], list[int]]:
    journal = Journal(path)
    found = {(task, tile): journal.known(task, tile) for task in range(9) for tile in range(4)}
    journal.close()
    return {place: sums for place, sums in found.items() if sums is not None}


def test_lines_come_back(path: Path) -> None:
    assert Journal.head(path) == HEAD
    assert read(path) == {(7, 1): [5, 0xFFFFFFFF], (7, 0): [], (3, 2): [1]}
    journal = Journal(path)
    assert len(journal) == 3
    journal.close()


@pytest.mark.parametrize("size", range(60))
def test_a_torn_journal_has_what_is_whole(path: Path, size: int) -> None:
    text = path.read_bytes()
    path.write_bytes(text[:size])
    whole = [line for line in text[:size].splitlines(keepends=True) if line.endswith(b"\n")]
    assert (Journal.head(path) == HEAD) is bool(whole)
    if whole:
        assert len(read(path)) == len(whole) - 1
        journal = Journal(path)
        journal.add(8, 3, [6])
        journal.close()
        assert read(path)[8, 3] == [6]


def test_lines_that_are_none(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0\0\n5\n9 9 x\n-1 0 1\n99999999999999 0 1\n")
    assert read(path).keys() == {(7, 1), (7, 0), (3, 2)}
    journal = Journal(path)
    assert journal.known(9, 9) is None
    journal.close()


def test_the_last_of_two_lines_counts(path: Path) -> None:
    journal = Journal(path)
    journal.add(3, 2, [9])
    journal.close()
    assert read(path)[3, 2] == [9]


@pytest.mark.parametrize("text", ["", "{}", "[]\n", '{"plan": "a"}\n', '{"plan": "a", "folder": 3}'])
def test_heads_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal").write_text(text)
    assert Journal.head(tmp_path / "journal") is None
    assert Journal.head(tmp_path / "absent") is None


def test_long_lines(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal", HEAD)
    sums = list(range(5000))
    journal.add(0, 0, sums)
    journal.add(0, 1, [3])
    journal.close()
    assert read(tmp_path / "journal") == {(0, 0): sums, (0, 1): [3]}
