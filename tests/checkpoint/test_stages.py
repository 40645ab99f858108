"""Layers dealt out over pipeline ranks."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxpar.checkpoint.index import Index, Indexed, Part
from fxpar.checkpoint.stages import cut, stages
from fxpar.errors import CheckpointError


def index(*sizes: int, shared: tuple[int, ...] = ()) -> Index:
    """A tensor for each layer, and one that several use."""
    whole = {"a": (Part((0,), (1,), (0,)),)}
    tensors = {
        f"w{n}": Indexed("F32", (size,), (str(size),), {}, whole, (n,)) for n, size in enumerate(sizes)
    }
    if shared:
        tensors["shared"] = Indexed("F32", (1,), ("1",), {}, whole, shared)
    return Index("", "", {}, ("a",), tensors)


def test_the_largest_stage_is_as_small_as_can_be() -> None:
    assert cut([8, 2, 2, 2, 2, 8], 3) == [1, 5, 6]
    assert cut([1, 1, 1, 1], 2) == [2, 4]
    assert cut([5], 1) == [1]
    assert cut([], 1) == [0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 4))
def test_no_other_cut_is_better(weights: list[int], parts: int) -> None:
    if parts > len(weights):
        return
    ends = cut(weights, parts)
    assert all(a < b for a, b in pairwise([0, *ends]))
    assert ends[-1] == len(weights)

    def largest(bounds: list[int]) -> int:
        return max(sum(weights[a:b]) for a, b in pairwise([0, *bounds]))

    others = combinations(range(1, len(weights)), parts - 1)
    assert largest(ends) == min(largest([*other, len(weights)]) for other in others)


def test_thousands_of_layers() -> None:
    """As many as anyone may claim: with a square of them it would take minutes."""
    assert cut([1] * 20_000, 4) == [5_000, 10_000, 15_000, 20_000]


def test_ranks_of_tensors() -> None:
    assert stages(index(4, 4, 4, 4), 2) == {"w0": (0,), "w1": (0,), "w2": (1,), "w3": (1,)}
    assert stages(index(4, 4, 4, 4), 2, 2) == {"w0": (0,), "w1": (1,), "w2": (0,), "w3": (1,)}
    assert stages(index(4, 4, 4, 4), 2, 2, "zb-v") == {"w0": (0,), "w1": (1,), "w2": (1,), "w3": (0,)}
    assert stages(index(4, 4, 4, shared=(0, 2)), 3)["shared"] == (0, 2)


def test_more_stages_than_layers() -> None:
    with pytest.raises(CheckpointError, match="6 stages need as many layers, the checkpoint has 4"):
        stages(index(4, 4, 4, 4), 3, 2)
