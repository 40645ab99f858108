"""Losses that are made of more than one mean, in microbatches and over data ranks: exact, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxpar
from fxpar.errors import MixingError, RankError

ROWS, WIDTH = 8, 6
PLANS = [fxpar.Plan(pp=2, microbatches=4), fxpar.Plan(tp=2, dp=2, microbatches=2)]


class Model(nn.Module):
    """A feed-forward, a loss that is given as a function of the model, the result and the target."""

    def __init__(self, loss: Callable[[Model, Tensor, Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.tensor([1.5, 0.4]))
        self.register_buffer("scale", torch.tensor(0.3))
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.loss(self, self.down(self.up(x).relu()), y)


def batch(rows: int = ROWS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x, y = torch.rand(2, rows, WIDTH, generator=generator).double()
    return {"x": x - 0.5, "y": y}


def mean(z: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(z, y)


def uncertain(m: Model, z: Tensor, y: Tensor) -> Tensor:
    """Two tasks, weighted by what they are uncertain of (Kendall et al. 2018)."""
    return (torch.stack([mean(z, y), F.l1_loss(z, y)]) * torch.exp(-m.weight) + m.weight).sum()


def used_twice(m: Model, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    loss = mean(z, y)
    return loss * m.scale + loss, loss


EXACT = {
    "a learned factor": lambda m, z, y: mean(z, y) * m.weight[0],
    "a learned divisor": lambda m, z, y: mean(z, y) / m.weight[0],
    "a buffer": lambda m, z, y: mean(z, y) * m.scale,
    "a regularizer": lambda m, z, y: mean(z, y) + 0.01 * (m.up.weight.square().sum() + m.weight.sum()),
    "a number": lambda _, z, y: 3 - 2 * mean(z, y) + 0.5,
    "subtracted": lambda _, z, y: y.mean() - mean(z, y),
    "between two": lambda _, z, y: torch.lerp(mean(z, y), F.l1_loss(z, y), 0.3),
    "tasks": uncertain,
    "a sum over samples by their weights": lambda _, z, y: (z - y).square().sum() / y.sum(),
    "used twice": used_twice,
    "rows that count": lambda _, z, y: (mean(z, y), (z.argmax(1) == y.argmax(1)).sum()),
    "similarity": lambda _, z, y: 1 - F.cosine_similarity(z, y).mean(),
    "similarity by label": lambda _, z, y: F.cosine_embedding_loss(z, y, 1 - 2 * (y[:, 0] > 0.5).double()),
    "triplets": lambda _, z, y: F.triplet_margin_loss(z, y, y.roll(1, 1)),
    "triplets, summed": lambda _, z, y: F.triplet_margin_loss(z, y, y.roll(1, 1), reduction="none").sum(),
    "distance": lambda _, z, y: F.pairwise_distance(z, y).square().mean(),
    "order": lambda _, z, y: F.margin_ranking_loss(z, y, 1 - 2 * (y > 0.5).double(), margin=0.1),
    "counts": lambda _, z, y: F.poisson_nll_loss(z, y),
    "hinge": lambda _, z, y: F.hinge_embedding_loss(z, 1 - 2 * (y > 0.5).double()),
}


@pytest.mark.parametrize("plan", PLANS, ids=["pp", "dp"])
@pytest.mark.parametrize("name", EXACT)
def test_exact(name: str, plan: fxpar.Plan) -> None:
    report = fxpar.verify(Model(EXACT[name]).double(), kwargs=batch(), plan=plan, simulate=True)
    assert report.ok, str(report)
    assert max(report.loss_error, report.gradient_error) < 1e-14


@pytest.mark.parametrize(
    ("loss", "op"),
    [
        (lambda _, z, y: mean(z, y).sqrt(), "aten.sqrt.default"),
        (lambda _, z, y: mean(z, y) * F.l1_loss(z, y), "aten.mul.Tensor"),
        (lambda m, z, y: m.weight[0] / mean(z, y), "aten.div.Tensor"),
        (lambda _, z, y: (mean(z, y), (z.argmax(1) == y.argmax(1)).sum() + 1), "aten.add.Tensor"),
    ],
)
def test_what_no_microbatch_can_know(loss: Callable[..., Tensor], op: str) -> None:
    with pytest.raises(MixingError, match=f"microbatches mix at `{op}`: it needs the whole batch"):
        fxpar.verify(Model(loss).double(), kwargs=batch(), plan=PLANS[0], simulate=True)


@pytest.mark.parametrize("term", [lambda m: m.weight.sum(), lambda _: 0.5], ids=["learned", "a number"])
def test_shares_of_a_term_want_equal_microbatches(term: Callable[[Model], Tensor | float]) -> None:
    """Each of four microbatches adds a quarter of it: where one is missing the sum is wrong, so that it is refused."""

    def loss(m: Model, z: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(z, y, reduction="sum") + term(m)

    plan = fxpar.Plan(microbatches=4, dynamic=["batch"])
    module = fxpar.parallelize(Model(loss).double(), plan, kwargs=batch(), device="cpu")
    torch.testing.assert_close(module.step(batch(12)), Model(loss).double()(**batch(12)))
    with pytest.raises(RankError, match="batch = 10 does not divide over 4 parts"):
        module.step(batch(10))
