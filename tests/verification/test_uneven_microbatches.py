"""Batches that do not divide into microbatches, where `dynamic` allows for other sizes: exact, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from verification_models import VOCAB, nanogpt

from fxpar.again import precision
from fxpar.dynamic.capture import captured
from fxpar.errors import RankError
from fxpar.parallel import parallelize
from fxpar.parts import ModelWeights
from fxpar.passes import split
from fxpar.plan import Plan
from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.rank import Rank
from fxpar.schedule import SCHEDULES
from fxpar.verification.subject import Subject

MICROBATCHES = 4


def subject(model: nn.Module, batch: dict[str, Tensor], plan: Plan) -> Subject:
    with precision(True):
        program = captured(model, (), batch, plan)
    return Subject(split(program, plan), model, (), batch, ModelWeights(program, None), exact=True)


def text(samples: int, length: int = 16) -> dict[str, Tensor]:
    """Tokens, and targets of which every sample counts another number."""
    generator = torch.Generator().manual_seed(samples)
    ids = torch.randint(VOCAB, (samples, length), generator=generator)
    targets = ids.clone()
    for sample in range(samples):
        targets[sample, : (3 * sample) % length] = -1
    return {"idx": ids, "targets": targets}


@pytest.fixture(scope="module")
def gpt() -> nn.Module:
    torch.manual_seed(0)
    return nanogpt()[0].double()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_number_of_samples(gpt: nn.Module, schedule: str) -> None:
    virtual = SCHEDULES[schedule].least
    plan = Plan(
        pp=2, tp=2, vpp=virtual, schedule=schedule, microbatches=MICROBATCHES, dynamic=["batch", "sequence"]
    )
    found = subject(gpt, text(8), plan)
    (batch, _) = found.partition.manifest.dynamic
    assert (batch.name, batch.multiple // batch.dealt) == ("batch", 1)
    batches = [text(8), text(10), text(7, 8), text(3), text(2)]

    def run(_: int, groups: Groups) -> list[Any]:
        rank = found.rank(groups)
        return [_step(rank, each) for each in batches]

    for each in simulate(found.partition.mesh, run):
        for (loss, gradients, outputs), batch in zip(each, batches):
            gpt.zero_grad()
            logits, wanted = gpt(**batch)
            wanted.backward()
            torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=1e-12)
            for name, gradient in gradients.items():
                whole = gpt.get_parameter(name).grad
                torch.testing.assert_close(gradient, whole.norm(), rtol=1e-11, atol=1e-12, msg=name)
            torch.testing.assert_close(outputs[0], logits.detach(), rtol=1e-11, atol=1e-12)


def _step(rank: Rank, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Any]:
    """The loss, the norms of gradients that are whole on this rank, and the outputs."""
    rank.zero_grad()
    loss = rank.step(batch)
    whole = {name: spec for name, spec in rank.manifest.tensors.items() if not spec.split}
    gradients = {name: p.grad.norm() for name, p in rank.named_parameters() if name in whole}
    assert gradients
    again, outputs = rank.evaluate(batch)
    assert (outputs is not None) == rank.pipeline.has_last
    _, everywhere = rank.step(batch, outputs=True)
    _, evaluated = rank.evaluate(batch, everywhere=True)
    for one, other in zip(everywhere, evaluated):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)
    return loss, gradients, everywhere


LOSSES = {
    "mean": F.mse_loss,
    "each by the number of samples": lambda z, y: ((z - y) ** 2 / z.shape[0]).sum(),
    "the sum by the number of samples": lambda z, y: F.mse_loss(z, y, reduction="sum") / z.shape[0],
    "by what is made for each sample": lambda z, y: ((z - y) ** 2).sum() / z.new_ones(z.shape[0]).sum(),
}


class Regression(nn.Module):
    """A mean over samples, which each microbatch takes its share of."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.up, self.down, self.loss = nn.Linear(8, 16), nn.Linear(16, 8), LOSSES[loss]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.down(F.gelu(self.up(x))), y)


@pytest.mark.parametrize("samples", [4, 8, 12, 16])
@pytest.mark.parametrize("loss", LOSSES)
def test_sizes_that_divide_give_the_mean_itself(loss: str, samples: int) -> None:
    torch.manual_seed(0)
    model = Regression(loss).double()
    batch = {key: torch.randn(16, 8, dtype=torch.float64) for key in ("x", "y")}
    module = parallelize(
        model, Plan(microbatches=MICROBATCHES, dynamic=["batch"]), kwargs=batch, device="cpu"
    )
    given = {key: value[:samples] for key, value in batch.items()}
    torch.testing.assert_close(module.step(given), model(**given).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_shares_of_a_mean_are_equal(loss: str) -> None:
    torch.manual_seed(0)
    model = Regression(loss).double()
    batch = {key: torch.randn(12, 8, dtype=torch.float64) for key in ("x", "y")}
    found = subject(model, batch, Plan(pp=2, microbatches=MICROBATCHES, dynamic=["batch"]))

    def run(_: int, groups: Groups) -> Tensor:
        return found.rank(groups).step({key: value[:10] for key, value in batch.items()})

    with pytest.raises(
        RankError, match=r"batch = 10 does not divide over 4 parts \(microbatches 4\); 8 or 12 would do"
    ):
        simulate(found.partition.mesh, run)
