"""Look-ups along a split dimension against torch's, in float64 to 1e-12."""

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

ROWS = 12


@pytest.mark.parametrize("ranks", [1, 2, 5, 8])
@pytest.mark.parametrize(("shape", "dim"), [((3, ROWS, 2), 1), ((2, ROWS, 2), 1), ((ROWS,), 0)])
def test_the_parts_add_up(shape: tuple[int, ...], dim: int, ranks: int) -> None:
    """Where the index is shorter than x, the first rows are taken."""
    torch.manual_seed(0)
    sizes = [3 if size == 2 and i == 0 else size for i, size in enumerate(shape)]
    x = torch.randn(sizes, dtype=torch.float64)
    index = torch.randint(0, ROWS, [5 if i == dim else size for i, size in enumerate(shape)])
    grad, part = torch.randn(index.shape, dtype=torch.float64), -(-ROWS // ranks)
    length = ROWS if ROWS % ranks else None
    padded = F.pad(x, [*[0, 0] * (x.dim() - 1 - dim), 0, part * ranks - ROWS], value=torch.nan)

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        own = padded.split(part, dim)[rank].clone().requires_grad_()
        y = runtime.gather(own, dim, index, groups.tp, length)
        y.backward(grad)
        return y.detach(), own.grad

    results = simulate(Mesh({"tp": ranks}), run)
    x.requires_grad_()
    wanted = x.gather(dim, index)
    wanted.backward(grad)
    torch.testing.assert_close(sum(y for y, _ in results), wanted.detach(), rtol=1e-12, atol=1e-12)
    gradient = torch.cat([each for _, each in results], dim)
    torch.testing.assert_close(gradient.narrow(dim, 0, ROWS), x.grad, rtol=1e-12, atol=1e-12)
    assert not gradient.narrow(dim, ROWS, gradient.shape[dim] - ROWS).any()


@pytest.mark.parametrize("wrong", [-1, 12, 14])
def test_a_wrong_index_is_refused_on_every_rank(wrong: int) -> None:
    def run(_: int, groups: Groups) -> None:
        runtime.gather(torch.randn(1, 3), 1, torch.tensor([[wrong]]), groups.tp, ROWS)

    with pytest.raises(RankError, match="an index is not within the 12 rows or classes"):
        simulate(Mesh({"tp": 5}), run)


@pytest.mark.parametrize("ranks", [1, 2, 5, 8])
def test_each_rank_makes_its_slice_of_the_vectors(ranks: int) -> None:
    ids, part = torch.randint(0, ROWS, (3, 4)), -(-ROWS // ranks)
    length = ROWS if ROWS % ranks else None
    found = simulate(Mesh({"tp": ranks}), lambda _, groups: runtime.one_hot(ids, part, groups.tp, length))
    made = torch.cat(list(found), -1)
    assert torch.equal(made, F.pad(F.one_hot(ids, ROWS), (0, part * ranks - ROWS)))


def test_gradcheck_and_registration() -> None:
    group = alone(Mesh({"tp": 1})).tp
    x = torch.randn(3, ROWS, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, ROWS, (3, 4))
    torch.autograd.gradcheck(lambda t: torch.ops.fxpar.gather(t, 1, index, group), (x,))
    torch.library.opcheck(torch.ops.fxpar.gather.default, (x, 1, index, group))
    torch.library.opcheck(torch.ops.fxpar.one_hot.default, (index, ROWS, group))
