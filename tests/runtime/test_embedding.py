"""The split table against the whole one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxpar import runtime
from fxpar.mesh import Mesh
from fxpar.runtime.groups import Groups, alone
from fxpar.runtime.lockstep import simulate

IDS = torch.tensor([[0, 3, 7, 3], [5, 2, 2, 6]])


@pytest.mark.parametrize("padding", [None, 0, 2, 5])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_values_and_gradients(ranks, padding):
    table = torch.randn(8, 3, dtype=torch.float64)
    whole = table.clone().requires_grad_()
    want = F.embedding(IDS, whole, padding)
    grad = torch.randn_like(want)
    want.backward(grad)

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        own = table.chunk(ranks)[rank].clone().requires_grad_()
        rows = runtime.all_reduce(runtime.embedding(IDS, own, groups.tp, padding), groups.tp)
        rows.backward(grad)
        return rows.detach(), own.grad

    results = simulate(Mesh({"tp": ranks}), run)
    for rows, _ in results:
        assert torch.equal(rows, want.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]), whole.grad)


def test_registration():
    groups = alone(Mesh({"tp": 1}))
    weight = torch.randn(8, 3, requires_grad=True, dtype=torch.float64)
    torch.library.opcheck(torch.ops.fxpar.embedding.default, (IDS, weight, groups.tp, 2))
    torch.autograd.gradcheck(lambda w: runtime.embedding(IDS, w, groups.tp), (weight,))


@pytest.mark.parametrize("bad", [-1, 8])
def test_an_id_outside_of_the_table_is_refused(bad):
    groups = alone(Mesh({"tp": 1}))
    with pytest.raises(RuntimeError, match="an id is not within the 8 rows or classes"):
        runtime.embedding(torch.tensor([bad]), torch.zeros(8, 2), groups.tp)


@pytest.mark.parametrize("ranks", [3, 5])
def test_rows_that_do_not_divide(ranks):
    """8 over 3, and over 5 of which the last has none: padding is never looked up and has no gradient."""
    part = -(-8 // ranks)
    table = F.pad(torch.randn(8, 3, dtype=torch.float64), (0, 0, 0, part * ranks - 8), value=torch.nan)

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        own = table.split(part)[rank].clone().requires_grad_()
        rows = runtime.all_reduce(runtime.embedding(IDS, own, groups.tp, rows=8), groups.tp)
        rows.backward(torch.ones_like(rows))
        with pytest.raises(RuntimeError, match="an id is not within the 8 rows or classes"):
            runtime.embedding(torch.tensor([8]), own, groups.tp, rows=8)
        return rows.detach(), own.grad

    results = simulate(Mesh({"tp": ranks}), run)
    assert all(torch.equal(rows, F.embedding(IDS, table[:8])) for rows, _ in results)
    counts = torch.bincount(IDS.flatten(), minlength=part * ranks).double()
    assert torch.equal(torch.cat([gradient for _, gradient in results]), counts[:, None].expand(-1, 3))
