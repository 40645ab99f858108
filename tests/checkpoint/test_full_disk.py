"""A disk that is full before, or in the middle of it: nothing has the name, nothing is lost, and --resume goes on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from layouts import write
from places import DATA, OTHER, Place, snapshot

from fxpar.checkpoint import companions
from fxpar.errors import CheckpointError

HERE = Path(__file__).parent


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path, hf=False)
    write(tmp_path / "wanted", OTHER, DATA, crc32=True)
    (tmp_path / "wanted" / "config.json").write_text("{}")
    return made


def finish(place: Place) -> None:
    """With room again, --resume gives what one run would have given."""
    place.reshard(resume=True)
    wanted = {name: data for name, (_, data) in snapshot(place.root / "wanted").items()}
    assert {name: data for name, (_, data) in snapshot(place.made).items()} == wanted
    assert sorted(path.name for path in place.root.iterdir()) == ["made", "source", "wanted"]


def test_no_room_at_all(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_bavail, f_frsize = 3, 512

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(
        CheckpointError, match=r"not enough room in .*: \d+ bytes are needed, and 1536 are free"
    ):
        place.reshard(dry_run=True)
    place.refuses("there is not enough room in ", " and 1536 are free", looks=False)


@contextmanager
def bounded() -> Iterator[None]:
    """Files may have no more bytes than their headers: what a quota does. What pytest prints may be a file, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_a_file(place: Place) -> None:
    before = snapshot(place.root)
    with (
        bounded(),
        pytest.raises(
            CheckpointError, match=r"f0\.safetensors of \d+ bytes cannot be written: File too large"
        ),
    ):
        place.reshard()
    assert snapshot(place.root) == before


def full(call: Callable[..., Any], after: int) -> Callable[..., Any]:
    """A function of the system for which there is no room after so many calls: the last one writes a part."""
    count = 0

    def limited(file: int, data: memoryview, *rest: int) -> Any:
        nonlocal count
        count += 1
        if count == after:
            return call(file, data[: len(data) // 2], *rest)
        if count > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(file, data, *rest)

    return limited


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("after", [4, 9, 20])
def test_a_write_that_fails(place: Place, monkeypatch: pytest.MonkeyPatch, after: int, force: bool) -> None:
    """The room was there when it was asked for; the error names the file and the tensor."""
    if force:
        place.stand()
    before = snapshot(place.made), snapshot(place.source)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full(os.pwrite, after))
        with pytest.raises(CheckpointError) as caught:
            place.reshard(force=force, threads=1)
    first, last = str(caught.value).splitlines()
    assert f"{place.root}/.made.reshard/new/f" in first
    assert first.endswith("`)")
    assert "safetensors: No space left on device (`" in first
    assert last == "  --resume goes on from here"
    assert (snapshot(place.made), snapshot(place.source)) == before
    assert place.made.exists() is force
    if force:
        shutil.rmtree(place.made)
    finish(place)


def test_a_journal_that_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full(os.write, 5))
        with pytest.raises(CheckpointError, match=r"No space left on device\n  --resume goes on from here"):
            place.reshard()
    assert not place.made.exists()
    finish(place)


@pytest.mark.parametrize("step", ["config", "index"])
def test_the_last_files_fail(place: Place, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), step)

    with monkeypatch.context() as patch:
        if step == "config":
            patch.setattr(companions.shutil, "copyfile", fails)
        else:
            patch.setattr(Path, "write_text", self_or(fails, Path.write_text))
        with pytest.raises(CheckpointError, match=rf"{step}: No space left on device"):
            place.reshard()
    assert not place.made.exists()
    finish(place)


def self_or(fails: Callable[..., None], write: Callable[..., int]) -> Callable[..., object]:
    """Fails for the index alone: the journal's first line is written the same way."""
    return lambda path, *given, **options: (fails if path.suffix == ".json" else write)(
        path, *given, **options
    )


SMALL = """
import resource, sys
from pathlib import Path
from places import OTHER
from fxpar.checkpoint.reshard import reshard
if "limit" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    reshard(Path(sys.argv[1]), Path(sys.argv[2]) / "made", lambda _: OTHER)
finally:
    assert not any(Path(sys.argv[2]).iterdir()), "something is left"
"""
MOUNT = 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && "$@"'
ROOM = {
    "8k": "there is not enough room in ",
    "16k": "f1.safetensors of 4210 bytes cannot be written: No space left",
}


@pytest.mark.parametrize("size", ROOM)
def test_a_small_disk(place: Place, size: str) -> None:
    """A real one of 8 or 16 kB, where the system allows to mount it; elsewhere a limit for files."""
    disk = place.root / "disk"
    disk.mkdir()
    before = snapshot(place.source)
    own = [sys.executable, "-c", SMALL, str(place.source), str(disk)]
    mounting = ["unshare", "-rm", "sh", "-c", MOUNT, size, str(disk)]
    unshare = shutil.which("unshare")
    allowed = unshare and not subprocess.run([*mounting, "true"], capture_output=True, check=False).returncode
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    done = subprocess.run(
        [*mounting, *own] if allowed else [*own, "limit"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fxpar.errors.CheckpointError: ")
    assert (ROOM[size] if allowed else "cannot be written: File too large") in last
    assert list(disk.iterdir()) == []
    assert snapshot(place.source) == before
