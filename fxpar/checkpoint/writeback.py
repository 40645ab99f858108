"""Lets the disk write while tiles are still copied, instead of all at the end.

What a file has in memory is sent to disk each time it has grown by some MiB; nothing waits for that to arrive, and
nothing depends on it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

#: Bytes of a file that are sent at once.
BYTES = 16 << 20
_WRITE = 2


class Writeback:
    """Counts what a thread writes to each file."""

    def __init__(self, most: int = BYTES, send: Callable[[int], object] | None = None) -> None:
        """`send` is called with the descriptor of a file that has `most` bytes more, by default Linux's call."""
        self._most, self._send = most, send or _send
        self._bytes: dict[Path, int] = {}

    def wrote(self, path: Path, descriptor: int, size: int) -> None:
        """So many bytes more are in an open file."""
        total = self._bytes.get(path, 0) + size
        self._bytes[path] = total % self._most
        if total >= self._most:
            self._send(descriptor)


def _send(descriptor: int) -> None:
    """Begin to write all of a file to disk. Where the system has no such call, or refuses, it does so later."""
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_WRITE))
