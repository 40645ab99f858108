"""The crc32 of bytes that were summed piece by piece, in any order.

A crc is a polynomial over GF(2) modulo P = x^32 + x^26 + ... + 1, here as in zlib with its lowest power in the highest
bit. Appending n bytes multiplies it by x^(8n):

    crc(a + b) = crc(a) * x^(8 len(b)) + crc(b)    modulo P

(Mark Adler, crc32_combine of zlib 1.2.12.)
"""

from __future__ import annotations

from functools import lru_cache

P = 0xEDB88320
ONE = 1 << 31


def _multiply(a: int, b: int) -> int:
    """The product of two polynomials modulo P."""
    product = 0
    while a:
        if a & ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ P if b & 1 else b >> 1
    return product


@lru_cache(maxsize=4096)
def _power(size: int) -> int:
    """x^(8 size) modulo P."""
    power, square = ONE, 1 << 23  # The latter is x^8.
    while size:
        if size & 1:
            power = _multiply(square, power)
        square = _multiply(square, square)
        size >>= 1
    return power


def combine(first: int, second: int, size: int) -> int:
    """The crc32 of bytes with crc32 `first` and, behind them, `size` bytes with crc32 `second`."""
    return _multiply(_power(size), first) ^ second


class Sum:
    """The crc32 of a range of bytes, from pieces that come in any order; neighbours are joined at once."""

    def __init__(self) -> None:
        self._stops: dict[int, tuple[int, int]] = {}  # start -> stop, crc
        self._starts: dict[int, int] = {}  # stop -> start

    def add(self, start: int, size: int, crc: int) -> None:
        """Take in the piece of `size` bytes from `start` on."""
        if size == 0:
            return
        stop = start + size
        if start in self._starts:
            first = self._starts.pop(start)
            crc = combine(self._stops.pop(first)[1], crc, size)
            start = first
        if stop in self._stops:
            last, second = self._stops.pop(stop)
            del self._starts[last]
            crc, stop = combine(crc, second, last - stop), last
        self._stops[start] = stop, crc
        self._starts[stop] = start

    def result(self, size: int) -> int:
        """The crc32 of the bytes [0, size). Raises ValueError unless the pieces are exactly these."""
        if size == 0 and not self._stops:
            return 0
        if self._stops.keys() != {0} or self._stops[0][0] != size:
            raise ValueError(f"the pieces are not the bytes 0 to {size}")
        return self._stops[0][1]
