"""Rows, each with the weight that it names."""

from __future__ import annotations

import pytest
import torch

from fxpar.runtime import expert_linear
from fxpar.runtime.experts import grouped_mm


@pytest.mark.parametrize("ids", [[0, 2, 2, 1, 0, 2], [1] * 6, [2, 1, 0, 2, 1, 0], []])
def test_each_row_with_its_weight(ids: list[int]) -> None:
    named = torch.tensor(ids, dtype=torch.int64)
    rows = torch.randn(len(ids), 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    made = expert_linear(rows, weight, named)
    wanted = torch.bmm(rows[:, None], weight[named])[:, 0]
    torch.testing.assert_close(made, wanted)
    gradient = torch.randn_like(wanted)
    found = torch.autograd.grad(made, (rows, weight), gradient)
    for a, b in zip(found, torch.autograd.grad(wanted, (rows, weight), gradient)):
        torch.testing.assert_close(a, b)


def test_the_operator_is_a_proper_one() -> None:
    rows, weight = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.fxpar.expert_linear.default, (rows, weight, torch.tensor([1, 0, 1, 1])))


def test_an_id_without_a_weight_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="num_classes"):
        expert_linear(torch.randn(2, 3), torch.randn(2, 3, 5), torch.tensor([0, 2]))


@pytest.mark.parametrize("ends", [[2, 5, 6], [0, 6, 6], [6, 6, 6]])
def test_sorted_rows_of_any_dtype(ends: list[int]) -> None:
    rows, weight = torch.randn(6, 8, requires_grad=True), torch.randn(3, 8, 8, requires_grad=True)
    where = torch.tensor(ends, dtype=torch.int32)
    found = grouped_mm(rows.double(), weight.double(), where)
    wanted = torch._grouped_mm(rows, weight, where)
    torch.testing.assert_close(found.float(), wanted)
    first = torch.autograd.grad(found.square().sum(), (rows, weight))
    for a, b in zip(first, torch.autograd.grad(wanted.square().sum(), (rows, weight))):
        torch.testing.assert_close(a, b)
