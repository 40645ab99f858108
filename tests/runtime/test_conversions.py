"""Every conversion, forward and backward, for every kind of layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_cases import LAYOUTS, cases
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fxpar import runtime
from fxpar.errors import RankError
from fxpar.mesh import Mesh
from fxpar.runtime.groups import Groups, alone
from fxpar.runtime.lockstep import simulate

OPS = torch.ops.fxpar
layouts = st.lists(st.integers(1, 3), min_size=2, max_size=6).filter(lambda numbers: len(numbers) % 2 == 0)


def run_all(ranks: int, layout: list[int], dim: int, dtype: torch.dtype = torch.float64) -> None:
    expected = cases(ranks, layout, dim, dtype)

    def run(rank: int, groups: Groups) -> None:
        for case in expected.values():
            case.run(rank, groups.tp)

    simulate(Mesh({"tp": ranks}), run)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_forward_and_backward(ranks, dim, layout):
    run_all(ranks, layout, dim)


@settings(max_examples=30, deadline=None)
@given(layouts, st.integers(0, 2), st.integers(1, 4))
def test_any_layout(layout, dim, ranks):
    run_all(ranks, layout, dim)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.int32, torch.float16, torch.bfloat16, torch.float32], ids=str
)
def test_any_dtype(dtype):
    run_all(2, [2, 1, 1, 2], 1, dtype)


def test_all_to_all_within_one_dimension():
    """A dimension of (a b), split over a, comes out split over b; and the gradient goes back."""
    whole = torch.arange(24.0)  # a = 4, b = 6

    def run(rank: int, groups: Groups) -> None:
        x = whole.chunk(2)[rank].requires_grad_()
        y = runtime.all_to_all(x, 0, 0, groups.tp, scatter_layout=[2, 3])
        want = whole.view(4, 2, 3)[:, rank].flatten()
        assert torch.equal(y, want)
        y.backward(want)
        assert torch.equal(x.grad, x.detach())

    simulate(Mesh({"tp": 2}), run)


def calls(ranks: int) -> list[tuple]:
    """Operators with the arguments after x."""
    return [
        (OPS.sum_gradient, ()),
        (OPS.all_reduce, ()),
        (OPS.all_reduce_both, ()),
        (OPS.all_gather, (1, [2, ranks], "reduce_scatter")),
        (OPS.all_gather, (-1, [], "slice")),
        (OPS.reduce_scatter, (1, [2, 1])),
        (OPS.slice, (1, [1, 2], "all_gather")),
        (OPS.slice, (1, [], "pad")),
        (OPS.all_to_all, (0, [], 1, [2, 1])),
        (OPS.keep_on_first, ()),
        (OPS.zero_padding, (1, [1, 2 * ranks, 4 * ranks - 1])),
        (OPS.all_gather, (1, [1, 2 * ranks, 2 * ranks * ranks - (ranks > 1)], "slice")),
        (OPS.slice, (1, [1, 3, 2 * ranks], "pad")),
        (OPS.keep_gradient_on_first, ()),
        (OPS.keep_both_on_first, ()),
    ]


def with_group(op, arguments: tuple, group: str) -> tuple:
    """Put the group where the operator's schema has it."""
    place = [argument.name for argument in op.default._schema.arguments].index("group") - 1
    return (*arguments[:place], group, *arguments[place:])


@pytest.mark.parametrize("number", range(15))
@pytest.mark.parametrize("ranks", [1, 2])
def test_operators_are_registered_as_torch_wants(ranks, number):
    def run(_: int, groups: Groups) -> None:
        op, arguments = calls(ranks)[number]
        x = torch.randn(2, 2 * ranks, requires_grad=True)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(op.default, (x, *with_group(op, arguments, groups.tp)), test_utils=tests)

    simulate(Mesh({"tp": ranks}), run)


@pytest.mark.parametrize("number", range(15))
def test_operators_trace_with_their_gradients(number):
    groups = alone(Mesh({"tp": 1}))
    op, arguments = calls(1)[number]
    x = torch.randn(2, 2, requires_grad=True, dtype=torch.float64)
    arguments = (x, *with_group(op, arguments, groups.tp))
    torch.library.opcheck(op.default, arguments, test_utils=("test_aot_dispatch_dynamic",))
    torch.autograd.gradcheck(lambda x: op(x, *arguments[1:]), (x,))


