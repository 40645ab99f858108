"""Local sizes, layouts and boxes of dims: products, concatenations, one factor or several."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpar.axes.factor import Cat, Dim, Factor, size_of
from fxpar.axes.runs import cut_size, dim_runs
from fxpar.mesh import Mesh
from fxpar.runtime.lockstep import simulate
from fxpar.shard.boxes import Box, boxes
from fxpar.shard.placement import (
    INVARIANT,
    PARTIAL,
    Shard,
    cuts_of,
    layout,
    local_shape,
    shards_of,
)

SIZES = {"cp": 2, "tp": 2}


def factors(*sizes: int) -> tuple[Factor, ...]:
    return tuple(Factor(size) for size in sizes)


def test_the_local_size_of_a_product_and_of_a_concatenation() -> None:
    heads, depth, groups = factors(4, 8, 3)
    assert cut_size((heads, depth), {heads: 2}) == 16
    fused: Dim = (Cat(((heads, groups, depth), (heads, depth), (heads, depth))),)
    assert cut_size(fused, {heads: 4}) == 24 + 8 + 8


def test_layouts() -> None:
    heads, depth, groups = factors(4, 8, 3)
    assert layout((heads, depth), heads, {heads: 2}) == [1, 16]
    assert layout((depth, heads), heads, {heads: 2}) == [8, 2]
    assert layout((groups, heads, depth), heads, {heads: 4}) == [3, 8]
    fused: Dim = (Cat(((heads, groups, depth), (heads, depth))),)
    assert layout(fused, heads, {heads: 2}) == [1, 48, 1, 16]
    assert layout((*fused, groups), heads, {heads: 2}) == [1, 144, 1, 48]
    with pytest.raises(ValueError, match="does not stand"):
        layout((depth,), heads, {heads: 2})


def test_a_fused_projection_is_cut_inside_each_part() -> None:
    heads, depth = factors(2, 2)
    fused: Dim = (Cat(((heads, depth), (heads, depth), (heads, depth))),)
    assert dim_runs(fused, {heads: (2, 1)}) == [(2, 0, 2), (6, 2, 2), (10, 4, 2)]


def test_parts_of_what_does_not_divide() -> None:
    """97 over 4 ranks, and 33 over 8 of which the last one has nothing; padding is in no box."""
    vocab, hidden, few = factors(97, 8, 33)
    held = {"tp": Shard(0, vocab)}
    assert local_shape(((vocab,), (hidden,)), held, {"tp": 4}) == (25, 8)
    assert layout((hidden, vocab), vocab, {vocab: 4}) == [8, 25, 776]
    found = [boxes(((vocab,), (hidden,)), held, {"tp": 4}, {"tp": rank}) for rank in range(4)]
    assert found[1] == [Box((25, 0), (0, 0), (25, 8))]
    assert found[3] == [Box((75, 0), (0, 0), (22, 8))]
    last = [boxes(((few,),), {"tp": Shard(0, few)}, {"tp": 8}, {"tp": rank}) for rank in (6, 7)]
    assert last == [[Box((30,), (0,), (3,))], [Box((33,), (0,), (0,))]]


def test_shards_of_and_shapes() -> None:
    a, b, c = factors(4, 6, 2)
    held = {"dp": INVARIANT, "cp": Shard(0, a), "tp": Shard(1, b), "ep": PARTIAL}
    assert shards_of(held, 1) == {b: ["tp"]}
    assert cuts_of(held, 0, SIZES) == {a: 2}
    assert local_shape(((a, c), (b,)), held, SIZES) == (4, 3)


def test_boxes_of_no_dim_and_of_a_whole_tensor() -> None:
    (a,) = factors(4)
    assert boxes((), {}, SIZES, {}) == [Box((), (), ())]
    assert boxes(((a,),), {"tp": PARTIAL}, SIZES, {"tp": 1}) == [Box((0,), (0,), (4,))]


@st.composite
def dims_and_shards(draw: st.DrawFn) -> tuple[tuple[Dim, ...], dict[str, Shard]]:
    """Two dims of random products and concatenations, with a factor that cp splits and one that tp splits.

    The factors need not divide: the parts of the last ranks then end in padding.
    """
    split = {name: Factor(draw(st.integers(2, 5))) for name in SIZES}
    where = {name: draw(st.integers(0, 1)) for name in split}
    dims: list[Dim] = []
    for position in range(2):
        mine = [factor for name, factor in split.items() if where[name] == position]
        parts = []
        for _ in range(draw(st.integers(1, 3))):
            others = [Factor(size) for size in draw(st.lists(st.integers(2, 3), max_size=1))]
            parts.append(tuple(draw(st.permutations([*mine, *others]))))
        parts = [part for part in parts if part] or [(Factor(3),)]
        tail = tuple(Factor(2) for _ in range(draw(st.integers(0, 1))))
        dims.append((*(parts[0] if len(parts) == 1 else (Cat(tuple(parts)),)), *tail))
    return tuple(dims), {name: Shard(where[name], split[name]) for name in split}


@settings(max_examples=60, deadline=None)
@given(dims_and_shards())
def test_boxes_tile_the_tensor(case: tuple[tuple[Dim, ...], dict[str, Shard]]) -> None:
    dims, held = case
    seen = torch.zeros([size_of(dim) for dim in dims], dtype=torch.int64)
    local = local_shape(dims, held, SIZES)
    for cp, tp in product(range(2), range(2)):
        own = torch.zeros(local, dtype=torch.int64)
        for box in boxes(dims, held, SIZES, {"cp": cp, "tp": tp}):
            seen[tuple(slice(o, o + n) for o, n in zip(box.offset, box.sizes))] += 1
            own[tuple(slice(o, o + n) for o, n in zip(box.local, box.sizes))] += 1
        full = all(factor.size % 2 == 0 for factor in (held["cp"].factor, held["tp"].factor))
        assert bool((own == 1).all() if full else (own <= 1).all())
    assert bool((seen == 1).all())


def take(whole: torch.Tensor, found: list[Box], shape: tuple[int, ...]) -> torch.Tensor:
    own = whole.new_zeros(shape)
    for box in found:
        mine = tuple(slice(o, o + n) for o, n in zip(box.local, box.sizes))
        own[mine] = whole[tuple(slice(o, o + n) for o, n in zip(box.offset, box.sizes))]
    return own


@settings(max_examples=30, deadline=None)
@given(dims_and_shards())
def test_layouts_agree_with_boxes(case: tuple[tuple[Dim, ...], dict[str, Shard]]) -> None:
    """What is gathered mesh dim by mesh dim is the whole; what is scattered is the slice, times the ranks."""
    dims, held = case
    shape = [size_of(dim) for dim in dims]
    whole = torch.arange(prod(shape), dtype=torch.float64).view(shape)
    mesh = Mesh(SIZES)

    def body(rank: int, groups: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own = take(whole, boxes(dims, held, SIZES, mesh.coordinate(rank)), local_shape(dims, held, SIZES))
        gathered, rest = own, dict(held)
        scattered = whole
        for name in ("cp", "tp"):
            spread = layout(dims[held[name].dim], held[name].factor, cuts_of(rest, held[name].dim, SIZES))
            group = groups[name]  # type: ignore[index]
            gathered = torch.ops.fxpar.all_gather(gathered, held[name].dim, spread, group, "slice")
            del rest[name]
        done: dict[str, Shard] = {}
        for name in ("tp", "cp"):
            done = {**done, name: held[name]}
            spread = layout(dims[held[name].dim], held[name].factor, cuts_of(done, held[name].dim, SIZES))
            group = groups[name]  # type: ignore[index]
            scattered = torch.ops.fxpar.reduce_scatter(scattered, held[name].dim, spread, group)
        return own, gathered, scattered

    for own, gathered, scattered in simulate(mesh, body):
        assert torch.equal(gathered, whole)
        assert torch.equal(scattered, 4 * own)
