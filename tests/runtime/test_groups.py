"""Groups by mesh dim, by joins of them and by chosen coordinates."""

from __future__ import annotations

import pytest
import torch

from fxpar import runtime
from fxpar.errors import RankError
from fxpar.mesh import Mesh
from fxpar.runtime.groups import alone, find, members, partition

MESH = Mesh({"pp": 4, "dp": 2, "tp": 2})


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("tp", (6, 7)),
        ("dp", (5, 7)),
        ("dp+tp", (4, 5, 6, 7)),
        ("tp+dp", (4, 6, 5, 7)),
        ("pp[1,3]", (7, 15)),
        ("pp[1,3]+dp", (5, 7, 13, 15)),
        ("pp[0,3]", ()),
        ("cp", (7,)),
        ("cp+tp", (6, 7)),
    ],
)
def test_members(kind, ranks):
    assert members(MESH, 7, kind) == ranks


@pytest.mark.parametrize("kind", ["tp", "dp", "pp", "dp+tp", "pp+dp", "pp+dp+tp", "tp+dp", "cp"])
def test_members_and_partition_agree_with_the_mesh(kind):
    assert [members(MESH, rank, kind) for rank in range(16)] == [
        MESH.members(rank, kind) for rank in range(16)
    ]
    assert partition(MESH, kind) == list(MESH.groups(kind))


def test_only_those_inside_are_in_a_partition():
    assert partition(MESH, "pp[0,3]") == [(0, 12), (1, 13), (2, 14), (3, 15)]


def test_a_malformed_kind_is_refused():
    with pytest.raises(ValueError, match=r"`pp\[0` is no kind of group"):
        members(MESH, 0, "pp[0")


def test_names_sizes_and_positions():
    groups = alone(MESH, 7)
    assert groups.dp_tp == groups["dp+tp"]
    assert find(groups.dp_tp).ranks == (4, 5, 6, 7)
    assert (groups.index("dp+tp"), groups.size("dp+tp")) == (3, 4)
    assert groups.world == groups["pp+dp+tp"]
    assert groups.coordinate == {"pp": 1, "dp": 1, "tp": 1}
    assert "pp[1,2]" in groups
    assert "pp[0,2]" not in groups
    assert list(groups) == ["dp+tp", "pp+dp+tp"]


def test_a_missing_group_says_which_there_are():
    groups = alone(MESH, 7)
    assert groups.tp
    with pytest.raises(RankError, match=r"rank 7 has no group `pp\[0,3\]`\n  it has tp"):
        groups["pp[0,3]"]
    groups.close()
    with pytest.raises(AttributeError, match="rank 7 has no group `dp`"):
        _ = groups.dp


def test_a_rank_alone_has_shapes_but_no_peers():
    groups = alone(MESH, 7)
    assert runtime.all_gather(torch.empty(2, 3, device="meta"), 1, groups.dp_tp).shape == (2, 12)
    with pytest.raises(RankError, match="group `tp` has no other ranks here"):
        runtime.all_reduce(torch.ones(2), groups.tp)
    with pytest.raises(RankError, match="rank 7 runs alone"):
        _ = groups.transport


def test_a_group_of_one_needs_nobody():
    groups = alone(MESH, 7)
    x = torch.arange(6.0).reshape(2, 3)
    for y in (
        runtime.all_reduce(x, groups.cp),
        runtime.all_gather(x.T, 0, groups.cp).T,
        runtime.reduce_scatter(x, 1, groups.cp),
        runtime.all_to_all(x, 0, 1, groups.cp),
        runtime.slice(x, 1, groups.cp, layout=[2, 1, 1, 1]),
        runtime.keep_on_first(x, groups.cp),
        runtime.keep_gradient_on_first(x, groups.cp),
        runtime.keep_both_on_first(x, groups.cp),
    ):
        assert torch.equal(y, x)
        assert y.data_ptr() != x.data_ptr()
    assert groups.counter.calls() == 0
