"""Files that get their bytes later."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fxpar.checkpoint.files import make, prune
from fxpar.errors import CheckpointError


@pytest.mark.parametrize("before", [b"", b"123", b"12345678", b"123456789abcdef"])
def test_what_is_there_stays(tmp_path: Path, before: bytes) -> None:
    if before:
        (tmp_path / "file").write_bytes(before)
    make(tmp_path / "file", b"ab", 8)
    assert (tmp_path / "file").read_bytes() == b"ab" + before[2:8].ljust(6, b"\0")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match="file of 8 bytes cannot be written: No space left on device"):
        make(tmp_path / "file", b"ab", 8)


def test_other_errors_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        make(tmp_path / "file", b"ab", 8)
    assert caught.value.filename == str(tmp_path / "file")


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match="link"):
        make(tmp_path / "link", b"ab", 8)


def test_other_files_go(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("")
    prune(tmp_path, ["b", "c"])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
