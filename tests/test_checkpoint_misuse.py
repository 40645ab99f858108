"""The commands on what is no checkpoint, interrupted ones, and two of them at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fxpar.cli import run

ROOT = Path(__file__).parents[1]
Call = Callable[..., tuple[int, str, str]]
COMMANDS = {
    "inspect": ["inspect", "{}"],
    "verify-checkpoint": ["verify-checkpoint", "{}"],
    "diff": ["diff", "{}", "whole.safetensors"],
    "diff, second": ["diff", "whole.safetensors", "{}"],
    "reshard": ["reshard", "{}", "made", "--to", "hf"],
}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command beside a whole checkpoint; give its status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    save_file({"a": np.arange(12, dtype=np.float32)}, "whole.safetensors")

    def one(*arguments: str) -> tuple[int, str, str]:
        status = run(arguments)
        return (status, *capsys.readouterr())

    return one


def empty(path: Path) -> None:
    path.mkdir()


def other(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("no weights")


def text(path: Path) -> None:
    path.write_text("no weights")


def nothing(path: Path) -> None:
    path.touch()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder_for_file(path: Path) -> None:
    (path / "model.safetensors").mkdir(parents=True)


def folder_for_index(path: Path) -> None:
    (path / "fxpar.index.json").mkdir(parents=True)


def link_to_nothing(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors").symlink_to("absent")


def loop(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors").symlink_to("model.safetensors")


LENGTH = int.from_bytes(b"no weigh", "little")
NONE = "is no checkpoint\n  it has no fxpar.index.json, model.safetensors.index.json or model.safetensors"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("make", "line"),
    [
        (empty, NONE),
        (other, NONE),
        (text, f"x: its header would have {LENGTH} bytes, and less than 100000000 are read"),
        (nothing, "x: a safetensors file begins with 8 bytes, this one has 0"),
        (pipe, "x is no folder and no file"),
        (folder_for_file, "model.safetensors is no file"),
        (folder_for_index, "fxpar.index.json is no file"),
        (link_to_nothing, "model.safetensors is a link to nothing"),
        (loop, "model.safetensors is a link to nothing"),
        (lambda _: None, "'x' does not exist"),
    ],
)
def test_what_is_no_checkpoint(call: Call, command: str, make: Callable[[Path], None], line: str) -> None:
    make(Path("x"))
    before = sorted(os.listdir())
    status, out, err = call(*(word.format("x") for word in COMMANDS[command]))
    assert (status, out) == (2, "")
    assert line in err
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "fxpar.index.json"])
def test_what_cannot_be_read(call: Call, command: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without the permission; who runs tests may have it all the same."""
    Path("x").mkdir()
    Path("x", name).write_text("{}")
    really = Path.open

    def refused(self: Path, *given: str, **options: str) -> object:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return really(self, *given, **options)

    monkeypatch.setattr(Path, "open", refused)
    status, out, err = call(*(word.format("x") for word in COMMANDS[command]))
    assert (status, out) == (2, "")
    assert f"{name} cannot be read: Permission denied" in err
    assert not Path("made").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_read(call: Call, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x").mkdir()
    really = Path.is_dir

    def refused(self: Path) -> bool:
        if self.name == "x":
            raise PermissionError(13, "Permission denied", str(self))
        return really(self)

    monkeypatch.setattr(Path, "is_dir", refused)
    status, out, err = call(*(word.format("x") for word in COMMANDS[command]))
    assert (status, out, err) == (2, "", "x cannot be read: Permission denied\n")
    assert not Path("made").exists()


@pytest.mark.parametrize("destination", ["/", "/..", "."])
@pytest.mark.parametrize("flags", [(), ("--force",), ("--resume",), ("--resume", "--force"), ("--dry-run",)])
def test_no_place_to_write(call: Call, destination: str, flags: tuple[str, ...]) -> None:
    status, out, err = call("reshard", "whole.safetensors", destination, "--to", "hf", *flags)
    assert (status, out) == (2, "")
    assert any(
        line in err for line in ("is no place for a checkpoint", "exists already", "is no checkpoint, and")
    )
    assert os.listdir() == ["whole.safetensors"]


def test_a_parent_that_is_a_file(call: Call) -> None:
    for flags in ([], ["--resume"], ["--force"], ["--dry-run"]):
        status, out, err = call(
            "reshard", "whole.safetensors", "whole.safetensors/made", "--to", "hf", *flags
        )
        assert (status, out) == (2, "")
        assert (
            err
            == f"{Path('whole.safetensors/made').absolute()} cannot be written: whole.safetensors is no folder\n"
        )
    assert os.listdir() == ["whole.safetensors"]


def test_names_that_a_terminal_would_obey(call: Call) -> None:
    save_file({"\x1b[2Jweight\r": np.zeros(3, dtype=np.float32)}, "sly.safetensors")
    status, out, _ = call("inspect", "sly.safetensors")
    assert status == 0
    assert "\\x1b[2Jweight\\r" in out
    assert "\x1b" not in out
    status, out, err = call("diff", "sly.safetensors", "whole.safetensors")
    assert status == 1
    assert "\x1b" not in out + err


def test_names_that_no_terminal_has(call: Call) -> None:
    """What JSON may hold and UTF-8 not is written as an escape."""
    assert call("reshard", "whole.safetensors", "made", "--pp", "1")[0] == 0
    path = Path("made/fxpar.index.json")
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"ties": {"\ud800": "a"}}))
    status, out, _ = call("inspect", "made")
    assert status == 0
    assert out.endswith("\\ud800 is a\n")


