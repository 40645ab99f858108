"""Boxes as texts and as indices."""

from __future__ import annotations

from fxpar.checkpoint.box import Box


def test_a_box() -> None:
    assert Box.whole([2, 3]) == Box((0, 0), (2, 3))
    assert Box((1, 0), (2, 3)).slices == (slice(1, 3), slice(0, 3))
    assert str(Box((1, 0), (2, 3))) == "[2, 3] at [1, 0]"
