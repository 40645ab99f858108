"""A model in parallel without any file."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import fxpar
from fxpar.checkpoint.weights import TensorWeights
from fxpar.errors import CheckpointError, RankError

sys.path.insert(0, str(Path(__file__).parent))
from parallel_workers import Model, make, start


def test_one_rank_needs_no_processes() -> None:
    model, batch = make()
    module = fxpar.parallelize(model, fxpar.Plan(), kwargs=batch, device="cpu")
    whole, found = model(**batch), module(**batch)
    assert list(found) == ["loss", "logits"]
    torch.testing.assert_close(found["loss"], whole["loss"])
    found["loss"].backward()
    whole["loss"].backward()
    torch.testing.assert_close(module.up.weight.grad, model.up.weight.grad)
    assert list(module.state_dict()) == list(model.state_dict())


def test_the_model_is_left_as_it_is_and_not_kept() -> None:
    model, batch = make()
    before = copy.deepcopy(model.state_dict())
    module = fxpar.parallelize(model, fxpar.Plan(), kwargs=batch, device="cpu")
    module(**batch)["loss"].backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    gone = [weakref.ref(model), weakref.ref(model.up.weight)]
    del model
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    module(**batch)


@pytest.mark.parametrize("plan", [fxpar.Plan(), fxpar.Plan(microbatches=2, seed=3)])
def test_a_copy_has_tensors_of_its_own(plan: fxpar.Plan) -> None:
    model, batch = make()
    module = fxpar.parallelize(model, plan, kwargs=batch, device="cpu")
    average = torch.optim.swa_utils.AveragedModel(module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    loss = module.step(batch)
    optimizer.step()
    copied = average.module
    assert all(torch.equal(before[name], tensor) for name, tensor in copied.state_dict().items())
    assert list(copied.state_dict()) == list(before)
    assert torch.equal(copied.step(batch), loss)
    assert all(
        torch.equal(one.grad, other.grad)
        for one, other in zip(copied.parameters(), module.parameters(), strict=True)
    )
    average.update_parameters(module)
    assert torch.equal(average.state_dict()["module.up.weight"], module.up.weight)


def test_weights_from_elsewhere() -> None:
    model, batch = make()
    weights = TensorWeights({k: v for k, v in model.state_dict().items() if k != "tokens.weight"})
    with torch.device("meta"):
        empty = Model().double()
    module = fxpar.parallelize(empty, fxpar.Plan(), kwargs=batch, weights=weights, device="cpu")
    torch.testing.assert_close(module(**batch)["loss"], model(**batch)["loss"])
    with pytest.raises(CheckpointError, match="has no value: it lies on the meta device"):
        fxpar.parallelize(empty, fxpar.Plan(), kwargs=batch, device="cpu")


class Scaled(nn.Module):
    """Its outputs depend on a number that a call may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, scale: float = 1.0, name: str = "plain") -> torch.Tensor:
        made: torch.Tensor = self.layer(x) * scale
        return made if name == "plain" else -made


def test_what_a_call_leaves_out_is_the_default_of_the_model() -> None:
    x = torch.randn(2, 4)
    module = fxpar.parallelize(Scaled(), fxpar.Plan(), kwargs={"x": x, "scale": 0.5, "name": "plain"})
    assert torch.equal(module(x, 0.5), module(x=x, scale=0.5, name="plain"))
    with pytest.raises(RankError) as error:
        module(x)
    assert "`scale` is missing: it was captured as 0.5" in str(error.value)
    with pytest.raises(RankError, match="`name` was captured as 'plain', given 'other'"):
        module(x, scale=0.5, name="other")


def test_several_ranks_need_processes() -> None:
    model, batch = make()
    with pytest.raises(RankError) as error:
        fxpar.parallelize(model, fxpar.Plan(tp=2, pp=2), kwargs=batch)
    assert str(error.value) == (
        "the plan has 4 ranks (pp 2, tp 2), and there is no process group\n"
        "  start the script with torchrun --nproc-per-node 4 SCRIPT.py\n"
        "  and call fxpar.parallelize inside of `with fxpar.together():`"
    )


@pytest.mark.parametrize(
    ("running", "plan", "message"),
    [
        (3, fxpar.Plan(tp=2), "the plan has 2 ranks (tp 2), and 3 processes run"),
        (2, fxpar.Plan(), "the plan has 1 ranks (all mesh dims are 1), and 2 processes run"),
    ],
)
def test_as_many_processes_as_ranks(
    monkeypatch: pytest.MonkeyPatch, running: int, plan: fxpar.Plan, message: str
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: running)
    model, batch = make()
    with pytest.raises(RankError) as error:
        fxpar.parallelize(model, plan, kwargs=batch)
    assert str(error.value).splitlines()[0] == message


@pytest.mark.gloo
def test_real_processes(tmp_path: Path) -> None:
    start(str(tmp_path / "store"))
