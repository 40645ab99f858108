"""Softmax along a split dimension against torch's, values and gradients, in float64 to 1e-12."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxpar import runtime
from fxpar.mesh import Mesh
from fxpar.runtime.groups import Groups, alone
from fxpar.runtime.lockstep import simulate

CLASSES = 12
Op = Callable[..., Tensor]
SPLIT: dict[str, tuple[Op, Op]] = {
    "log_softmax": (torch.log_softmax, runtime.log_softmax),
    "softmax": (torch.softmax, runtime.softmax),
}


def whole(op: Op, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """An op of torch and its gradient."""
    x = x.detach().clone().requires_grad_()
    y = op(x)
    y.backward(grad)
    return y.detach(), x.grad


def shares(x: Tensor, dim: int, ranks: int, filler: float = torch.nan) -> tuple[Tensor, ...]:
    """The part of each rank, the last ones filled up with what may be anything."""
    part = -(-x.shape[dim] // ranks)
    behind = [0, 0] * (x.dim() - 1 - dim)
    return F.pad(x, [*behind, 0, part * ranks - x.shape[dim]], value=filler).split(part, dim)


def close(got: object, want: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("ranks", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("name", SPLIT)
def test_each_rank_has_its_part(name: str, dim: int, ranks: int) -> None:
    """12 over 5 or 8 ranks end in padding, which some have alone."""
    torch.manual_seed(0)
    shape = [3, 4, 2]
    shape[dim] = CLASSES
    x, grad = torch.randn(shape, dtype=torch.float64) * 40, torch.randn(shape, dtype=torch.float64)
    length = CLASSES if CLASSES % ranks else None

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        own = shares(x, dim, ranks)[rank].clone().requires_grad_()
        y = SPLIT[name][1](own, dim, groups.tp, length)
        y.backward(shares(grad, dim, ranks)[rank])
        return y.detach(), own.grad

    results = simulate(Mesh({"tp": ranks}), run)
    found = [torch.cat(parts, dim) for parts in zip(*results)]
    assert not any(each.narrow(dim, CLASSES, each.shape[dim] - CLASSES).any() for each in found)
    kept = tuple(each.narrow(dim, 0, CLASSES) for each in found)
    close(kept, whole(lambda t: SPLIT[name][0](t, dim), x, grad))


@pytest.mark.parametrize("ranks", [2, 5, 8])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dims", [[1], [0, 1], [1, 2]])
def test_the_logarithm_of_a_sum_is_the_same_on_every_rank(dims: list[int], keepdim: bool, ranks: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, CLASSES, 2, dtype=torch.float64) * 40
    x[0] = -torch.inf
    length = CLASSES if CLASSES % ranks else None
    grad = torch.randn_like(x.logsumexp(dims, keepdim))

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        own = shares(x, 1, ranks)[rank].clone().requires_grad_()
        y = runtime.logsumexp(own, dims, keepdim, 1, groups.tp, length)
        y.backward(grad)
        return y.detach(), own.grad

    results = simulate(Mesh({"tp": ranks}), run)
    assert all(torch.equal(y, results[0][0]) for y, _ in results)
    gradient = torch.cat([each for _, each in results], 1)[:, :CLASSES]
    close((results[0][0], gradient), whole(lambda t: t.logsumexp(dims, keepdim), x, grad))


@pytest.mark.parametrize("name", SPLIT)
def test_classes_that_a_mask_excludes(name: str) -> None:
    """All classes of the first rank are masked in some rows; the others have all of the probability."""
    x = torch.randn(4, CLASSES, dtype=torch.float64)
    x[:2, :6] = -torch.inf
    grad = torch.rand_like(x).where(x.isfinite(), 0)

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        own = x.chunk(2, 1)[rank].clone().requires_grad_()
        y = SPLIT[name][1](own, 1, groups.tp)
        y.backward(grad.chunk(2, 1)[rank])
        return y.detach(), own.grad

    found = [torch.cat(parts, 1) for parts in zip(*simulate(Mesh({"tp": 2}), run))]
    close(tuple(found), whole(lambda t: SPLIT[name][0](t, 1), x, grad))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", SPLIT)
def test_narrow_numbers_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    x, grad = torch.randn(5, CLASSES).to(dtype), torch.randn(5, CLASSES).to(dtype)

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        own = x.chunk(2, 1)[rank].clone().requires_grad_()
        y = SPLIT[name][1](own, 1, groups.tp)
        y.backward(grad.chunk(2, 1)[rank])
        return y.detach(), own.grad

    found = [torch.cat(parts, 1) for parts in zip(*simulate(Mesh({"tp": 2}), run))]
    assert {each.dtype for each in found} == {dtype}
    wanted = whole(lambda t: SPLIT[name][0](t, 1), x, grad)
    close(tuple(found), wanted, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", SPLIT)
def test_autocast_gives_what_torch_gives(name: str) -> None:
    group, x = alone(Mesh({"tp": 1})).tp, torch.randn(3, CLASSES).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert SPLIT[name][1](x, 1, group).dtype == SPLIT[name][0](x, 1).dtype


@pytest.mark.parametrize(("name", "backward"), [("log_softmax", 1), ("softmax", 1), ("logsumexp", 0)])
def test_what_is_communicated(name: str, backward: int) -> None:
    """A number a row: the largest and the sum, and in backward a sum again."""
    x = torch.randn(5, CLASSES, dtype=torch.float64)

    def run(rank: int, groups: Groups) -> None:
        own = x.chunk(2, 1)[rank].clone().requires_grad_()
        y = (
            runtime.logsumexp(own, [1], False, 1, groups.tp)
            if name == "logsumexp"
            else SPLIT[name][1](own, 1, groups.tp)
        )
        y.sum().backward()

    counter = simulate(Mesh({"tp": 2}), run).counters[0]
    assert counter.calls("all_reduce", phase="forward") == 2
    assert counter.calls() == 2 + backward
    assert counter.bytes() == (2 + backward) * 5 * 8


def test_gradcheck_and_registration() -> None:
    group = alone(Mesh({"tp": 1})).tp
    x = torch.randn(3, CLASSES, dtype=torch.float64, requires_grad=True)
    for name, arguments in [
        ("log_softmax", (1, group)),
        ("softmax", (1, group, CLASSES)),
        ("logsumexp", ([1], True, 1, group)),
    ]:
        for op in (getattr(torch.ops.fxpar, name), getattr(torch.ops.fxpar, f"{name}_forward")):
            torch.autograd.gradcheck(lambda t, op=op, a=arguments: op(t, *a), (x,))
            torch.library.opcheck(op.default, (x, *arguments))
