"""Which tiles lie in their files: a line is appended for each, so that a copy that was interrupted can go on.

    {"plan": "3f0a...", "folder": 1234}     what is copied, and the inode of the folder that is written
    17 0 8a6f31c2 11d00e52                  task, tile, the crc32 of its runs

A line that was torn is no line, and no line is believed: what it says lies in the files is summed up again.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: More bytes than the first line has.
HEAD = 4096


class Head(NamedTuple):
    """A hash of all that the copy depends on, and the inode of the folder that is written."""

    plan: str
    folder: int


class Journal:
    """The journal of a copy. Raises OSError like files do."""

    def __init__(self, path: Path) -> None:
        """Go on with a journal that `create` has begun."""
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        keys, places = array("q"), array("q")
        torn = True
        for start, line in self._lines():
            torn = not line.endswith(b"\n")
            if (key := _key(line)) is not None:
                keys.append(key)
                places.append(start)
        if torn:
            os.write(self._file, b"\n")
        order = np.argsort(np.asarray(keys), kind="stable")
        self._keys, self._places = np.asarray(keys)[order], np.asarray(places)[order]

    @staticmethod
    def create(path: Path, head: Head) -> Journal:
        """Begin a journal."""
        path.write_text(json.dumps(head._asdict()) + "\n", encoding="utf-8")
        return Journal(path)

    @staticmethod
    def head(path: Path) -> Head | None:
        """What a journal is of; None if there is none that could be read."""
        try:
            with path.open("rb") as file:
                line = file.readline(HEAD)
            data = json.loads(line) if line.endswith(b"\n") else {}
            return Head(data["plan"], data["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def __len__(self) -> int:
        """The number of tiles that were done when the journal was opened."""
        return len(self._keys)

    def add(self, task: int, tile: int, sums: Sequence[int]) -> None:
        """A tile is in its files. Threads may call this side by side."""
        numbers = "".join(f" {crc32:x}" for crc32 in sums)
        os.write(self._file, f"{task} {tile}{numbers}\n".encode())

    def known(self, task: int, tile: int) -> list[int] | None:
        """The checksums of a tile that was done when the journal was opened."""
        number = int(np.searchsorted(self._keys, task << 32 | tile, side="right")) - 1
        if number < 0 or self._keys[number] != task << 32 | tile:
            return None
        line = self._line(int(self._places[number]))
        try:
            return [int(word, 16) for word in line.split()[2:]]
        except ValueError:
            return None

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _line(self, start: int) -> bytes:
        """The line that begins at a byte."""
        found = b""
        while b"\n" not in found:
            more = os.pread(self._file, HEAD, start + len(found))
            if not more:
                break
            found += more
        return found.split(b"\n", 1)[0]

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        start = 0
        with open(self._file, "rb", closefd=False) as file:
            for line in file:
                yield start, line
                start += len(line)


def _key(line: bytes) -> int | None:
    """Task and tile of a line as one number; None for another line, or for a torn one."""
    words = line.split(maxsplit=2)
    if not line.endswith(b"\n") or len(words) < 2 or not all(word.isdigit() for word in words[:2]):
        return None
    task, tile = int(words[0]), int(words[1])
    return task << 32 | tile if max(task, tile) < 1 << 31 else None
