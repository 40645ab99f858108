"""Connections of a process to its two neighbours, by which it knows at once that one of them has been killed.

    rank 0 -- rank 1 -- rank 2 -- rank 3 -- rank 0

Collectives do not tell: gloo says that some connection was closed, NCCL waits for its timeout, and a rank that computes
notices nothing. Here the system closes the connections of a process that is killed, whatever its neighbours do.
"""

from __future__ import annotations

import contextlib
import secrets
import selectors
import socket
import time
from collections.abc import Iterator

from fxpar.errors import RankError

#: What a process says before it ends: that all is well, or that the failure is known; and that it is alive.
BYE, FAILED, ALIVE = b"B", b"F", b"."
#: What is heard of a neighbour whose connection was closed before it said any of these.
LOST = b""
#: Seconds within which neighbours that have all come must reach each other.
MEETING = 10.0
#: Seconds between two words to a neighbour.
PULSE = 1.0


class Ring:
    """This process's connections in a ring of `size` processes; `towards` is the host and port of the common store."""

    def __init__(self, rank: int, size: int, towards: tuple[str, int]) -> None:
        self._before, self._after = (rank - 1) % size, (rank + 1) % size
        family, host = _own_address(towards)
        self._listener = socket.create_server((host, 0), family=family)
        self._token = secrets.token_hex(16)
        self._peers: dict[socket.socket, int] = {}
        self.last = {self._before: time.monotonic(), self._after: time.monotonic()}
        #: Where this process is reached: its host, port, and a word that its neighbour has to know.
        self.address = f"{host} {self._listener.getsockname()[1]} {self._token}"

    def join(self, address: str) -> None:
        """Connect to the next rank, at its address, and wait for the one before. Raises RankError if one is missing."""
        host, port, token = address.split()
        missing = self._after
        try:
            after = socket.create_connection((host, int(port)), timeout=MEETING)
            after.sendall(token.encode())
            missing = self._before
            before = self._accept(time.monotonic() + MEETING)
        except OSError as error:
            what = f"rank {missing} cannot be reached for {MEETING:g} s: {error}"
            raise RankError(
                what, details=["processes connect to each other at ports that are free"]
            ) from error
        self._listener.close()
        for peer, rank in ((after, self._after), (before, self._before)):
            peer.setblocking(False)
            self._peers[peer] = rank

    def _accept(self, until: float) -> socket.socket:
        while True:
            self._listener.settimeout(max(0.0, until - time.monotonic()))
            peer, _ = self._listener.accept()
            peer.settimeout(MEETING)
            if secrets.compare_digest(_read(peer, len(self._token)), self._token.encode()):
                return peer
            peer.close()

    def say(self, word: bytes) -> None:
        """Tell both neighbours, if they are still there."""
        for peer in list(self._peers):
            with contextlib.suppress(OSError):
                peer.send(word)

    def hear(self, signals: socket.socket) -> Iterator[tuple[int, bytes]]:
        """Yield who said what, for ever, and after every PULSE the word ALIVE of rank -1.

        A byte that comes from `signals` is yielded as said by rank -1. `last` has when each neighbour was heard, in
        seconds of the monotonic clock.
        """
        with selectors.DefaultSelector() as selector:
            for each in (*self._peers, signals):
                selector.register(each, selectors.EVENT_READ)
            beat = time.monotonic()
            while True:
                for key, _ in selector.select(max(0.0, beat - time.monotonic())):
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    rank, word = self._peers.get(source, -1), _word(source)
                    self.last[rank] = time.monotonic()
                    if word in (LOST, BYE):
                        selector.unregister(source)
                    if word != ALIVE:
                        yield rank, word
                if time.monotonic() >= beat:
                    beat = time.monotonic() + PULSE
                    yield -1, ALIVE


def _word(source: socket.socket) -> bytes:
    """The next thing that was said; beats that have piled up are one."""
    try:
        said = source.recv(4096)
    except OSError:
        return LOST
    return said.lstrip(ALIVE)[:1] or said[:1]


def _read(peer: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer where the other end closes."""
    said = b""
    while len(said) < count and (more := peer.recv(count - len(said))):
        said += more
    return said


def _own_address(towards: tuple[str, int]) -> tuple[socket.AddressFamily, str]:
    """The address of this machine on the way to another."""
    family, _, _, _, place = socket.getaddrinfo(*towards, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)
        return family, probe.getsockname()[0]
