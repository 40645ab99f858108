"""Every row of the table of conversions: the operator, its arguments, and what it does to a value."""

from __future__ import annotations

from typing import TypeAlias

import pytest
import torch

from fxpar.axes.factor import Cat, Dim, Factor, size_of
from fxpar.axes.links import Dims
from fxpar.mesh import GroupName, Mesh
from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import simulate
from fxpar.shard.convert import normal, order, step
from fxpar.shard.placement import INVARIANT, PARTIAL, REPLICATE, Placement, Placements, Shard

OPS = torch.ops.fxpar
ROWS, COLUMNS = Factor(4), Factor(6)
DIMS = ((ROWS,), (COLUMNS,))
ZERO, ONE = Shard(0, ROWS), Shard(1, COLUMNS)
TP = GroupName("tp")
Steps: TypeAlias = list[tuple[str, ...]]

CONVERSIONS = [
    (INVARIANT, REPLICATE, OPS.sum_gradient.default, (TP,)),
    (PARTIAL, INVARIANT, OPS.all_reduce.default, (TP,)),
    (PARTIAL, REPLICATE, OPS.all_reduce_both.default, (TP,)),
    (INVARIANT, PARTIAL, OPS.keep_on_first.default, (TP,)),
    (ZERO, REPLICATE, OPS.all_gather.default, (0, [1, 2], TP, "reduce_scatter")),
    (ONE, INVARIANT, OPS.all_gather.default, (1, [1, 3], TP, "slice")),
    (PARTIAL, ZERO, OPS.reduce_scatter.default, (0, [1, 2], TP)),
    (INVARIANT, ONE, OPS.slice.default, (1, [1, 3], TP, "all_gather")),
    (REPLICATE, ZERO, OPS.slice.default, (0, [1, 2], TP, "pad")),
    (ZERO, ONE, OPS.all_to_all.default, (0, [1, 2], 1, [1, 3], TP)),
]


@pytest.mark.parametrize(("source", "target", "operator", "arguments"), CONVERSIONS)
def test_over_one_mesh_dim(source: Placement, target: Placement, operator: object, arguments: object) -> None:
    found = step(DIMS, {"tp": source}, ("tp",), {"tp": target}, {"tp": 2})
    assert (found.operator, found.arguments) == (operator, arguments)
    assert (found.mesh_dims, found.source, found.target) == (("tp",), source, target)


def test_without_a_gradient_replicate_is_invariant() -> None:
    assert normal(REPLICATE, False) is INVARIANT
    assert normal(REPLICATE, True) is REPLICATE
    assert normal(ZERO, False) is ZERO


OUTER, INNER = Factor(2), Factor(4)
SIZES = {"cp": 2, "tp": 2}
HELD = {"cp": Shard(0, OUTER), "tp": Shard(0, INNER)}


def test_a_layout_knows_what_other_mesh_dims_hold() -> None:
    dims = ((OUTER, INNER),)
    assert step(dims, HELD, ("tp",), {"tp": REPLICATE}, SIZES).arguments[:2] == (0, [1, 2])
    held = {"tp": HELD["tp"]}
    assert step(dims, held, ("tp",), {"tp": REPLICATE}, SIZES).arguments[:2] == (0, [2, 2])


def runs(
    dims: Dims, source: Placements, target: Placements, timed: tuple[str, ...] = ()
) -> list[tuple[str, ...]]:
    changes = {m: (source.get(m, INVARIANT), target.get(m, INVARIANT)) for m in {**source, **target}}
    return order(dims, changes, {"dp": 2, **SIZES}, timed)


def test_what_makes_a_value_smaller_comes_first() -> None:
    source: Placements = {"dp": ZERO, "cp": PARTIAL}
    target: Placements = {"dp": REPLICATE, "tp": ONE}
    assert runs(DIMS, source, target) == [("tp",), ("cp",), ("dp",)]