def test_shapes_may_be_symbolic():
    groups = alone(Mesh({"tp": 4}))
    mode = torch._subclasses.FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        x = torch.empty(mode.shape_env.create_unbacked_symint() * 4, 12)
        rows = x.shape[0]
        assert str(runtime.all_gather(x, 1, groups.tp).shape[1]) == "48"
        assert runtime.all_gather(x, 0, groups.tp).shape[0] == 4 * rows
        assert runtime.slice(x, 0, groups.tp).shape[0] == rows // 4
        assert runtime.all_gather(x, 0, groups.tp, layout=[1, rows]).shape == (4 * rows, 12)
        assert runtime.reduce_scatter(x, 1, groups.tp).shape == (rows, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, g: runtime.all_gather(x, 1, g, layout=[1, 5]), r"layout \[1, 5\] is of length 5, the part has 6"),
        (lambda x, g: runtime.slice(x, 0, g), "3 does not divide over 2 ranks"),
        (lambda x, g: runtime.slice(x, 1, g, layout=[1, 2]), r"layout \[1, 2\] is of length 2, the part has 3"),
        (lambda x, g: runtime.all_gather(x, 2, g), r"dimension 2 of a tensor of shape \[3, 6\]"),
        (lambda x, g: runtime.all_gather(x, 0, g, layout=[1, 2, 3]), "is of length 2, the part has 3"),
        (lambda x, g: runtime.slice(x, 1, g, layout=[1, 4, 7]), r"2 parts of layout \[1, 4, 7\] are no whole of 6"),
        (lambda x, g: runtime.all_gather(x, 0, g, backward="pad"), "backward='pad' is none of reduce_scatter, slice"),
        (lambda x, g: runtime.slice(x, 1, g, backward="slice"), "backward='slice' is none of all_gather, pad"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_wrong_sizes_are_refused_before_they_meet(call, message, device):
    def run(_: int, groups: Groups) -> None:
        call(torch.zeros(3, 6, device=device), groups.tp)

    with pytest.raises(RankError, match=message):
        simulate(Mesh({"tp": 2}), run)


def test_an_unknown_group_is_refused():
    with pytest.raises(RankError, match="no group is registered as `tp`"):
        runtime.all_reduce(torch.zeros(2), "tp")


@pytest.mark.parametrize("dim", [0, 1])
def test_what_does_not_divide(dim):
    """7 over 3 ranks: parts end in zeros, wholes have no padding, gradients of padding are zero or dropped."""
    whole = torch.arange(1.0, 43).view(7, 6) if dim == 0 else torch.arange(1.0, 43).view(7, 6).T.contiguous()
    layout = [1, 3, 7]

    def run(rank: int, groups: Groups) -> None:
        x = whole.clone().requires_grad_()
        own = runtime.slice(x, dim, groups.tp, layout=layout)
        real = min(3, 7 - 3 * rank)
        assert torch.equal(own.narrow(dim, 0, real), whole.narrow(dim, 3 * rank, real))
        assert not own.narrow(dim, real, 3 - real).any()
        junk = torch.where(own == 0, torch.nan, own).detach().requires_grad_()
        assert torch.equal(runtime.all_gather(junk, dim, groups.tp, layout=layout), whole)
        kept = runtime.zero_padding(junk, dim, groups.tp, layout=layout)
        assert torch.equal(kept, own)
        kept.backward(torch.ones_like(kept))
        assert torch.equal(junk.grad, (own != 0).to(own))
        own.backward(torch.full_like(own, 2))
        assert torch.equal(x.grad, torch.full_like(x, 2))
        summed = runtime.reduce_scatter(whole.clone().requires_grad_(), dim, groups.tp, layout=layout)
        assert torch.equal(summed, own * 3)
        y = whole.clone().requires_grad_()
        runtime.slice(y, dim, groups.tp, layout=layout, backward="pad").sum().backward()
        assert y.grad.narrow(dim, 3 * rank, real).eq(1).all()
        assert y.grad.sum() == real * 6
        part = own.detach().requires_grad_()
        other = runtime.all_to_all(part, dim, 1 - dim, groups.tp, gather_layout=layout)
        assert torch.equal(other, whole.narrow(1 - dim, 2 * rank, 2))
        other.backward(other.detach())
        assert torch.equal(part.grad, part.detach())

    simulate(Mesh({"tp": 3}), run)
