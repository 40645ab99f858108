from __future__ import annotations

import pytest
import torch

from fxpar.axes.cut import coordinates, positions, put, take
from fxpar.axes.factor import Cat, Factor
from fxpar.axes.runs import cut_size


def test_coordinates() -> None:
    heads, depth = Factor(2), Factor(3)
    assert coordinates((heads, depth), heads) == [0, 0, 0, 1, 1, 1]
    assert coordinates((heads, depth), depth) == [0, 1, 2, 0, 1, 2]
    fused = (Cat(((heads, depth), (heads,))),)
    assert coordinates(fused, heads) == [0, 0, 0, 1, 1, 1, 0, 1]
    assert coordinates((*fused, Factor(2)), heads)[:8] == [0, 0, 0, 0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"^the factor does not stand in the dim$"):
        coordinates((depth,), heads)


def test_cut_sizes() -> None:
    heads, depth = Factor(4), Factor(3)
    assert cut_size((heads, depth), {heads: 2}) == 6
    assert cut_size((Cat(((heads, depth), (heads,))), Factor(2)), {heads: 2}) == 16
    assert cut_size((heads, depth), {Factor(4): 2}) == 12


def test_parts_put_together() -> None:
    heads = Factor(4)
    dim = (Cat(((heads, Factor(3)), (heads,))),)
    whole = torch.arange(32).reshape(2, 16)
    where = [positions(dim, heads, part, 2) for part in range(2)]
    parts = [take(whole, 1, positions) for positions in where]
    assert parts[0][0].tolist() == [0, 1, 2, 3, 4, 5, 12, 13]
    assert torch.equal(put(parts, 1, where), whole)
