"""A folder gets its name at once, and what had it before is never lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxpar.checkpoint import commit


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("new", "made"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path


def put(place: Path, force: bool) -> None:
    commit.put(place / "new", place / "made", place / "old", force)


@pytest.fixture(params=[True, False], ids=["renameat2", "rename"])
def _renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(commit, "_rename", lambda *_: False)


@pytest.mark.usefixtures("_renames")
def test_a_new_name(place: Path) -> None:
    (place / "made").rename(place / "other")
    commit.settle(place / "new")
    put(place, False)
    assert (place / "made" / "file").read_text() == "new"
    assert not (place / "new").exists()


@pytest.mark.usefixtures("_renames")
def test_a_name_that_is_taken(place: Path) -> None:
    with pytest.raises(FileExistsError):
        put(place, False)
    assert (place / "made" / "file").read_text() == "made"
    assert (place / "new" / "file").read_text() == "new"


@pytest.mark.usefixtures("_renames")
def test_folders_change_places(place: Path) -> None:
    put(place, True)
    assert (place / "made" / "file").read_text() == "new"
    rest = place / ("old" if (place / "old").exists() else "new")
    assert (rest / "file").read_text() == "made"


def test_a_failure_between_two_renames(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "_rename", lambda *_: False)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"):
        put(place, True)
    assert (place / "made" / "file").read_text() == "made"


def test_errors_of_the_system(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        commit.put(place / "absent", place / "other", place / "old", False)
