"""Texts in columns, and numbers in cells."""

from __future__ import annotations

from collections.abc import Sequence

#: How many numbers a cell lists.
LISTED = 8
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(count: int) -> str:
    """Write a number of bytes in the largest unit of 1024 that leaves at least one: `1.5 MiB`."""
    power = min(max(0, (count.bit_length() - 1) // 10), len(UNITS) - 1)
    return f"{count} B" if power == 0 else f"{count / 1024**power:.1f} {UNITS[power]}"


def aligned(lines: Sequence[Sequence[str]], margin: str = "") -> str:
    """Write lines of cells as columns of equal width, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines)
    return "\n".join(f"{margin}{row}".rstrip() for row in rows)


def numbers(values: Sequence[int]) -> str:
    """Write numbers one after the other, all of them or the first few and the last."""
    shown = [str(value) for value in values]
    return " ".join(shown if len(shown) <= LISTED else [*shown[: LISTED - 2], "...", shown[-1]])
