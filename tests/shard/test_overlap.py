"""The spans that all ranks have alike, against boxes of the whole tensor."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxpar.axes.factor import Cat, Dim, Factor, holds, holds_partly, size_of
from fxpar.axes.runs import cut_size, dim_runs
from fxpar.shard.overlap import Overlap, common, overlaps, spans, sum_text
from fxpar.shard.placement import Shard


@st.composite
def mixed(draw: st.DrawFn) -> tuple[Dim, Factor, int]:
    """A dim with a concatenation of which some parts have a factor, the factor, and a number of ranks for it."""
    ranks = draw(st.integers(2, 4))
    heads = Factor(ranks * draw(st.integers(1, 3)))
    sizes = st.integers(1, 4)

    def product(*middle: Factor) -> Dim:
        around = [Factor(size) if size > 1 else None for size in (draw(sizes), draw(sizes))]
        return tuple(f for f in (around[0], *middle, around[1]) if f is not None)

    parts = [product(heads)] * draw(st.integers(1, 2)) + [product() for _ in range(draw(st.integers(1, 3)))]
    parts = draw(st.permutations(parts))
    if draw(st.booleans()):
        parts[0:1] = [(Cat((parts[0], product())), *product())]
    outer, inner = product(), product()
    return (*outer, Cat(tuple(parts)), *inner), heads, ranks


@given(mixed())
def test_spans_are_what_every_rank_has(given_: tuple[Dim, Factor, int]) -> None:
    dim, heads, ranks = given_
    if not holds_partly(dim, heads):
        return
    cuts = {heads: ranks}
    held = [
        [
            i
            for start, _, length in dim_runs(dim, {heads: (ranks, rank)})
            for i in range(start, start + length)
        ]
        for rank in range(ranks)
    ]
    times = Counter(index for each in held for index in each)
    assert set(times) == set(range(size_of(dim)))
    assert set(times.values()) == {1, ranks}
    found = {i for start, length in spans(dim, heads, cuts) for i in range(start, start + length)}
    for each in held:
        assert len(each) == cut_size(dim, cuts)
        assert each == sorted(each)
        assert {i for i, whole in enumerate(each) if times[whole] == ranks} == found
    starts = [start for start, _ in spans(dim, heads, cuts)]
    ends = [start + length for start, length in spans(dim, heads, cuts)]
    assert all(end < start for end, start in zip(ends, starts[1:]))


def test_a_factor_in_every_part_or_in_none_is_not_mixed() -> None:
    heads, depth = Factor(4), Factor(8)
    assert not holds_partly((Cat(((heads, depth), (heads,))), depth), heads)
    assert holds((Cat(((heads, depth), (heads,))), depth), heads)
    assert not holds_partly((Cat(((depth,), (depth,))),), heads)
    assert not holds_partly((heads, Cat(((heads,), (depth,)))), heads)
    assert not holds_partly((Cat(((heads,), (depth,))), Cat(((heads,), (depth,)))), heads)
    assert not holds_partly((Cat(((heads, heads), (depth,))),), heads)
    assert holds_partly((Cat(((heads,), ())),), heads)


def test_overlaps_by_mesh_dim() -> None:
    heads, groups, depth, hidden = Factor(2), Factor(4), Factor(8), Factor(32)
    rows: Dim = (Cat(((heads, groups, depth), (heads, depth), (heads, depth))),)
    held = {"tp1": Shard(0, heads), "tp2": Shard(0, groups)}
    assert overlaps((rows, (hidden,)), held, {"tp1": 2, "tp2": 2}) == (Overlap("tp2", 0, ((16, 16),)),)
    assert overlaps((rows, (hidden,)), {"tp1": Shard(0, heads)}, {"tp1": 2}) == ()


@pytest.mark.parametrize(
    ("split", "found", "number"),
    [
        (("tp",), (), 0),
        (("tp",), (Overlap("tp", 0, ((4, 2), (8, 1))),), 3 * 5),
        (("tp", "ep"), (Overlap("tp", 0, ((4, 2),)),), 0),
        (("tp", "ep"), (Overlap("tp", 0, ((4, 2),)), Overlap("ep", 0, ((4, 2),))), 2 * 5),
    ],
)
def test_what_every_rank_has(split: tuple[str, ...], found: tuple[Overlap, ...], number: int) -> None:
    assert common((10, 5), split, found) == number


def test_an_overlap_in_words() -> None:
    assert sum_text(Overlap("tp", 0, ((8, 16), (30, 1)))) == "tp (dim 0: 8 to 23, 30 to 30)"
