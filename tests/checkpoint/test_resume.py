"""Copies that are interrupted, and what is there then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from layouts import even, index, tensor, values, whole, write

from fxpar.checkpoint import reshard as module
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.reshard import Report, reshard
from fxpar.errors import CheckpointError

ONE = index({"a": tensor("F32", [whole(64), whole(16)]), "b": tensor("I16", [whole(40)])})
FOUR = index({"a": tensor("F32", [whole(64), even(16, 4)]), "b": tensor("I16", [even(40, 2)])})
DATA = {name: values(each) for name, each in ONE.tensors.items()}
TILE = 256


class Stop:
    """Interrupts a copy when so many bytes are done."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: int, _: int) -> None:
        if done >= self.after:
            raise KeyboardInterrupt


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write(tmp_path / "source", ONE, DATA, crc32=True)
    write(tmp_path / "wanted", FOUR, DATA, crc32=True)
    (tmp_path / "source" / "config.json").write_text("{}")
    (tmp_path / "wanted" / "config.json").write_text("{}")
    return tmp_path


def run(place: Path, target: Index = FOUR, **options: object) -> Report:
    return reshard(place / "source", place / "made", lambda _: target, tile=TILE, **options)


def interrupted(place: Path, after: int = 2000, **options: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(place, progress=Stop(after), **options)
    assert not (place / "made").exists() or options.get("force")
    assert (place / ".made.reshard" / "journal").exists()


def finished(place: Path) -> None:
    for path in (place / "wanted").iterdir():
        assert path.read_bytes() == (place / "made" / path.name).read_bytes()
    assert sorted(path.name for path in place.iterdir()) == ["made", "source", "wanted"]


@pytest.mark.parametrize("after", [1, 1000, 2000, 4000, 4176])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_copy_goes_on(place: Path, after: int, threads: int) -> None:
    interrupted(place, after, threads=threads)
    report = run(place, resume=True, threads=threads)
    assert report.resumed >= after // TILE
    finished(place)


def test_a_copy_that_is_interrupted_again_and_again(place: Path) -> None:
    for after in (500, 1500, 3000):
        interrupted(place, after, resume=True)
    assert run(place, resume=True).resumed >= 11
    finished(place)


def test_a_copy_starts_anew(place: Path) -> None:
    interrupted(place)
    assert run(place).resumed == 0
    finished(place)


def test_nothing_to_go_on_with(place: Path) -> None:
    assert run(place, resume=True).resumed == 0
    finished(place)


def test_what_was_written_is_not_believed(place: Path) -> None:
    """Of a machine that went down the journal may be there, and the bytes not."""
    interrupted(place, 4000)
    for path in (place / ".made.reshard" / "new").glob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    assert run(place, resume=True).resumed >= 15
    finished(place)


def test_without_checksums_nothing_is_believed(place: Path) -> None:
    interrupted(place, checksums=False)
    run(place, resume=True)
    finished(place)


def touch(place: Path) -> None:
    os.utime(place / "source" / "f0.safetensors")


@pytest.mark.parametrize(
    "change",
    [touch, lambda place: (place / "source" / "config.json").write_text('{"a": 1}')],
    ids=["file", "config"],
)
def test_another_source(place: Path, change: Callable[[Path], object]) -> None:
    interrupted(place)
    change(place)
    with pytest.raises(CheckpointError, match="holds the beginning of another copy"):
        run(place, resume=True)
    assert (place / ".made.reshard" / "journal").exists()
    run(place)
    assert not (place / ".made.reshard").exists()


def test_another_target(place: Path) -> None:
    interrupted(place)
    with pytest.raises(CheckpointError, match="holds the beginning of another copy"):
        run(place, ONE, resume=True)
    run(place, resume=True)
    finished(place)


@pytest.mark.parametrize(
    "change",
    [touch, lambda place: os.truncate(place / "source" / "f0.safetensors", 100)],
    ids=["time", "size"],
)
def test_a_source_that_changes_meanwhile(place: Path, change: Callable[[Path], object]) -> None:
    with pytest.raises(CheckpointError) as caught:
        run(place, progress=lambda done, _: change(place) if done < 1000 else None)
    assert caught.value.details == ("f0.safetensors has another size or time of change",)
    assert sorted(path.name for path in place.iterdir()) == ["source", "wanted"]


def test_a_source_that_is_damaged(place: Path) -> None:
    path = place / "source" / "f0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"f0\.safetensors: `b` has the crc32"):
        run(place)
    assert sorted(path.name for path in place.iterdir()) == ["source", "wanted"]


def test_a_checkpoint_that_is_there(place: Path) -> None:
    run(place)
    with pytest.raises(CheckpointError, match="made exists already\n  --force replaces it"):
        run(place, ONE)
    finished(place)
    interrupted(place, target=ONE, force=True)
    for path in (place / "wanted").iterdir():
        assert path.read_bytes() == (place / "made" / path.name).read_bytes()
    with pytest.raises(CheckpointError, match="made exists already"):
        run(place, ONE, resume=True)
    run(place, ONE, resume=True, force=True)
    assert (place / "made" / "f0.safetensors").read_bytes() == (
        place / "source" / "f0.safetensors"
    ).read_bytes()
    assert sorted(path.name for path in place.iterdir()) == ["made", "source", "wanted"]


def test_a_kill_behind_the_commit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder has its name, and nothing is left but to remove what stood beside it."""
    monkeypatch.setattr(module.Workplace, "close", lambda self, _: module.os.close(self._lock))
    run(place)
    monkeypatch.undo()
    assert (place / ".made.reshard").exists()
    run(place, resume=True)
    finished(place)


def test_a_disk_that_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error", "f1.safetensors")

    monkeypatch.setattr(module, "settle", broken)
    with pytest.raises(CheckpointError) as caught:
        run(place)
    assert str(caught.value) == "f1.safetensors: Input/output error\n  --resume goes on from here"
    monkeypatch.undo()
    assert run(place, resume=True).resumed == 17
    finished(place)


def test_no_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = module.os.statvfs(place)

    class Full:
        f_bavail, f_frsize = 3, state.f_frsize

    monkeypatch.setattr(module.os, "statvfs", lambda _: Full)
    for options in ({}, {"dry_run": True}):
        with pytest.raises(
            CheckpointError, match=rf"there is not enough room in {place}.*: \d+ bytes are needed"
        ):
            run(place, **options)
    assert sorted(path.name for path in place.iterdir()) == ["source", "wanted"]


def test_a_source_in_the_destination(place: Path) -> None:
    for destination in (place / "source", place):
        (destination / "fxpar.index.json").touch()
        with pytest.raises(CheckpointError, match=r"the source .* lies in"):
            reshard(place / "source", destination, lambda _: FOUR, force=True)
