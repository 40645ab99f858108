"""Partitions that are right are found to be, and those that were spoilt are not, by name and rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from verification_models import LAYERS, subject_of

import fxpar
from fxpar.errors import ModelError, PlanError
from fxpar.runtime.groups import Groups
from fxpar.runtime.rank import Rank
from fxpar.verification.simulated import verify_simulated
from fxpar.verification.subject import Subject, subject

PLANS = {
    "nanogpt": fxpar.Plan(tp=2, pp=2),
    "llama": fxpar.Plan(tp=4),
    "gpt2": fxpar.Plan(dp=2, tp=2),
    "phi3": fxpar.Plan(tp=2, pp=2, sequence_parallel=False),
    "bert": fxpar.Plan(dp=2, pp=2),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_partition_is_the_model(name: str) -> None:
    model, inputs = subject_of(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = fxpar.verify(model, kwargs=inputs, plan=PLANS[name], simulate=True)
    assert report.ok, report.text()
    worst = (report.loss_error, report.gradient_error, report.norm_error, report.parameter_error)
    assert max(*worst, report.output_error) < 1e-11
    assert {row.name for row in report.rows if row.gradient is not None} == dict(
        model.named_parameters()
    ).keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class Shown(nn.Module):
    """It returns a parameter as it is: whoever holds on to it sees it change with the step."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.down(torch.relu(self.up(x))).square().mean(), self.up.weight


@pytest.mark.parametrize("plan", [fxpar.Plan(tp=2), fxpar.Plan(dp=2), fxpar.Plan(tp=2, pp=2)], ids=str)
def test_outputs_are_compared_as_they_are_before_the_step(plan: fxpar.Plan) -> None:
    batch = (torch.randn(4, 8, dtype=torch.float64),)
    report = fxpar.verify(Shown().double(), batch, plan=plan, simulate=True)
    assert report.output_error < 1e-12, report.text()


@pytest.mark.parametrize("plan", [fxpar.Plan(tp=2, pp=2), fxpar.Plan(dp=2, cp=2, tp=2)], ids=str)
def test_a_model_without_a_loss_is_given_one(plan: fxpar.Plan) -> None:
    model, inputs = subject_of("bert", loss=False)
    report = fxpar.verify(model, kwargs=inputs, plan=plan, simulate=True)
    assert report.ok, report.text()
    assert report.loss_error < 1e-12
    assert report.gradient_error > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes_have_their_tolerance(dtype: torch.dtype) -> None:
    model, inputs = subject_of("gpt2")
    report = fxpar.verify(model.to(dtype), kwargs=inputs, plan=fxpar.Plan(tp=2, pp=2), simulate=True)
    assert report.ok, report.text()
    assert report.tolerance == {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    assert report.gradient_error > 1e-9


def test_collectives_are_as_few_as_can_be() -> None:
    model, inputs = subject_of("llama")
    whole = fxpar.verify(model, kwargs=inputs, plan=fxpar.Plan(tp=2, sequence_parallel=False), simulate=True)
    in_loss = 2  # the largest logit; the sum of exponentials together with the target's logit
    assert whole.calls("all_reduce", group="tp", phase="forward") == 2 * LAYERS + 1 + in_loss
    assert whole.calls("all_reduce", group="tp", phase="backward") == 2 * LAYERS + 1
    assert whole.calls() == 4 * LAYERS + 2 + in_loss
    split = fxpar.verify(model, kwargs=inputs, plan=fxpar.Plan(tp=2), simulate=True)
    for phase in ("forward", "backward"):
        assert split.calls("all_gather", phase=phase) == 2 * LAYERS + 1
        assert split.calls("reduce_scatter", phase=phase) == 2 * LAYERS + 1
    assert split.calls("all_reduce", phase="step") == 1
    assert split.sharded_fraction > 0.9


def test_a_gradient_that_is_not_summed_is_found() -> None:
    model, inputs = subject_of("nanogpt")
    spoilt = subject(model, (), inputs, fxpar.Plan(tp=2))
    name, tensors = "blocks.1.norm_2.weight", spoilt.partition.manifest.tensors
    assert tensors[name].reduce == ("tp",)
    changed = {**tensors, name: replace(tensors[name], reduce=())}
    spoilt.partition.manifest = replace(spoilt.partition.manifest, tensors=changed)
    report = verify_simulated(spoilt)
    assert not report.ok
    assert report.first_wrong.name == report.worst_parameter == name
    assert report.first_wrong.gradient > 0.1
    assert report.first_wrong.rule.endswith("what it is used in is split by rules/splits/default.yaml:5")
    assert report.loss_error < 1e-12


@dataclass
class Perturbed(Subject):
    """One rank has one other weight."""

    def rank(self, groups: Groups, device: torch.device | str = "cpu") -> Rank:
        made = super().rank(groups, device)
        if groups.rank == 1:
            with torch.no_grad():
                made.get_parameter("blocks.0.attention.qkv.weight")[3, 5] += 1e-3
        return made


def test_a_weight_that_differs_on_one_rank_is_found() -> None:
    model, inputs = subject_of("nanogpt")
    report = verify_simulated(Perturbed(**vars(subject(model, (), inputs, fxpar.Plan(tp=2)))))
    wrong = {row.name: row for row in report.rows if row.update > report.tolerance}
    row = wrong["blocks.0.attention.qkv.weight"]
    assert not report.ok
    assert row.rank == 1
    assert row.rule == "rules/splits/default.yaml:2"
    assert "first to differ: " in report.text()


def test_a_model_in_which_nothing_learns_is_refused() -> None:
    model = nn.Linear(4, 4).requires_grad_(False)
    with pytest.raises(ModelError, match="there is no gradient to compare"):
        fxpar.verify(model, (torch.ones(2, 4),), plan=fxpar.Plan(), simulate=True)


def test_a_model_wants_a_plan() -> None:
    with pytest.raises(PlanError, match="a model is verified with a plan"):
        fxpar.verify(nn.Linear(4, 4), (torch.ones(2, 4),))


class Norm(nn.Module):
    """Updates buffers, has an unused and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 6)
        self.unused = nn.Parameter(torch.ones(3))
        self.last.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).relu())


def test_buffers_and_what_does_not_learn() -> None:
    torch.manual_seed(0)
    model = Norm().double()
    report = fxpar.verify(model, (torch.randn(8, 6).double(),), plan=fxpar.Plan(tp=2), simulate=True)
    assert report.ok, report.text()
    rows = {row.name: row for row in report.rows}
    assert rows["norm.running_mean"].kind == "buffer"
    assert rows["norm.running_mean"].gradient is rows["last.bias"].gradient is None
    assert rows["unused"].gradient == 0
    assert model.norm.num_batches_tracked == 0