def test_what_one_call_can_do_is_one_call() -> None:
    both: Placements = {"cp": PARTIAL, "tp": PARTIAL}
    assert runs(DIMS, both, {}) == [("cp", "tp")]
    assert runs(DIMS, both, {}, timed=("cp",)) == [("cp",), ("tp",)]
    assert runs(DIMS, both, {"tp": REPLICATE}) == [("cp",), ("tp",)]
    assert runs(((OUTER, INNER),), HELD, {}) == [("cp", "tp")]
    assert runs(((INNER, OUTER),), HELD, {}) == [("cp",), ("tp",)]
    assert runs(((OUTER,), (INNER,)), {"cp": HELD["cp"], "tp": Shard(1, INNER)}, {}) == [("cp",), ("tp",)]


def test_parts_of_a_concatenation_are_gathered_in_one_call() -> None:
    depth = Factor(3)
    fused: Dim = (Cat(((OUTER, INNER, depth), (OUTER, INNER))),)
    assert runs((fused,), HELD, {}) == [("cp", "tp")]
    found = step((fused,), HELD, ("cp", "tp"), dict.fromkeys(SIZES, INVARIANT), SIZES)
    assert found.arguments == (0, [1, 6, 1, 2], GroupName("cp+tp"), "slice")


@pytest.mark.parametrize("dims", [((OUTER, INNER),), ((INNER, OUTER),)])
def test_another_factor_of_the_same_dim(dims: Dims) -> None:
    """One exchange, forth and back: in between both factors are split."""
    whole = torch.arange(8, dtype=torch.float64)
    by_outer, by_inner = Shard(0, OUTER), Shard(0, INNER)

    def body(_: int, groups: Groups) -> None:
        def convert(x: torch.Tensor, held: Placement, wanted: Placement) -> torch.Tensor:
            made = step(dims, {"tp": held}, ("tp",), {"tp": wanted}, {"tp": 2})
            return made.operator(x, *(groups[a] if isinstance(a, GroupName) else a for a in made.arguments))  # type: ignore[no-any-return]

        x = whole.clone().requires_grad_()
        one, other = convert(x, INVARIANT, by_outer), convert(x, INVARIANT, by_inner)
        assert torch.equal(convert(one, by_outer, by_inner), other)
        assert torch.equal(convert(other, by_inner, by_outer), one)
        (convert(one, by_outer, by_inner) * (other.detach() + 1)).sum().backward()
        assert torch.equal(x.grad, whole + 1)

    simulate(Mesh({"tp": 2}), body)


@pytest.mark.parametrize("dims", [((OUTER, INNER),), ((Cat(((OUTER, INNER, Factor(3)), (OUTER, INNER))),),)])
@pytest.mark.parametrize("back", [False, True])
def test_one_call_over_two_mesh_dims_does_what_two_do(dims: Dims, back: bool) -> None:
    """Whole to slices and back, by the two-dimensional group and mesh dim by mesh dim."""
    whole = torch.arange(size_of(dims[0]), dtype=torch.float64)
    none: Placements = dict.fromkeys(SIZES, INVARIANT)
    mesh = Mesh(SIZES)

    def convert(
        x: torch.Tensor, groups: Groups, held: Placements, targets: Placements, steps: Steps
    ) -> torch.Tensor:
        for mesh_dims in steps:
            made = step(dims, held, mesh_dims, targets, SIZES)
            x = made.operator(x, *(groups[a] if isinstance(a, GroupName) else a for a in made.arguments))
            held = {**held, **{m: targets[m] for m in mesh_dims}}
        return x

    def body(_: int, groups: Groups) -> tuple[torch.Tensor, torch.Tensor]:
        both = convert(whole, groups, none, HELD, [("cp", "tp")])
        each = convert(whole, groups, none, HELD, [("cp",), ("tp",)])
        if not back:
            return both, each
        return convert(both, groups, HELD, none, [("cp", "tp")]), convert(
            each, groups, HELD, none, [("tp",), ("cp",)]
        )

    for both, each in simulate(mesh, body):
        assert torch.equal(both, each)
        assert torch.equal(both, whole) or not back
