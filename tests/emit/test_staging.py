"""Folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fxpar.checkpoint import commit
from fxpar.emit.staging import check_target, staged
from fxpar.errors import EmitError


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def fill(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(json.dumps({"mesh": {}, "stages": [], "tensors": {}, "text": text}))


def filled(folder: Path) -> str:
    text: str = json.loads((folder / "manifest.json").read_text())["text"]
    return text


def test_nothing_is_there_before_the_end(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as new:
        fill(new, "new")
        assert not (tmp_path / "out").exists()
    assert listed(tmp_path) == ["out", "out/manifest.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    with staged(tmp_path / "out") as new:
        fill(new, "old")

    def fail() -> None:
        with staged(tmp_path / "out", force=True) as new:
            fill(new, "new")
            raise error

    with pytest.raises(error):
        fail()
    assert listed(tmp_path) == ["out", "out/manifest.json"]
    assert filled(tmp_path / "out") == "old"


def test_force_replaces_at_the_end(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with staged(tmp_path / "out", force=True) as new:
            fill(new, text)
    assert listed(tmp_path) == ["out", "out/manifest.json"]
    assert filled(tmp_path / "out") == "new"


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def race() -> None:
        with staged(tmp_path / "out") as new:
            fill(new, "new")
            (tmp_path / "out").mkdir()

    with pytest.raises(EmitError, match="exists already"):
        race()
    assert listed(tmp_path) == ["out"]


def test_a_replacement_that_fails_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged(tmp_path / "out") as new:
        fill(new, "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise OSError("no more")
        return rename(self, target)

    monkeypatch.setattr(commit, "_rename", lambda *_: False)  # a file system that cannot swap names
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no more"), staged(tmp_path / "out", force=True) as new:
        fill(new, "new")
    assert filled(tmp_path / "out") == "old"
    assert listed(tmp_path) == ["out", "out/manifest.json"]


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    """What another one still writes, and what has another name, stays."""
    for name in (".out.77.new", ".out.78.new", ".out.old.77.new", ".other.77.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    writes = os.open(tmp_path / ".out.78.new", os.O_RDONLY)
    fcntl.flock(writes, fcntl.LOCK_EX)
    with staged(tmp_path / "out") as new:
        (new / "manifest.json").write_text("{}")
    os.close(writes)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {".out.78.new", ".out.old.77.new", ".other.77.new", "out"}


def test_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from fxpar.emit.staging import staged\n"
        "with staged(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=False)
    assert len(listed(tmp_path)) == 1
    with staged(tmp_path / "out") as new:
        fill(new, "new")
    assert listed(tmp_path) == ["out", "out/manifest.json"]


def test_targets(tmp_path: Path) -> None:
    check_target(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty", force=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("file", "link"):
        with pytest.raises(EmitError, match="was not written by fxpar, and is not replaced"):
            check_target(tmp_path / name, force=True)
    with pytest.raises(EmitError, match="out cannot be written: file is no folder"):
        check_target(tmp_path / "file" / "out")


@pytest.mark.parametrize("text", ['{"name": "of another program", "mesh": 1}', "[1]", "no JSON", ""])
def test_what_others_wrote_is_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(EmitError, match="was not written by fxpar, and is not replaced"):
        check_target(tmp_path, force=True)


def test_parents_are_made_and_taken_back(tmp_path: Path) -> None:
    folder = tmp_path / "absent" / "too" / "out"
    with pytest.raises(ValueError, match="on purpose"), staged(folder):
        raise ValueError("on purpose")
    assert not (tmp_path / "absent").exists()
    with staged(folder) as new:
        (new / "manifest.json").write_text("{}")
    assert (folder / "manifest.json").is_file()
