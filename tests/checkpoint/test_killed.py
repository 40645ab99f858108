"""kill -9 at any moment: nothing half written has the name, and --resume gives the bytes of one run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from layouts import even, index, tensor, values, whole, write
from places import DATA, OTHER, SHARDS, snapshot

from fxpar.checkpoint.index import Index
from fxpar.checkpoint.request import Request
from fxpar.checkpoint.reshard import reshard
from fxpar.checkpoint.workplace import Workplace
from fxpar.errors import CheckpointError

HERE = Path(__file__).parent


def killed(root: Path, *words: str) -> int:
    """Kill a run at each of its calls, in a process without torch; return their number."""
    before = snapshot(root / "source")
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    done = subprocess.run(
        [sys.executable, str(HERE / "killing.py"), str(root), *words],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert snapshot(root / "source") == before
    return int(done.stdout)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "source", SHARDS, DATA, crc32=True)
    write(tmp_path / "wanted", OTHER, DATA, crc32=True)
    for name in ("source", "wanted"):
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


def test_kill_before_every_call(root: Path) -> None:
    assert killed(root) > 70


def test_kill_in_the_middle_of_every_write(root: Path) -> None:
    assert killed(root, "middle") > 30


@pytest.mark.parametrize("words", [(), ("renames",)], ids=["swap", "two renames"])
def test_kill_while_a_checkpoint_is_replaced(root: Path, words: tuple[str, ...]) -> None:
    old = index({"old": tensor("F32", [whole(3)])})
    write(root / "old", old, {"old": values(old.tensors["old"])}, crc32=True)
    assert killed(root, "force", *words) > 70


def test_what_was_finished_and_emptied_is_not_finished(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new folder may have the inode of the one that was removed."""
    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "close", lambda self, _: os.close(self._lock))
        reshard(root / "source", root / "made", lambda _: OTHER)
    (root / "made" / "f1.safetensors").unlink()
    with pytest.raises(CheckpointError, match="made exists already"):
        reshard(root / "source", root / "made", lambda _: OTHER, resume=True)
    reshard(root / "source", root / "made", lambda _: OTHER, resume=True, force=True)
    assert snapshot(root / "made").keys() == snapshot(root / "wanted").keys()
    assert not (root / ".made.reshard").exists()


def known() -> Index:
    """A checkpoint over two ranks, of whose dims something is known."""
    made = index({name: tensor("F32", [even(8, 2), whole(3)]) for name in ("up", "gate")})
    tensors = {name: replace(each, dims=("ffn=8", "3")) for name, each in made.tensors.items()}
    return replace(made, tensors=tensors, rows={"ffn": ("tp",)})


def test_kill_the_command(tmp_path: Path) -> None:
    """As people run it: `fxpar reshard`, with tiles and threads as they are."""
    layout = known()
    write(
        tmp_path / "source", layout, {name: values(each) for name, each in layout.tensors.items()}, crc32=True
    )
    reshard(tmp_path / "source", tmp_path / "wanted", Request({"tp": 4}).target())
    assert killed(tmp_path, "command") > 30
