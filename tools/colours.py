"""The colours of the pictures: a hue for each axis, and of each hue a shade for every rank."""

from __future__ import annotations

from fxpar.report.svg import INK, PAPER

WHOLE, SUMMAND = "#d4d4d4", "#f6e27a"
#: Of each hue a shade for every rank.
HUES = {
    "heads": ("#2f6db5", "#9cc3ee"),
    "ffn": ("#d9741a", "#f8c794"),
    "vocab": ("#2e8b57", "#a3d9b8"),
    "sequence": ("#7d52a8", "#cdb4e6"),
}


def shade(axis: str, rank: int) -> str:
    """The colour of a rank's part along an axis."""
    return HUES[axis][rank]


def ink_on(axis: str, rank: int) -> str:
    """What can be read on that colour."""
    return PAPER if HUES.get(axis) and rank == 0 else INK
