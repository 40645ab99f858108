"""Reshards in a process that is killed before its n-th call of the system, or in the middle of it.

    python killing.py FOLDER [middle] [force] [renames] [command]

FOLDER has `source`, `wanted` (what an undisturbed run gives) and with `force` `old`, the checkpoint that is replaced.
What is killed is a fork, without a chance to tidy up; before the next call is the same as behind this one. `middle`:
half of what is written is. `renames`: the file system cannot swap two folders. `command`: the command itself, with its
own tiles. Prints the number of calls, or what is not as it should be.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from places import OTHER, TILE

from fxpar.checkpoint import commit
from fxpar.checkpoint.reshard import reshard
from fxpar.errors import CheckpointError

WRITES = ("pwrite", "write")
#: What changes the disk; `open` makes files.
CALLS = (*WRITES, "open", "fsync", "rename", "mkdir", "rmdir", "unlink", "truncate", "posix_fallocate")
#: The last calls, with the commit among them, and the step between those before, where these are nothing new.
LAST, STEP = 24, 8


class Killer:
    """Counts the calls of the system; kills this process at one of them."""

    def __init__(self, at: int, middle: bool) -> None:
        self.at, self.middle, self.count = at, middle, 0

    def patch(self) -> None:
        """Take over the functions of `os` and the system's swap of two folders."""
        os.fsync = lambda _: None  # A machine that stays up has all that was written.
        for name in WRITES if self.middle else CALLS:
            setattr(os, name, partial(self._call, getattr(os, name)))
        if not self.middle:
            commit._rename = partial(self._call, commit._rename)

    def _call(self, call: Callable[..., Any], *given: Any, **options: Any) -> Any:
        self.count += 1
        if self.count != self.at:
            return call(*given, **options)
        if self.middle:
            call(given[0], given[1][: len(given[1]) // 2], *given[2:])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed, and still there")


class Trial:
    """Runs that are killed, and what has to be there then."""

    def __init__(self, root: Path, words: set[str]) -> None:
        self.root, self.words, self.made = root, words, root / "made"
        self.force = "force" in words

    def calls(self) -> int:
        """How many calls an undisturbed run makes."""
        self._clear()
        reading, writing = os.pipe()
        status = self._run(0, count=writing)
        assert status == 0, f"an undisturbed run ended with {status}"
        assert self._is("wanted"), "the bytes of an undisturbed run are others"
        return int(os.read(reading, 100))

    def kill(self, at: int) -> None:
        """Kill a run at a call; then go on, or start anew."""
        for again in ("resume", "anew") if at % 3 == 0 else ("resume",):
            where = f"killed at call {at}, then {again}"
            self._clear()
            status = self._run(at)
            assert status == -signal.SIGKILL, f"{where}: the first run ended with {status}"
            self._check_name(where)
            committed = self._is("wanted")
            closed = committed and not (self.root / ".made.reshard" / "journal").exists()
            status = self._run(0, resume=again == "resume")
            there = not self.force and (closed or (committed and again == "anew"))
            assert status == (2 if there else 0), f"{where}: it ended with {status}"
            assert self._is("wanted"), f"{where}: the bytes are not those of one run"
            left = {path.name for path in self.root.iterdir()} - {"made", "source", "wanted", "old"}
            assert there or not left, f"{where}: {left} is left"

    def _clear(self) -> None:
        for path in (self.made, self.root / ".made.reshard"):
            shutil.rmtree(path, ignore_errors=True)
        if self.force:
            shutil.copytree(self.root / "old", self.made)

    def _check_name(self, where: str) -> None:
        """Nothing half written ever has the name; something whole always has it where folders can be swapped."""
        if os.path.lexists(self.made):
            whole = self._is("wanted") or (self.force and self._is("old"))
            assert whole, f"{where}: what has the name is not whole"
        elif self.force:
            kept = "renames" in self.words and same(self.root / ".made.reshard" / "old", self.root / "old")
            assert kept, f"{where}: what was there is lost"

    def _is(self, name: str) -> bool:
        return same(self.made, self.root / name)

    def _run(self, at: int, *, resume: bool = False, count: int | None = None) -> int:
        """Reshard in a fork that is killed at a call; return its exit status, -9 for killed."""
        child = os.fork()
        if child == 0:
            status = 99
            try:
                write = os.write
                killer = Killer(at, "middle" in self.words)
                killer.patch()
                status = self._work(resume)
                if count is not None:
                    write(count, str(killer.count).encode())
            except CheckpointError as error:
                print(error, file=sys.stderr)
                status = 2
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _work(self, resume: bool) -> int:
        if "renames" in self.words:
            rename = commit._rename
            commit._rename = lambda *given: given[2] != commit._EXCHANGE and rename(*given)
        source, flags = self.root / "source", {"resume": resume, "force": self.force}
        if "command" not in self.words:
            reshard(source, self.made, lambda _: OTHER, tile=TILE, threads=1, **flags)
            return 0
        from fxpar.cli import run

        sys.stdout = sys.stderr
        words = [f"--{name}" for name, wanted in flags.items() if wanted]
        return run(["reshard", str(source), str(self.made), "--tp", "4", *words])


def same(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files."""
    if not (first.is_dir() and second.is_dir()):
        return False
    names = sorted(path.name for path in first.iterdir())
    return names == sorted(path.name for path in second.iterdir()) and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names
    )


def points(count: int, words: set[str]) -> Iterator[int]:
    """The calls at which a run is killed: all, or where copying is nothing new the last ones and some of the others."""
    for at in range(1, count + 1):
        if not words & {"force", "command"} or at > count - LAST or at % STEP == 0:
            yield at


def main() -> int:
    """Kill at every call."""
    words = set(sys.argv[2:])
    trial = Trial(Path(sys.argv[1]), words)
    count = trial.calls()
    for at in points(count, words):
        trial.kill(at)
    print(count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