#: Runs a command, in which something happens at the third write: Ctrl-C, or it waits.
CHILD = """
import os, runpy, signal, sys
kind, program, *arguments = sys.argv[1:]
pwrite, count = os.pwrite, 0

def patched(*given):
    global count
    count += 1
    if count == 3 and kind == "interrupt":
        signal.raise_signal(signal.SIGINT)
    if count == 3 and kind == "wait":
        print("here", file=sys.stderr, flush=True)
        sys.stdin.readline()
    return pwrite(*given)

os.pwrite = patched
sys.argv = [program, *arguments]
if program == "fxpar":
    from fxpar.cli import main
    main()
runpy.run_path(program, run_name="__main__")
"""
PROGRAMS = ["fxpar", str(ROOT / "tools" / "reshard.py")]


def child(kind: str, program: str, *arguments: str) -> subprocess.Popen[str]:
    words = ["reshard", *arguments] if program == "fxpar" else list(arguments)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, kind, program, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("program", PROGRAMS, ids=["fxpar", "tool"])
def test_ctrl_c(call: Call, program: str) -> None:
    """Exit status 130, a word of what goes on, and then that does."""
    save_file({name: np.arange(12, dtype=np.float32) for name in "abcdef"}, "six.safetensors")
    started = child("interrupt", program, "six.safetensors", "made", "--to", "hf")
    out, err = started.communicate()
    assert (started.returncode, out) == (130, "")
    assert err.strip().splitlines() == [
        "interrupted",
        "  --resume goes on from here",
    ]
    assert not Path("made").exists()
    status, _, err = call(
        "reshard", "six.safetensors", "made", "--to", "hf", "--max-shard-size", "50B", "--resume"
    )
    assert status == 2
    assert ".made.reshard holds the beginning of another copy" in err
    assert call("reshard", "six.safetensors", "made", "--to", "hf", "--resume")[0] == 0
    assert call("diff", "six.safetensors", "made")[0] == 0
    assert sorted(os.listdir()) == ["made", "six.safetensors", "whole.safetensors"]


def test_two_at_once(call: Call) -> None:
    """The second is refused, and the first is not disturbed."""
    save_file({name: np.arange(12, dtype=np.float32) for name in "abcdef"}, "six.safetensors")
    first = child("wait", "fxpar", "six.safetensors", "made", "--to", "hf")
    assert first.stderr is not None
    assert first.stderr.readline() == "here\n"
    for flags in ([], ["--resume"], ["--force"]):
        status, _, err = call("reshard", "whole.safetensors", "made", "--to", "hf", *flags)
        assert (status, err) == (2, f"another process writes {Path('made').resolve()}\n")
    first.communicate("\n")
    assert first.returncode == 0
    assert call("diff", "six.safetensors", "made")[0] == 0
