"""Runs with a fault: started, waited for, and looked at for what they leave behind."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parent / "fault_worker.py"
#: All processes have to end by themselves long before this.
GUARD = 100
_SUBREAPER = 36
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Ended:
    """What processes printed and left: their status, and how many seconds after the start the last one ended."""

    codes: list[int]
    stdout: str
    errors: list[str]
    seconds: float

    @property
    def stderr(self) -> str:
        """What all of them wrote there."""
        return "".join(self.errors)

    @property
    def told(self) -> list[str]:
        """What ranks said of failures."""
        return re.findall(r"^rank \d.*$", self.stderr, re.MULTILINE)


@contextmanager
def no_child_remains() -> Iterator[None]:
    """Whoever is orphaned in here becomes our child: none may be left, alive or as a zombie."""
    _LIBC.prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        before = set(children())
        yield
        assert set(children()) <= before
    finally:
        _LIBC.prctl(_SUBREAPER, 0, 0, 0, 0)


def children() -> Iterator[tuple[int, str]]:
    """The children of this process, with their state; Z is a zombie."""
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
        except OSError:
            continue
        if fields and int(fields[1]) == os.getpid():
            yield int(entry.name), fields[0]


def torchrun(processes: int, *options: str, standalone: bool = True) -> list[str]:
    """The command line of torchrun, up to the script."""
    where = ["--standalone"] if standalone else []
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *where,
        "--nproc-per-node",
        str(processes),
        *options,
    ]


def script(folder: Path, fault: str, victim: int, *options: str) -> list[str]:
    """The worker and what it is told."""
    return [str(WORKER), str(folder), fault, str(victim), *options]


def start(command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """Start a process that writes to pipes."""
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, **pipe)


def by_hand(command: Sequence[str], ranks: Sequence[int], size: int) -> list[subprocess.Popen[str]]:
    """Start some of the ranks of a world without torchrun, which would end those that do not end by themselves."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    return [
        start([sys.executable, *command], RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in ranks
    ]


def ended(*processes: subprocess.Popen[str]) -> Ended:
    """Wait until all have ended, the first one first."""
    began = time.monotonic()
    try:
        texts = [process.communicate(timeout=GUARD) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    seconds = time.monotonic() - began
    outputs, errors = zip(*texts)
    codes = [process.returncode for process in processes]
    return Ended(codes, "".join(outputs), list(errors), seconds)


def interrupt(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal when the first line was printed, which is returned."""
    assert process.stdout is not None
    line: str = process.stdout.readline()
    process.send_signal(number)
    return line
