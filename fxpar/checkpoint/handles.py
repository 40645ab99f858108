"""Open files, a bounded number of them, shared by threads."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: How many files stay open though nobody uses them.
IDLE = 128


class Handles:
    """Opens each file once and keeps it for the next one who asks; the longest unused is closed first."""

    def __init__(self, flags: int, idle: int = IDLE) -> None:
        """`flags` are those of `os.open`."""
        self._flags, self._most = flags | os.O_CLOEXEC, idle
        self._lock = threading.Lock()
        self._used: dict[Path, tuple[int, int]] = {}  # descriptor, users
        self._idle: OrderedDict[Path, int] = OrderedDict()

    @contextmanager
    def open(self, path: Path) -> Iterator[int]:
        """Lend the descriptor of a file. OSErrors within name the file."""
        descriptor = self._take(path)
        try:
            yield descriptor
        except OSError as error:
            error.filename = error.filename or str(path)
            raise
        finally:
            self._give(path)

    def _take(self, path: Path) -> int:
        with self._lock:
            if path in self._used:
                descriptor, users = self._used[path]
            elif path in self._idle:
                descriptor, users = self._idle.pop(path), 0
            else:
                descriptor, users = os.open(path, self._flags), 0
            self._used[path] = descriptor, users + 1
            return descriptor

    def _give(self, path: Path) -> None:
        with self._lock:
            descriptor, users = self._used.pop(path)
            if users > 1:
                self._used[path] = descriptor, users - 1
                return
            self._idle[path] = descriptor
            if len(self._idle) > self._most:
                os.close(self._idle.popitem(last=False)[1])

    def close(self) -> None:
        """Close what nobody uses."""
        with self._lock:
            while self._idle:
                os.close(self._idle.popitem()[1])


def fill(descriptor: int, into: memoryview, start: int) -> None:
    """Read as many bytes as `into` has. Raises OSError where the file ends before."""
    while into:
        count = os.preadv(descriptor, [into], start)
        if count == 0:
            raise OSError(
                errno.EIO, f"the file ends at byte {start}, and was longer when its header was read"
            )
        into, start = into[count:], start + count


def put(descriptor: int, data: memoryview, start: int) -> None:
    """Write all of `data`."""
    while data:
        count = os.pwrite(descriptor, data, start)
        data, start = data[count:], start + count
