"""The split negative log-likelihood against torch's, values and gradients, in float64 to 1e-12."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxpar import runtime
from fxpar.errors import RankError
from fxpar.mesh import Mesh
from fxpar.runtime.groups import Groups, alone
from fxpar.runtime.lockstep import simulate

CLASSES = 12


@pytest.mark.parametrize("ranks", [1, 2, 5, 8])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(7,), (3, 2, 2)])
def test_the_parts_add_up(shape: tuple[int, ...], reduction: str, weighted: bool, ranks: int) -> None:
    """12 over 5 or 8 ranks end in padding, which may hold anything."""
    torch.manual_seed(0)
    x = torch.randn(shape[0], CLASSES, *shape[1:], dtype=torch.float64)
    target = torch.randint(0, CLASSES, shape)
    target.view(-1)[::3] = -100
    weight = torch.rand(CLASSES, dtype=torch.float64) if weighted else None
    grad = torch.rand(shape, dtype=torch.float64) if reduction == "none" else None
    part, length = -(-CLASSES // ranks), CLASSES if CLASSES % ranks else None
    behind = [0, 0] * (x.dim() - 2)
    padded = F.pad(x, [*behind, 0, part * ranks - CLASSES], value=torch.nan).split(part, 1)
    shares = F.pad(weight, (0, part * ranks - CLASSES)).split(part) if weighted else [None] * ranks

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        own = padded[rank].clone().requires_grad_()
        count = runtime.count_targets(target, weight) if reduction == "mean" else None
        kept = "none" if reduction == "none" else "sum"
        loss = runtime.nll_loss(own, target, shares[rank], kept, classes=groups.tp, count=count, whole=length)
        loss.backward(grad)
        return loss.detach(), own.grad

    results = simulate(Mesh({"tp": ranks}), run)
    assert results.counters[0].calls() == 0
    x.requires_grad_()
    wanted = F.nll_loss(x, target, weight, reduction=reduction)
    wanted.backward(grad)
    torch.testing.assert_close(sum(y for y, _ in results), wanted.detach(), rtol=1e-12, atol=1e-12)
    gradient = torch.cat([each for _, each in results], 1)
    torch.testing.assert_close(gradient[:, :CLASSES], x.grad, rtol=1e-12, atol=1e-12)
    assert not gradient[:, CLASSES:].any()


def test_a_wrong_target_is_refused_on_every_rank() -> None:
    def run(_: int, groups: Groups) -> None:
        runtime.nll_loss(torch.randn(1, 3), torch.tensor([12]), classes=groups.tp, whole=CLASSES)

    with pytest.raises(RankError, match="a target is not within the 12 rows or classes"):
        simulate(Mesh({"tp": 5}), run)


def test_gradcheck_and_registration() -> None:
    x = torch.randn(3, CLASSES, dtype=torch.float64, requires_grad=True)
    target, weight = torch.tensor([0, -100, 11]), torch.rand(CLASSES, dtype=torch.float64)
    group = alone(Mesh({"tp": 1})).tp
    for arguments in [("sum", -100, group, torch.tensor(2)), ("none", -100, None, None)]:
        torch.autograd.gradcheck(lambda t, a=arguments: torch.ops.fxpar.nll_loss(t, target, weight, *a), (x,))
        torch.library.opcheck(torch.ops.fxpar.nll_loss.default, (x, target, weight, *arguments))
