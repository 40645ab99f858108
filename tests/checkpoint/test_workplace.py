"""Where a checkpoint is written until it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxpar.checkpoint.workplace import Workplace, check_target, folder_of
from fxpar.errors import CheckpointError


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "made"


def begun(destination: Path, plan: str = "plan") -> None:
    """What an interrupted run leaves."""
    workplace = Workplace(destination)
    journal = workplace.begin(plan, False)
    journal.add(0, 0, [1])
    journal.close()
    (workplace.new / "file").write_text("begun")
    workplace.close(keep=True)


def test_nothing_is_left(tmp_path: Path, destination: Path) -> None:
    workplace = Workplace(destination)
    workplace.begin("plan", False).close()
    (workplace.new / "file").write_text("text")
    workplace.close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(destination: Path) -> None:
    workplace = Workplace(destination)
    with pytest.raises(CheckpointError, match=f"another process writes {destination}"):
        Workplace(destination)
    workplace.close(keep=False)
    Workplace(destination).close(keep=False)


def test_what_was_begun_goes_on(destination: Path) -> None:
    begun(destination)
    workplace = Workplace(destination)
    assert not workplace.finished("plan")
    journal = workplace.begin("plan", True)
    assert len(journal) == 1
    assert (workplace.new / "file").read_text() == "begun"
    journal.close()
    workplace.close(keep=True)


def test_what_was_begun_starts_anew(destination: Path) -> None:
    begun(destination)
    workplace = Workplace(destination)
    journal = workplace.begin("plan", False)
    assert len(journal) == 0
    assert list(workplace.new.iterdir()) == []
    journal.close()
    workplace.close(keep=False)


def test_another_plan_is_not_gone_on_with(destination: Path) -> None:
    begun(destination)
    workplace = Workplace(destination)
    with pytest.raises(CheckpointError) as caught:
        workplace.begin("other", True)
    assert str(caught.value) == (
        ".made.reshard holds the beginning of another copy: the source or the target was another\n"
        "  without --resume the copy starts anew"
    )
    workplace.close(keep=False)
    assert (folder_of(destination) / "new" / "file").exists()


def test_a_folder_that_was_swapped_is_gone_on_with_by_nobody(destination: Path) -> None:
    """After a kill behind the swap `new` holds what was there before."""
    begun(destination)
    destination.mkdir()
    new = folder_of(destination) / "new"
    new.rename(folder_of(destination) / "x")
    destination.rename(new)
    (folder_of(destination) / "x").rename(destination)
    workplace = Workplace(destination)
    assert not workplace.finished("other")
    assert workplace.finished("plan")
    workplace.close(keep=False)
    assert not folder_of(destination).exists()
    assert (destination / "file").read_text() == "begun"


def test_what_was_moved_away_comes_back(destination: Path) -> None:
    """After a kill between two renames the destination is not there."""
    old = folder_of(destination) / "old"
    old.mkdir(parents=True)
    (old / "file").write_text("precious")
    Workplace(destination).close(keep=False)
    assert (destination / "file").read_text() == "precious"
    assert not folder_of(destination).exists()


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"\.made\.reshard cannot be written: Not a directory"):
        Workplace(tmp_path / "file" / "made")
    (tmp_path / ".made.reshard").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match=r"\.made\.reshard cannot be written"):
        Workplace(tmp_path / "made")


def test_what_may_be_replaced(tmp_path: Path) -> None:
    check_target(tmp_path / "absent", False)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"folder exists already\n  --force replaces it"):
        check_target(folder, False)
    check_target(folder, True)
    (folder / "thesis.txt").write_text("")
    with pytest.raises(CheckpointError, match="folder is no checkpoint, and is not replaced"):
        check_target(folder, True)
    (folder / "fxpar.index.json").write_text("")
    check_target(folder, True)
    (tmp_path / "link").symlink_to(folder)
    for name in ("link", "folder/thesis.txt"):
        with pytest.raises(CheckpointError, match="is no folder, and is not replaced"):
            check_target(tmp_path / name, True)
