"""What the real processes of the tests of parallelize run; beside the tests, so that a new process can import it."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import fxpar
from fxpar.errors import RankError

RANKS = 2


class Model(nn.Module):
    """An embedding with a tied head, a feed-forward, a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(64, 8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 64, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.tokens(ids)
        logits = self.head(x + self.down(self.up(self.norm(x)).relu()))
        return {
            "loss": nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()),
            "logits": logits,
        }


def make() -> tuple[Model, dict[str, torch.Tensor]]:
    """The same model and batch in every process, in float64."""
    torch.manual_seed(0)
    ids = torch.randint(64, (4, 6))
    return Model().double(), {"ids": ids, "targets": ids.roll(1, 1)}


def start(store: str) -> None:
    """Run everything in two processes with a gloo group."""
    mp.spawn(_enter, args=(store,), nprocs=RANKS, join=True)


def _enter(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    trained_alike()
    stepped_alike()
    sized_alike()
    seeded_apart()
    dist.destroy_process_group()


def trained_alike() -> None:
    """Three steps of an optimizer outside of fxpar: losses, outputs and parameters are the whole model's."""
    model, batch = make()
    module = fxpar.parallelize(model, fxpar.Plan(tp=2), kwargs=batch, device="cpu")
    assert set(module.state_dict()) == set(model.state_dict())
    assert module.tokens.weight.shape == (32, 8)
    assert module.head.weight is module.tokens.weight
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (model, module)]
    for _ in range(3):
        whole, found = model(**batch), module(**batch)
        for output in ("loss", "logits"):
            torch.testing.assert_close(found[output], whole[output], rtol=1e-11, atol=1e-11)
        for optimizer, outputs in zip(optimizers, (whole, found)):
            optimizer.zero_grad()
            outputs["loss"].backward()
            optimizer.step()
    start = 8 * dist.get_rank()
    torch.testing.assert_close(module.up.weight, model.up.weight[start : start + 8], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(module.norm.weight, model.norm.weight, rtol=1e-9, atol=1e-9)


def stepped_alike() -> None:
    """A step of a pipeline: the loss and the gradients of the tied weight on both stages."""
    model, batch = make()
    module = fxpar.parallelize(model, fxpar.Plan(pp=2), kwargs=batch, device="cpu")
    loss = model(**batch)["loss"]
    loss.backward()
    torch.testing.assert_close(module.step(batch), loss.detach(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        module.get_parameter("tokens.weight").grad, model.tokens.weight.grad, rtol=1e-10, atol=1e-12
    )
    assert set(module.state_dict()) <= set(model.state_dict())


def sized_alike() -> None:
    """Steps of a pipeline at several sizes, one of which comes again, with microbatches that differ in size."""
    model, batch = make()
    plan = fxpar.Plan(pp=2, microbatches=2, dynamic=["batch"])
    module = fxpar.parallelize(model, plan, kwargs=batch, device="cpu")
    for count in (4, 8, 5, 2, 6, 3, 4, 5):
        ids = torch.randint(64, (count, 6), generator=torch.Generator().manual_seed(count))
        given = {"ids": ids, "targets": ids.roll(1, 1)}
        model.zero_grad()
        module.zero_grad()
        loss = model(**given)["loss"]
        loss.backward()
        torch.testing.assert_close(module.step(given), loss, rtol=1e-11, atol=1e-11)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, model.get_parameter(name).grad, rtol=1e-11, atol=1e-11)
    with pytest.raises(RankError, match="batch = 1: it has to be at least 2"):
        module.step({"ids": ids[:1], "targets": ids[:1]})


def seeded_apart() -> None:
    """Ranks that drew other weights are told so, all of them; nothing waits."""
    model, batch = make()
    with torch.no_grad():
        model.up.weight[-1, -1] += dist.get_rank()
        model.norm.bias[0] -= dist.get_rank()
    said = "different models: `norm.bias`, `up.weight` of rank 1 is not that of rank 0"
    for plan in (fxpar.Plan(tp=2), fxpar.Plan(dp=2), fxpar.Plan(pp=2)):
        with pytest.raises(RankError, match=said):
            fxpar.parallelize(model, plan, kwargs=batch, device="cpu")
