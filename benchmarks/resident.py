"""The memory of this process as Linux counts it, and its peaks. Anonymous memory is what is not a mapped file."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

FIELDS = ("VmHWM", "RssAnon", "RssFile")


def resident() -> dict[str, int]:
    """Bytes now: `RssAnon`, `RssFile`; and `VmHWM`, the most that both together have been."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 for name in FIELDS}


class Peaks:
    """Watches this process from a thread: the most of each kind since `start`, above what there was then."""

    def __init__(self, interval: float = 0.002) -> None:
        self._interval = interval
        self._stop = threading.Event()
        self._before = self._most = resident()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> Peaks:
        """Begin; the kernel's own high-water mark is reset where it lets us."""
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self._before = self._most = resident()
        self._thread.start()
        return self

    def now(self) -> dict[str, int]:
        """The peaks so far, in bytes above the start. `VmHWM` is the kernel's and misses nothing."""
        self._look()
        high = self._most["VmHWM"] - self._before["RssAnon"] - self._before["RssFile"]
        return {name: self._most[name] - self._before[name] for name in FIELDS[1:]} | {"VmHWM": high}

    def stop(self) -> dict[str, int]:
        """End, and give the peaks."""
        self._stop.set()
        self._thread.join()
        return self.now()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._look()

    def _look(self) -> None:
        found = resident()
        self._most = {name: max(found[name], self._most[name]) for name in FIELDS}
