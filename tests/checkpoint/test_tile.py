"""Tiles and their runs, on real arrays."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import even, fused, parts, whole

from fxpar.checkpoint.cover import local
from fxpar.checkpoint.geometry import geometry
from fxpar.checkpoint.index import Part
from fxpar.checkpoint.tile import Tiling


def test_rows_go_directly() -> None:
    holders = tuple(parts([ranges, [(0, 8)]]) for ranges in even(16, 2))
    tiling = Tiling(geometry((16, 8), 32, holders), 128)
    assert tiling.count == 4
    first, last = tiling.tile(0), tiling.tile(3)
    assert [len(runs) for runs in first.holders] == [1, 0]
    assert [len(runs) for runs in last.holders] == [0, 1]
    assert first.holders[0][0][:2] == (0, 128)
    assert last.holders[1][0][:2] == (128, 128)
    assert last.holders[1][0].place == 0


def test_columns_are_one_run_of_rows() -> None:
    holders = tuple(parts([[(0, 16)], ranges]) for ranges in even(8, 2))
    tile = Tiling(geometry((16, 8), 32, holders), 256).tile(1)
    assert tile.shape == (8, 4)
    for runs in tile.holders:
        assert [(run.start, run.bytes, run.place) for run in runs] == [(128, 128, None)]


def test_fused_columns_are_one_run_of_rows() -> None:
    cut = fused([8, 4, 4], 2)
    tile = Tiling(geometry((6, 16), 32, tuple(parts([[(0, 6)], ranges]) for ranges in cut)), 1 << 20).tile(0)
    assert [len(runs) for runs in tile.holders] == [1, 1]
    assert len(tile.holders[0][0].moves) == 3


def test_boxes_that_are_no_grid() -> None:
    """Rows of the local tensor come from different rows of the whole: each is a run of its own."""
    crossed = (Part((0, 0), (2, 2), (0, 0)), Part((2, 2), (2, 2), (0, 2)))
    rest = (Part((0, 2), (2, 2), (0, 0)), Part((2, 0), (2, 2), (0, 2)))
    tile = Tiling(geometry((4, 4), 8, (crossed, rest)), 8).tile(0)
    assert [(run.start, run.bytes) for run in tile.holders[0]] == [(0, 2), (4, 2)]


CUTS = st.integers(1, 6).flatmap(
    lambda size: st.one_of(
        st.just(whole(size)),
        st.integers(1, 3).map(lambda n: even(size, n)),
        st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda n: fused([n[0] * n[1], n[1]], n[1])),
    )
)


@settings(deadline=None)
@given(st.lists(CUTS, min_size=1, max_size=3), st.integers(8, 64), st.sampled_from([8, 16, 32]))
def test_runs_are_every_byte_of_every_file_once(
    cuts: list[list[list[tuple[int, int]]]], most: int, bits: int
) -> None:
    shape = tuple(max(stop for ranges in cut for _, stop in ranges) for cut in cuts)
    places = [()]
    for cut in cuts:
        places = [(*place, ranges) for place in places for ranges in cut]
    holders = tuple(parts(place) for place in places)
    whole_bytes = np.arange(prod(shape) * bits // 8).astype(np.uint8)
    tiling = Tiling(geometry(shape, bits, holders), most)
    found = [np.zeros(prod(local(each)) * bits // 8, np.uint8) for each in holders]
    count = [np.zeros_like(each) for each in found]
    place = 0
    for number in range(tiling.count):
        tile = tiling.tile(number)
        assert tile.bytes <= max(most, tiling.geometry.unit)
        assert tiling.byte(number, (0,) * len(tile.shape)) == place
        data = whole_bytes[place : place + tile.bytes]
        place += tile.bytes
        values = data.view(f"u{tiling.geometry.unit}").reshape(tile.shape)
        for holder, runs in enumerate(tile.holders):
            for run in runs:
                made = np.zeros(run.shape, values.dtype)
                for move in run.moves:
                    made[move.run] = values[move.tile]
                written = made.reshape(-1).view(np.uint8)
                if run.place is not None:
                    assert (written == data[run.place : run.place + run.bytes]).all()
                found[holder][run.start : run.start + run.bytes] = written
                count[holder][run.start : run.start + run.bytes] += 1
    given_elements = whole_bytes.reshape(*shape, bits // 8)
    for each, times, got in zip(holders, count, found):
        assert (times == 1).all()
        wanted = np.zeros((*local(each), bits // 8), np.uint8)
        for part in each:
            here = tuple(slice(at, at + size) for at, size in zip(part.local, part.sizes))
            there = tuple(slice(at, at + size) for at, size in zip(part.offsets, part.sizes))
            wanted[here] = given_elements[there]
        assert (wanted.reshape(-1) == got).all()


def test_a_tensor_of_fifty_gigabytes_is_planned_at_once() -> None:
    holders = tuple(parts([[(0, 50_000)], ranges]) for ranges in even(250_000, 8))
    tiling = Tiling(geometry((50_000, 250_000), 32, holders), 2 << 20)
    assert tiling.count == 25_000
    last = tiling.tile(tiling.count - 1)
    assert last.bytes == 2_000_000
    assert [run.bytes for runs in last.holders for run in runs] == [250_000] * 8


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 3)])
def test_tiles_of_a_unit(shape: tuple[int, ...]) -> None:
    cuts = [even(size, size) for size in shape]
    holders = [()]
    for cut in cuts:
        holders = [(*place, ranges) for place in holders for ranges in cut]
    tiling = Tiling(geometry(shape, 32, tuple(parts(place) for place in holders)), 4)
    assert tiling.count == prod(shape)
