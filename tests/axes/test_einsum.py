from __future__ import annotations

import pytest

from fxpar.axes.einsum import spelled


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("bhqd,bhkd->bhqk", "b h q d, b h k d -> b h q k"),
        ("b q d , b k d -> b q k", "b q d, b k d -> b q k"),
        ("...i,ij", "... i, i j -> ... j"),
        ("ba", "b a -> a b"),
        ("ii->i", "i i -> i"),
        ("i,i->", "i, i -> "),
        ("Ab,bc", "A b, b c -> A c"),
    ],
)
def test_spelled(text: str, wanted: str) -> None:
    assert spelled(text) == wanted
